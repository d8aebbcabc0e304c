"""The records of the topic ``sums``: deltas, retractions and checkpoints, cut into pieces that brokers accept.

The header ``about`` says what a record is (JSON), and ``piece`` which piece of it this is ("0/2"). The values of all
pieces, one after the other, are one LZ4 frame.

The frame holds A and T as integers of as few bytes as the largest one needs. The lowest bytes of all integers come
first, then the next ones: that is a tenth smaller than plain integers. Few images are shorter as images: then the frame
holds products, targets and labels, and the reader gets the same sums from them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, TypeVar

import lz4.frame  # type: ignore[import-untyped]
import numpy as np
import orjson

from pipeline.broker import Message
from pipeline.broker import Record as Raw
from pipeline.errors import SumsError
from pipeline.group.shared import Admission, Checkpoint, Clock, Delta, GroupRecord, Retraction, Shared
from pipeline.learners.clearing.sums import ClearingUpdate, LooseSums, Sums, images_of, packed_size
from pipeline.learners.identity import ClearingIdentity
from pipeline.learners.protocol import Integers
from pipeline.records.images import admitted_with, is_refused

SCHEMA = 1
PIECE = 8_000_000
"""Most bytes of a piece."""

C = TypeVar("C")


@dataclass(frozen=True)
class LogIdentity:
    """What all records of one topic ``sums`` agree on.

    Parameters
    ----------
    group
        Name of the group.
    topic_id
        Id of the topic that the group learns from.
    identity
        Of the learners.
    base
        Digest of the earlier model that learning began with; empty if it began with nothing.
    width
        D, the number of products.
    """

    group: str
    topic_id: str
    identity: ClearingIdentity
    base: str
    width: int

    def difference(self, fields: Mapping[str, Any]) -> str:
        """How a log with these fields differs, for a person; empty if it does not.

        Raises KeyError or TypeError if a field is missing or unknown.
        """
        other = LogIdentity(**{**fields, "identity": ClearingIdentity(**fields["identity"])})
        named = [
            f"{name.replace('_', ' ')} {mine!r} is not {theirs!r}"
            for name in ("group", "topic_id", "base", "width")
            if (mine := getattr(self, name)) != (theirs := getattr(other, name))
        ]
        return ", ".join([*filter(None, [self.identity.difference(other.identity)]), *named])


def encode(topic: str, log: LogIdentity, record: GroupRecord[LooseSums]) -> list[Raw]:
    """The pieces of a record, as records of ``topic``. One transaction must write all of them."""
    body, form = _body(record)
    about = orjson.dumps({"v": SCHEMA, "id": record.id, "run": asdict(log), "form": form, **_fields(record)})
    frame = lz4.frame.compress(body, content_checksum=True)
    parts = [frame[start : start + PIECE] for start in range(0, len(frame), PIECE)]
    return [
        Raw(topic, part, log.group.encode(), (("about", about), ("piece", f"{i}/{len(parts)}".encode())), 0)
        for i, part in enumerate(parts)
    ]


def _body(record: GroupRecord[LooseSums]) -> tuple[bytes, dict[str, Any]]:
    """The numbers of a record, and what a reader must know to read them."""
    if isinstance(record, Admission):
        return b"", {}
    sums = record.shared.sums if isinstance(record, Checkpoint) else record.sums
    return _integers(sums.summed()) if sums.dense else _images(sums.few)


class Pieces(Generic[C]):
    """Puts the pieces of records together. Those of one record come in order; others may come between them."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[int, list[C]]] = {}

    def put(self, offset: int, id: str, piece: int, pieces: int, content: C) -> list[C] | None:
        """Take a piece. Returns all pieces of its record if it is the last, else None.

        A record whose first piece was not read began before the position where reading began, and is passed over.
        Raises ValueError if a piece is missing.
        """
        if piece == 0:
            self._begun[id] = offset, []
        if id not in self._begun:
            return None
        found = self._begun[id][1]
        if piece != len(found):
            raise ValueError(f"piece {piece} of record {id} after {len(found)} pieces")
        found.append(content)
        return self._begun.pop(id)[1] if piece == pieces - 1 else None

    def position(self, after: int) -> int:
        """Where to read on so that no piece is missing, once all offsets before ``after`` were read."""
        return min((offset for offset, _ in self._begun.values()), default=after)


