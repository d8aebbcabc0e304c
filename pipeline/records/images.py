"""Image records on the wire: CloudEvents 1.0, Kafka protocol binding, binary mode.

The value holds the pixels, the headers say everything else::

    ce_specversion  1.0
    ce_id           not empty; also the record's key
    ce_source       a URI reference, not empty
    ce_type         marketstream.image.v1, the version of this schema
    ce_time         optional, RFC 3339
    ce_subject      optional, not empty
    ce_label        optional, 1 to 200 bytes
    content-type    application/octet-stream, image/png or image/jpeg
    ce_shape        28,28, with application/octet-stream only

All header values are UTF-8 without control characters. Other headers are ignored. PNG and JPEG must be
28×28 and grey (Pillow's mode L); of an animation the first picture is read.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
"""

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.broker import Headers, Message, Record
from pipeline.errors import RecordError

SIDE = 28
PIXELS = SIDE * SIDE
LABEL_BYTES = 200

MOST_CLASSES = 1000
"""No learner learns more classes than this."""

# Every value that RecordError.reason can have here.
REASONS = ("version", "header", "label", "content-type", "shape", "length", "grey", "image")

Encoding = Literal["raw", "png", "jpeg"]
Format = Literal["PNG", "JPEG"]

_SPECVERSION = b"1.0"
_TYPE = b"marketstream.image.v1"
_RAW = b"application/octet-stream"
_SHAPE = b"28,28"
_KNOWN = {
    *("ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_subject", "ce_label"),
    *("content-type", "ce_shape"),
}
_MEDIA: dict[str, Format] = {"image/png": "PNG", "image/jpeg": "JPEG"}
_SIGNATURE = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_URI = re.compile(r"[\w\-.~:/?#\[\]@!$&'()*+,;=]*(?:%[0-9a-f]{2}[\w\-.~:/?#\[\]@!$&'()*+,;=]*)*", re.A | re.I)
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)t([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(z|[+-]([01]\d|2[0-3]):[0-5]\d)",
    re.A | re.I,
)


class ImageRecord(NamedTuple):  # and no dataclass: made for every image, and three times as quick to make
    """One image on the stream. Nothing is checked before it is encoded.

    Attributes
    ----------
    id
        Unique within ``source``.
    source
        Where the image came from: a URI reference.
    pixels
        784 bytes, grey from 0 to 255, row by row.
    label
        The class, if it is known.
    subject
        Which image of the source this is.
    time
        When the image was taken, as RFC 3339 text.
    """

    id: str
    source: str
    pixels: bytes
    label: str | None = None
    subject: str | None = None
    time: str | None = None


def encode(image: ImageRecord, topic: str, encoding: Encoding = "raw") -> Record:
    """The image as a record of ``topic``, with its id as key. ``jpeg`` changes pixels a little.

    Raises RecordError if it could not be read back.

    Examples
    --------
    >>> record = encode(ImageRecord("7", "urn:camera", bytes(PIXELS), label="cat"), "images")
    >>> record.key, len(record.value), dict(record.headers)["ce_label"]
    (b'7', 784, b'cat')
    >>> decode(record.value, record.headers).label
    'cat'
    """
    _check(image)
    headers = [
        ("ce_specversion", _SPECVERSION),
        ("ce_id", key := image.id.encode()),
        ("ce_source", image.source.encode()),
        ("ce_type", _TYPE),
    ]
    optional = (("ce_time", image.time), ("ce_subject", image.subject), ("ce_label", image.label))
    headers += [(name, text.encode()) for name, text in optional if text is not None]
    if encoding == "raw":
        value = image.pixels
        headers += [("content-type", _RAW), ("ce_shape", _SHAPE)]
    else:
        value = _compress(image.pixels, encoding)
        headers.append(("content-type", f"image/{encoding}".encode()))
    return Record(topic, value, key, tuple(headers))


def decode(value: bytes, headers: Headers) -> ImageRecord:
    """The image that a record holds; pixels of PNG and JPEG are those that Pillow decodes.

    Raises RecordError and nothing else; its reason is one of ``REASONS``.

    Examples
    --------
    >>> try:
    ...     decode(b"", ())
    ... except RecordError as error:
    ...     print(error.reason, "-", error)
    header - ce_specversion: missing; expected 1.0
    """
    known = dict(headers)
    if len(known) != len(headers):
        _refuse_duplicates(headers)
    if known.get("ce_specversion") != _SPECVERSION:
        raise _unexpected("version", known, "ce_specversion", "1.0")
    if known.get("ce_type") != _TYPE:
        raise _unexpected("version", known, "ce_type", f"{_TYPE.decode()}, which this program reads")
    label, subject, time = known.get("ce_label"), known.get("ce_subject"), known.get("ce_time")
    return ImageRecord(
        _text("ce_id", _required(known, "ce_id")),
        _source(_required(known, "ce_source")),
        _pixels(value, known),
        None if label is None else _label(label),
        None if subject is None else _text("ce_subject", subject),
        None if time is None else _time(time),
    )


def is_refused(label: str, classes: Collection[str]) -> bool:
    """Whether a label is one class more than a learner of these classes may learn."""
    return len(classes) >= MOST_CLASSES and label not in classes


def admitted_with(labels: Iterable[str], admitted: Iterable[str]) -> tuple[str, ...]:
    """The classes of a group after these labels were admitted too, as far as there is room."""
    return tuple(dict.fromkeys([*admitted, *labels]))[:MOST_CLASSES]


@dataclass
class Decoded:
    """``images`` and the ``messages`` that they came in, in the order of the stream; ``dead`` the rest, with why."""

    images: list[ImageRecord] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    dead: list[tuple[Message, RecordError]] = field(default_factory=list)

    @property
    def labels(self) -> list[str | None]:
        return [image.label for image in self.images]

    def refuse(self, refuses: Callable[[str], bool]) -> None:
        """Let the images be dead whose labels are more than a learner may learn: ``refuses`` says which."""
        refused = {label for label in dict.fromkeys(self.labels) if label is not None and refuses(label)}
        if not refused:
            return
        pairs = list(zip(self.images, self.messages, strict=True))
        self.dead += [
            (message, RecordError("classes", f"label {image.label!r} would be one class more than {MOST_CLASSES}"))
            for image, message in pairs
            if image.label in refused
        ]
        kept = [pair for pair in pairs if pair[0].label not in refused]
        self.images, self.messages = [image for image, _ in kept], [message for _, message in kept]


def decode_all(messages: Iterable[Message]) -> Decoded:
    """Decode messages; what cannot be read is ``dead``."""
    decoded = Decoded()
    for message in messages:
        try:
            image = decode(message.value, message.headers)
        except RecordError as error:
            decoded.dead.append((message, error))
        else:
            decoded.images.append(image)
            decoded.messages.append(message)
    return decoded


def stack(images: Sequence[ImageRecord]) -> NDArray[np.uint8]:
    """Their pixels: uint8 [n, 28, 28], read-only."""
    pixels = b"".join([image.pixels for image in images])
    return np.frombuffer(pixels, np.uint8).reshape(len(images), SIDE, SIDE)


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _check_text(header: str, text: str, reason: str = "header") -> None:
    if not text:
        raise RecordError(reason, f"{header}: empty; expected at least one character")
    # isprintable is the quick way past nearly all texts; what it refuses is not always a control character
    if not text.isprintable() and (found := _CONTROL.search(text)):
        raise RecordError(
            reason,
            f"{header}: U+{ord(found[0]):04X} at character {found.start()}; expected no control characters",
        )


def _check(image: ImageRecord) -> None:
    _check_length(image.pixels)
    _check_text("ce_id", image.id)
    _check_source(image.source)
    if image.label is not None:
        _check_label(image.label)
    if image.subject is not None:
        _check_text("ce_subject", image.subject)
    if image.time is not None:
        _check_time(image.time)


def _check_length(pixels: bytes) -> None:
    if len(pixels) != PIXELS:
        raise RecordError("length", f"value: expected {PIXELS} bytes, got {len(pixels)}")


def _check_source(text: str) -> None:
    _check_text("ce_source", text)
    if not _URI.fullmatch(text):
        raise RecordError("header", f"ce_source: expected a URI reference, got {_short(text)}")


def _check_label(text: str) -> None:
    _check_text("ce_label", text, "label")
    if (size := len(text.encode())) > LABEL_BYTES:
        raise RecordError("label", f"ce_label: expected at most {LABEL_BYTES} bytes, got {size}")


def _check_time(text: str) -> None:
    parts = _TIME.fullmatch(text)
    try:
        if parts:
            date(int(parts[1]), int(parts[2]), int(parts[3]))
            return
    except ValueError:  # there is no such day
        pass
    raise RecordError("header", f"ce_time: expected RFC 3339, as 2026-01-31T12:00:00Z, got {_short(text)}")


def _refuse_duplicates(headers: Headers) -> None:
    seen: set[str] = set()
    for name, _ in headers:
        if name in seen and name in _KNOWN:
            raise RecordError("header", f"{name}: comes more than once; expected one")
        seen.add(name)


def _unexpected(reason: str, known: Mapping[str, bytes], header: str, expected: str) -> RecordError:
    if header not in known:
        return RecordError("header", f"{header}: missing; expected {expected}")
    return RecordError(reason, f"{header}: expected {expected}, got {_short(known[header])}")


def _required(known: Mapping[str, bytes], header: str) -> bytes:
    try:
        return known[header]
    except KeyError:
        raise RecordError("header", f"{header}: missing; every image record has one") from None


def _decoded(header: str, text: bytes, reason: str = "header") -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise RecordError(reason, f"{header}: expected UTF-8, but byte {error.start} is not") from None


def _text(header: str, text: bytes) -> str:
    decoded = _decoded(header, text)
    _check_text(header, decoded)
    return decoded


@lru_cache(maxsize=1024)  # most images of a stream share theirs with others
def _source(text: bytes) -> str:
    decoded = _decoded("ce_source", text)
    _check_source(decoded)
    return decoded


@lru_cache(maxsize=1024)
def _label(text: bytes) -> str:
    decoded = _decoded("ce_label", text, "label")
    _check_label(decoded)
    return decoded


def _time(text: bytes) -> str:
    decoded = _decoded("ce_time", text)
    _check_time(decoded)
    return decoded


def _pixels(value: bytes, known: Mapping[str, bytes]) -> bytes:
    media = known.get("content-type")
    if media != _RAW:
        # a media type is in any case and may be followed by parameters
        name = (media or b"").partition(b";")[0].strip().lower().decode("latin-1")
        if name in _MEDIA:
            return _decompress(value, _MEDIA[name])
        if name != _RAW.decode():
            expected = f"{_RAW.decode()}, {' or '.join(_MEDIA)}"
            raise _unexpected("content-type", known, "content-type", expected)
    if known.get("ce_shape") != _SHAPE:
        raise _unexpected("shape", known, "ce_shape", _SHAPE.decode())
    if len(value) != PIXELS:
        raise RecordError("length", f"value: expected {PIXELS} bytes, got {len(value)}")
    return value


def _compress(pixels: bytes, encoding: Literal["png", "jpeg"]) -> bytes:
    with BytesIO() as file:
        Image.frombytes("L", (SIDE, SIDE), pixels).save(file, encoding, quality=95)
        return file.getvalue()


def _decompress(value: bytes, name: Format) -> bytes:
    signature = _SIGNATURE[name]
    if not value.startswith(signature):
        begin = value[: len(signature)].hex(" ")
        raise RecordError("image", f"value: byte 0: expected {name}, {signature.hex(' ')}, got {begin or 'nothing'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(value), formats=(name,)) as image:  # reads its header only
                _check_header(image, name)
                return image.tobytes()
    except RecordError:
        raise
    except Image.DecompressionBombError:
        raise RecordError("shape", f"value: a {name} image of a huge size; expected {SIDE}x{SIDE}") from None
    except UnidentifiedImageError:
        raise RecordError("image", f"value: damaged {name} header") from None
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise RecordError("image", f"value: damaged {name}: {_short(str(error))}") from None


def _check_header(image: Image.Image, name: Format) -> None:
    if image.size != (SIDE, SIDE):
        width, height = image.size
        raise RecordError("shape", f"value: expected a {name} of {SIDE}x{SIDE} pixels, got {width}x{height}")
    if image.mode != "L":
        raise RecordError("grey", f"value: expected a grey {name} (mode L), got mode {image.mode}")
