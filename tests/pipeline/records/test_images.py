"""Image records: what is written is read back, and what is malformed is refused with one typed error."""

import io
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from pipeline.broker import Headers
from pipeline.errors import RecordError
from pipeline.records.images import REASONS, Encoding, ImageRecord, decode, encode, stack

PIXELS = bytes(range(256)) * 3 + bytes(16)

texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)
times = st.datetimes().map(lambda time: f"{time.isoformat()}Z")
images = st.builds(
    ImageRecord,
    id=texts,
    source=st.from_regex(r"(https://[a-z]{1,9})?(/[A-Za-z0-9._-]{1,9}|/%4[0-9A-F])+", fullmatch=True),
    pixels=st.binary(min_size=784, max_size=784),
    label=st.none() | texts,
    subject=st.none() | texts,
    time=st.none() | times,
)


def picture(name: str, size: tuple[int, int] = (28, 28), mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, name)
    return file.getvalue()


def wire(**changes: bytes | None) -> Headers:
    """Headers of a good raw record, with some of them changed or (None) left out; _ stands for -."""
    good = encode(ImageRecord("7", "/test", PIXELS, "Dress", "mnist/train/7"), "images").headers
    known: dict[str, bytes | None] = {**dict(good), **{_name(k): v for k, v in changes.items()}}
    return tuple((name, text) for name, text in known.items() if text is not None)


def _name(keyword: str) -> str:
    return "content-type" if keyword == "content_type" else keyword


def refusal(value: bytes, headers: Headers) -> RecordError:
    with pytest.raises(RecordError) as caught:
        decode(value, headers)
    assert caught.value.reason in REASONS
    assert "\n" not in str(caught.value)
    return caught.value


def outcome(value: bytes, headers: Headers) -> str:
    try:
        decode(value, headers)
    except RecordError as error:
        return error.reason
    return "decoded"


@given(images, st.sampled_from(["raw", "png"]))
@example(ImageRecord("\U0001f457", "/a", PIXELS, "\u00a0robe d'été", time="2016-12-31T23:59:60.5+05:30"), "raw")
def test_what_is_encoded_is_decoded_again(image: ImageRecord, encoding: Encoding) -> None:
    record = encode(image, "images", encoding)
    assert decode(record.value, record.headers) == image
    assert record.key == image.id.encode()
    assert record.topic == "images"


@given(images)
def test_jpeg_keeps_everything_but_the_pixels_which_are_those_that_pillow_decodes(image: ImageRecord) -> None:
    record = encode(image, "images", "jpeg")
    with Image.open(io.BytesIO(record.value)) as opened:
        pixels = opened.tobytes()
    read = decode(record.value, record.headers)
    assert read == ImageRecord(image.id, image.source, pixels, image.label, image.subject, image.time)


def test_a_raw_record_is_a_binary_mode_cloud_event() -> None:
    record = encode(ImageRecord("7", "/test", PIXELS, "Dress", "mnist/train/7", "2026-01-31T12:00:00Z"), "images")
    assert record.value == PIXELS
    assert dict(record.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"7",
        "ce_source": b"/test",
        "ce_type": b"marketstream.image.v1",
        "ce_time": b"2026-01-31T12:00:00Z",
        "ce_subject": b"mnist/train/7",
        "ce_label": b"Dress",
        "content-type": b"application/octet-stream",
        "ce_shape": b"28,28",
    }


def test_optional_headers_may_be_missing_and_unknown_ones_are_ignored_even_twice() -> None:
    headers = (*wire(ce_label=None, ce_subject=None), ("ce_traceparent", b"\xff"), ("ce_traceparent", b""))
    assert decode(PIXELS, headers) == ImageRecord("7", "/test", PIXELS)


@pytest.mark.parametrize("media", [b"IMAGE/PNG", b"image/png; q=1", b" Image/Png ;charset=x"])
def test_a_media_type_may_be_in_any_case_and_have_parameters(media: bytes) -> None:
    assert decode(picture("PNG"), wire(content_type=media, ce_shape=None)).pixels == bytes(784)