class GroupReader:
    """Reads the records of one log."""

    def __init__(self, log: LogIdentity) -> None:
        self._log = log
        self._pieces = Pieces[bytes]()
        self._own: dict[str, GroupRecord[LooseSums]] = {}

    def expect(self, own: Iterable[GroupRecord[LooseSums]]) -> None:
        """Return these records themselves when they come back. To decode one takes as long as to learn 500 images.

        A second call replaces the records of the first.
        """
        self._own = {record.id: record for record in own}

    def read(self, message: Message) -> tuple[GroupRecord[LooseSums], int] | None:
        """Read a message of ``sums``. Returns the record that it completes and where to read on, or None.

        Raises SumsError if the message is damaged, of another version, or of another log; it says what differs.
        """
        where = f"topic {message.topic}, offset {message.offset}"
        try:
            headers = dict(message.headers)
            about = orjson.loads(headers["about"])
            if about["v"] != SCHEMA:
                raise SumsError(f"{where}: version {about['v']}, this program reads {SCHEMA}: update the older one")
            if difference := self._log.difference(about["run"]):
                raise SumsError(
                    f"{where}: learnt by a learner that differs ({difference}): use the settings of the learners that "
                    "are at work, or another --topic-prefix"
                )
            piece, pieces = map(int, headers["piece"].split(b"/"))
            parts = self._pieces.put(message.offset, about["id"], piece, pieces, message.value)
            if parts is None:
                return None
            own = self._own.pop(about["id"], None)
            record = own or _record(about, b"".join(parts), self._log.width)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise SumsError(f"{where}: damaged, or no record of sums at all: {error!r}") from error
        return record, self._pieces.position(message.offset + 1)


def log_identity_of(message: Message) -> LogIdentity:
    """The identity of the log that a message of ``sums`` belongs to. Raises SumsError."""
    fields = _about(message)["run"]
    return LogIdentity(**{**fields, "identity": ClearingIdentity(**fields["identity"])})


def kind(message: Message) -> str:
    """``delta``, ``retraction`` or ``base`` (a checkpoint), read from the headers alone. Raises SumsError."""
    return str(_about(message)["kind"])


@dataclass(frozen=True)
class Held:
    """Which images shared sums hold: all labelled ones from ``begins`` to ``clock`` but those that were retracted."""

    clock: Clock = field(default_factory=dict)
    begins: Clock = field(default_factory=dict)
    retracted: frozenset[str] = frozenset()
    admitted: tuple[str, ...] = ()

    def refuses(self, label: str) -> bool:
        """Whether images with this label were never learnt, there being as many classes as there may be."""
        return is_refused(label, self.admitted)

    def after(self, message: Message) -> "Held":
        """After one more message of ``sums``, of which the headers are enough. Raises SumsError."""
        about = _about(message)
        match about["kind"]:
            case "delta":
                clock = {**self.clock, **{p: stop for p, _, stop in about["spans"]}}
                return replace(self, clock=clock, admitted=admitted_with(about["form"]["classes"], self.admitted))
            case "retraction":
                return replace(self, retracted=self.retracted | {about["id"]})
            case "admission":
                return replace(self, admitted=admitted_with(about["labels"], self.admitted))
        admitted = tuple(about.get("admitted", about["form"]["classes"]))
        return Held(dict(about["clock"]), dict(about.get("begins", [])), frozenset(about["retracted"]), admitted)


def _about(message: Message) -> dict[str, Any]:
    """The header ``about``. Raises SumsError."""
    try:
        about: dict[str, Any] = orjson.loads(dict(message.headers)["about"])
    except (KeyError, ValueError) as error:
        where = f"topic {message.topic}, offset {message.offset}"
        raise SumsError(f"{where}: damaged, or no record of sums at all: {error!r}") from error
    return about


def _fields(record: GroupRecord[LooseSums]) -> dict[str, Any]:
    match record:
        case Delta():
            return {"kind": "delta", "spans": [[p, *span] for p, span in record.spans.items()]}
        case Retraction():
            return {"kind": "retraction", "clock": list(record.clock.items())}
        case Admission():
            return {"kind": "admission", "labels": record.labels}
        case Checkpoint(shared=shared):
            return {
                "kind": "base",
                "clock": list(shared.clock.items()),
                "position": shared.position,
                "retracted": sorted(shared.retracted),
                "begins": list(shared.begins.items()),
                "admitted": shared.admitted,
            }


def _record(about: Mapping[str, Any], frame: bytes, width: int) -> GroupRecord[LooseSums]:
    if about["kind"] == "admission":
        return Admission(about["id"], tuple(map(str, about["labels"])))
    sums = _decoded(about["form"], frame, width)
    match about["kind"]:
        case "delta":
            spans = {p: (start, stop) for p, start, stop in about["spans"]}
            return Delta(about["id"], spans, sums, sums.images, sums.labels)
        case "retraction":
            return Retraction(about["id"], dict(about["clock"]), sums)
        case "base":
            shared = Shared(
                sums,
                dict(about["clock"]),
                about["position"],
                frozenset(about["retracted"]),
                dict(about.get("begins", [])),
                tuple(about.get("admitted", sums.labels)),
            )
            return Checkpoint(about["id"], shared)
    raise ValueError(f"kind {about['kind']!r}")


def _integers(sums: Sums) -> tuple[bytes, dict[str, Any]]:
    classes = list(sums.counts)
    T = np.array([sums.T[c] for c in classes], np.int64)
    (A_bytes, A), (T_bytes, T_body) = _narrow(sums.A), _narrow(T)
    counts = [sums.counts[c] for c in classes]
    return A + T_body, {"classes": classes, "counts": counts, "A": A_bytes, "T": T_bytes}


def _images(updates: Sequence[ClearingUpdate]) -> tuple[bytes, dict[str, Any]]:
    images = images_of(updates)
    classes = list(dict.fromkeys(name for update in updates for name in update.classes))
    targets, start = np.zeros((images, len(classes)), np.int64), 0
    for update in updates:
        columns = [classes.index(name) for name in update.classes]
        targets[start : start + len(update.labels), columns] = update.targets
        start += len(update.labels)
    products = np.concatenate([update.products for update in updates]).T
    labels = np.array([classes.index(label) for update in updates for label in update.labels], np.int64)
    (t_bytes, t), (l_bytes, l_body) = _narrow(targets), _narrow(labels)
    return products.tobytes() + t + l_body, {"classes": classes, "images": images, "T": t_bytes, "labels": l_bytes}


def _decoded(form: Mapping[str, Any], frame: bytes, width: int) -> LooseSums:
    if "images" in form:
        return LooseSums(None, (_update(form, frame, width),))
    classes, counts = form["classes"], form["counts"]
    cut = form["A"] * packed_size(width)
    body = _decompressed(frame, cut + form["T"] * len(classes) * width)
    T = _wide(body[cut:], form["T"]).reshape(len(classes), width)
    A = _wide(body[:cut], form["A"])
    return LooseSums(Sums(A, dict(zip(classes, T, strict=True)), dict(zip(classes, map(int, counts), strict=True))))


def _update(form: Mapping[str, Any], frame: bytes, width: int) -> ClearingUpdate:
    images, classes = form["images"], form["classes"]
    if len(set(classes)) < len(classes) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes {classes}")
    cut = images * width
    end = cut + form["T"] * images * len(classes)
    body = _decompressed(frame, end + form["labels"] * images)
    products = np.ascontiguousarray(np.frombuffer(body[:cut], np.uint8).reshape(width, images).T)
    targets = _wide(body[cut:end], form["T"]).reshape(images, len(classes))
    labels = tuple(classes[i] for i in _wide(body[end:], form["labels"]))
    return ClearingUpdate(products, targets, labels, tuple(classes))


def _decompressed(frame: bytes, size: int) -> bytes:
    found = lz4.frame.get_frame_info(frame)["content_size"]
    if found != size:
        raise ValueError(f"{found} bytes, not {size}")
    body: bytes = lz4.frame.decompress(frame)
    return body


def _narrow(numbers: Integers) -> tuple[int, bytes]:
    """How many bytes each number needs, and these bytes: the lowest of all numbers first."""
    largest = max(int(numbers.max(initial=0)), -1 - int(numbers.min(initial=0)))
    size = largest.bit_length() // 8 + 1
    flat = numbers.ravel().astype("<i4" if size <= 4 else "<i8")
    return size, flat.view(np.uint8).reshape(len(flat), flat.itemsize)[:, :size].T.tobytes()


def _wide(body: bytes, size: int) -> Integers:
    """The inverse of ``_narrow``."""
    planes = np.frombuffer(body, np.uint8).reshape(size, -1)
    numbers = planes[-1].view(np.int8).astype(np.int32 if size <= 4 else np.int64)
    for plane in planes[-2::-1]:
        numbers <<= 8
        numbers |= plane
    result: Integers = numbers.astype(np.int64)
    return result