REFUSED: list[tuple[str, str, dict[str, bytes | None]]] = [
    ("header", "ce_specversion: missing", {"ce_specversion": None}),
    ("version", "ce_specversion: expected 1.0", {"ce_specversion": b"0.3"}),
    ("header", "ce_type: missing", {"ce_type": None}),
    ("version", "marketstream.image.v1, which this program reads", {"ce_type": b"marketstream.image.v2"}),
    ("header", "ce_id: missing", {"ce_id": None}),
    ("header", "ce_id: empty", {"ce_id": b""}),
    ("header", "ce_id: expected UTF-8, but byte 2 is not", {"ce_id": b"ab\xff"}),
    ("header", "ce_source: missing", {"ce_source": None}),
    ("header", "ce_source: empty", {"ce_source": b""}),
    ("header", "ce_source: expected a URI reference", {"ce_source": b"/a b"}),
    ("header", "ce_source: expected a URI reference", {"ce_source": b"/%zz"}),
    ("header", "ce_subject: empty", {"ce_subject": b""}),
    ("header", "ce_subject: U+007F at character 1", {"ce_subject": b"a\x7f"}),
    ("header", "ce_time: expected RFC 3339", {"ce_time": b"yesterday"}),
    ("header", "ce_time: expected RFC 3339", {"ce_time": b"2026-02-30T12:00:00Z"}),
    ("header", "ce_time: expected RFC 3339", {"ce_time": b"2026-02-03T24:00:00Z"}),
    ("header", "ce_time: expected RFC 3339", {"ce_time": b"2026-02-03T12:00:00"}),
    ("header", "ce_time: expected UTF-8, but byte 0", {"ce_time": b"\x80"}),
    ("label", "ce_label: empty", {"ce_label": b""}),
    ("label", "ce_label: U+000A at character 5", {"ce_label": b"Dress\n"}),
    ("label", "ce_label: expected at most 200 bytes, got 202", {"ce_label": "é".encode() * 101}),
    ("label", "ce_label: expected UTF-8, but byte 1", {"ce_label": b"D\xc3"}),
    ("header", "content-type: missing", {"content_type": None}),
    ("content-type", "content-type: expected application/octet-stream", {"content_type": b"image/gif"}),
    ("content-type", "content-type: expected", {"content_type": b"application/cloudevents+json"}),
    ("header", "ce_shape: missing; expected 28,28", {"ce_shape": None}),
    ("shape", "ce_shape: expected 28,28, got b'32,32'", {"ce_shape": b"32,32"}),
]


@pytest.mark.parametrize(("reason", "text", "changes"), REFUSED, ids=[text for _, text, _ in REFUSED])
def test_a_bad_header_is_refused_with_its_name_and_what_was_expected(
    reason: str, text: str, changes: dict[str, bytes | None]
) -> None:
    error = refusal(PIXELS, wire(**changes))
    assert (error.reason, text in str(error)) == (reason, True), str(error)


@pytest.mark.parametrize("name", [name for name, _ in wire()])
def test_a_known_header_that_comes_twice_is_refused(name: str) -> None:
    headers = wire()
    error = refusal(PIXELS, (*headers, (name, dict(headers)[name])))
    assert error.reason == "header"
    assert str(error).startswith(f"{name}: comes more than once")


def test_an_image_that_could_not_be_read_back_is_not_encoded() -> None:
    for label in ("", "a\tb", "x" * 201, "\ud800"):
        with pytest.raises(RecordError, match=r"^ce_label: "):
            encode(ImageRecord("7", "/test", PIXELS, label), "images")
    for pixels in (b"", PIXELS + b"x"):
        with pytest.raises(RecordError, match="expected 784 bytes"):
            encode(ImageRecord("7", "/test", pixels), "images", "png")


@pytest.mark.parametrize("size", [0, 783, 785, 3072])
def test_raw_pixels_of_another_length_are_refused(size: int) -> None:
    error = refusal(bytes(size), wire())
    assert (error.reason, str(error)) == ("length", f"value: expected 784 bytes, got {size}")


@pytest.mark.parametrize("name", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("size", "mode", "reason"),
    [((32, 32), "L", "shape"), ((28, 56), "L", "shape"), ((28, 28), "RGB", "grey")],
)
def test_pictures_that_are_not_grey_28x28_are_refused(name: str, size: tuple[int, int], mode: str, reason: str) -> None:
    media = f"image/{name.lower()}".encode()
    assert refusal(picture(name, size, mode), wire(content_type=media)).reason == reason


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "I;16"])
def test_png_modes_other_than_grey_are_refused(mode: str) -> None:
    assert refusal(picture("PNG", mode=mode), wire(content_type=b"image/png")).reason == "grey"


@pytest.mark.parametrize("side", [10_000, 15_000, 65_000])
def test_a_bomb_is_refused_by_its_header_and_without_a_warning(side: int) -> None:
    header = b"IHDR" + side.to_bytes(4) + side.to_bytes(4) + bytes([8, 0, 0, 0, 0])
    png = picture("PNG")
    bomb = png[:12] + header + zlib.crc32(header).to_bytes(4) + png[33:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refusal(bomb, wire(content_type=b"image/png")).reason == "shape"


@pytest.mark.parametrize("content", ["JPEG", "GIF", "BMP"])
def test_only_the_format_that_the_content_type_names_is_read(content: str) -> None:
    error = refusal(picture(content), wire(content_type=b"image/png"))
    assert error.reason == "image"
    assert "byte 0: expected PNG, 89 50 4e 47" in str(error)


@pytest.mark.parametrize("name", ["PNG", "JPEG"])
def test_a_cut_picture_is_refused(name: str) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).bytes(784)
    Image.frombytes("L", (28, 28), noise).save(file, name)
    whole = file.getvalue()
    for length in range(0, len(whole) * 9 // 10, 7):
        assert refusal(whole[:length], wire(content_type=f"image/{name.lower()}".encode())).reason == "image"


names = st.sampled_from([name for name, _ in wire(ce_time=b"x")]) | st.text(max_size=5)
media_types = st.sampled_from([b"application/octet-stream", b"image/png", b"image/jpeg"])


@given(st.binary(max_size=900), st.lists(st.tuples(names, st.binary(max_size=9))), media_types)
def test_no_bytes_whatsoever_raise_anything_but_record_error(
    value: bytes, extra: list[tuple[str, bytes]], media: bytes
) -> None:
    good = [(name, text) for name, text in wire(content_type=media) if name not in dict(extra)]
    for headers in (tuple(extra), (*good, *extra)):
        assert outcome(value, headers) in ("decoded", *REASONS)


@given(
    st.sampled_from(["PNG", "JPEG"]),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    st.none() | st.integers(8, 2000),
)
def test_no_damage_to_a_picture_raises_anything_but_record_error(
    name: str, damage: list[tuple[int, bytes]], cut: int | None
) -> None:
    value = bytearray(picture(name))
    for at, change in damage:
        at %= len(value)
        value[at : at + len(change)] = change
    if name == "PNG":  # Pillow checks sums: make them right again, so that the damage goes deeper
        value[29:33] = zlib.crc32(value[12:29]).to_bytes(4)
    headers = wire(content_type=f"image/{name.lower()}".encode())
    assert outcome(bytes(value[:cut]), headers) in ("decoded", *REASONS)


def test_stack_gives_pixels_row_by_row() -> None:
    stacked = stack([ImageRecord(str(n), "/test", bytes([n]) + PIXELS[1:]) for n in range(3)])
    assert stacked.shape == (3, 28, 28)
    assert stacked.dtype == np.uint8
    assert stacked[:, 0, 0].tolist() == [0, 1, 2]
    assert stacked[2, 1, 5] == 33
    assert stack([]).shape == (0, 28, 28)
