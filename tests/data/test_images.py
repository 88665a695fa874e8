"""Pictures of every mode and orientation, and every way in which a file can be wrong."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageFile, ImageOps

from sightline.data.images import image_size, open_image, verify_image
from sightline.data.media import Budget, MediaError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def gradient(width: int = 40, height: int = 24) -> Pillow.Image:
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) % 256], -1)
    return Pillow.fromarray(values.astype(np.uint8))


def encoded(picture: Pillow.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def pixel(source: Any, at: tuple[int, int] = (0, 0)) -> Any:
    return open_image(source).getpixel(at)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_opens_from_path_and_bytes(tmp_path: Path, format: str) -> None:
    data = encoded(gradient(), format)
    path = tmp_path / "picture.with.any.suffix"
    path.write_bytes(data)
    for source in (str(path), data, f"file://{path}"):
        assert image_size(source) == (40, 24)
        assert verify_image(source, decode=True) == (40, 24)
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert opened.size == (40, 24)
        reference = Pillow.open(io.BytesIO(data)).convert("RGB")
        assert opened.tobytes() == reference.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(format: str, orientation: int) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(gradient(), format, exif=exif, **options)
    opened = open_image(data)
    assert opened.size == image_size(data) == ((24, 40) if orientation >= 5 else (40, 24))
    reference = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))).convert("RGB")
    assert opened.tobytes() == reference.tobytes()
    already_open = Pillow.open(io.BytesIO(data))
    assert image_size(already_open) == opened.size
    assert open_image(already_open).tobytes() == opened.tobytes()


def test_png_exif_behind_the_pixels_counts_in_the_header_too() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    chunk = struct.pack(">I4s", len(body), b"eXIf") + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = encoded(gradient(), "PNG")
    data = data[:-12] + chunk + data[-12:]
    assert image_size(data) == open_image(data).size == (24, 40)


def test_broken_exif_is_ignored() -> None:
    data = encoded(gradient(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert image_size(data) == open_image(data).size == (40, 24)


@pytest.mark.parametrize(
    ("format", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")]
)
def test_transparency_on_white(format: str, mode: str) -> None:
    picture = Pillow.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    data = encoded(
        picture.convert(mode), format, **({"lossless": True, "exact": True} if format == "WEBP" else {})
    )
    assert pixel(data, (0, 0)) == (255, 255, 255)
    assert pixel(data, (1, 0)) == (0, 0, 0)
    assert pixel(data, (2, 0)) == (127, 127, 127)


def test_palette_with_and_without_transparency() -> None:
    picture = Pillow.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    assert pixel(encoded(picture, "PNG"), (1, 0)) == (0, 0, 255)
    data = encoded(picture, "PNG", transparency=0)
    assert pixel(data, (0, 0)) == (255, 255, 255)
    assert pixel(data, (1, 0)) == (0, 0, 255)
    gif = encoded(picture, "GIF", transparency=0)
    assert pixel(gif, (0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "key", "other"), [("RGB", (9, 9, 9), (8, 8, 8)), ("L", 9, 8)])
def test_colour_key_transparency(mode: str, key: Any, other: Any) -> None:
    picture = Pillow.new(mode, (2, 1), key)
    picture.putpixel((1, 0), other)
    data = encoded(picture, "PNG", transparency=key)
    assert pixel(data, (0, 0)) == (255, 255, 255)
    assert pixel(data, (1, 0)) == (8, 8, 8)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(format: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    data = encoded(Pillow.fromarray(values), format)
    assert [pixel(data, (x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_dark_16_bit_grey_stays_dark() -> None:
    """A clipping conversion would show 300 as white."""
    assert pixel(encoded(Pillow.fromarray(np.full((2, 2), 300, np.uint16)), "PNG")) == (1, 1, 1)


def test_16_bit_grey_with_a_transparent_value() -> None:
    data = encoded(Pillow.fromarray(np.array([[300, 0]], np.uint16)), "PNG")
    chunk = struct.pack(">I4sH", 2, b"tRNS", 300) + struct.pack(
        ">I", zlib.crc32(b"tRNS" + struct.pack(">H", 300))
    )
    at = data.index(b"IDAT") - 4
    assert pixel(data[:at] + chunk + data[at:]) == (255, 255, 255)


def test_float_tiff() -> None:
    data = encoded(Pillow.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF")
    assert [pixel(data, (x, 0))[0] for x in range(3)] == [0, 128, 255]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format: str) -> None:
    picture = Pillow.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = pixel(encoded(picture, format, **({"quality": 95} if format == "JPEG" else {})))
    assert red > 240
    assert max(green, blue) < 15


def test_one_bit_and_first_frame_of_gif() -> None:
    assert pixel(encoded(Pillow.new("1", (3, 3), 1), "PNG")) == (255, 255, 255)
    frames = [Pillow.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(data) == (255, 0, 0)


@pytest.mark.parametrize(
    "mode",
    [
        "RGB",
        "RGBA",
        "LA",
        "La",
        "RGBa",
        "PA",
        "P",
        "L",
        "1",
        "I",
        "F",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "I;16",
        "RGBX",
    ],
)
def test_every_mode_of_open_pictures(mode: str) -> None:
    opened = open_image(Pillow.new(mode, (5, 3)))
    assert (opened.mode, opened.size) == ("RGB", (5, 3))


def test_open_picture_is_not_changed_or_shared() -> None:
    picture = Pillow.new("RGB", (2, 2))
    opened = open_image(picture)
    opened.putpixel((0, 0), (9, 9, 9))
    assert picture.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_files_are_found(format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Pillow.fromarray(noise), format)
    cut = whole[: int(len(whole) * share)]
    with pytest.raises(MediaError) as caught:
        verify_image(cut)
    assert caught.value.kind == "truncated"
    assert "truncated or damaged" in str(caught.value) or "damaged header" in str(caught.value)
    assert verify_image(whole) == (64, 64)


def test_truncated_jpeg_with_a_thumbnail_inside() -> None:
    """The thumbnail's end marker must not be taken for the picture's."""
    noise = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    thumbnail = encoded(noise.resize((16, 16)), "JPEG")
    whole = encoded(noise, "JPEG")
    segment = b"Exif\x00\x00" + thumbnail
    whole = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + whole[2:]
    assert verify_image(whole) == (64, 64)
    with pytest.raises(MediaError):
        verify_image(whole[:-200])


def test_jpeg_with_data_behind_or_without_end_marker_is_fine() -> None:
    whole = encoded(gradient(), "JPEG")
    assert verify_image(whole + b"appended by a camera") == (40, 24)
    assert verify_image(whole, decode=True) == (40, 24)


def test_truncation_is_found_even_if_pillow_was_told_to_look_away(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # importing Sightline does not set it
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Pillow.fromarray(noise), "PNG")
    for look in (verify_image, open_image):
        with pytest.raises(MediaError, match="truncated"):
            look(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("data", "words", "kind"),
    [
        (b"", "is empty", "truncated"),
        (b"hello there, no picture", "not a picture in a supported format", "unsupported"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(40), "is a heic, which is not supported", "unsupported"),
        (b"\x00\x00\x00\x18ftypavif" + bytes(40), "is a avif", "unsupported"),
        (b"%PDF-1.7\n" + bytes(40), "is a pdf", "unsupported"),
        (b"<svg xmlns=''></svg>", "is a svg", "unsupported"),
        (b"<!DOCTYPE html><html>", "web page", "unsupported"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull", "unsupported"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(40), "is a video, not a picture", "unsupported"),
        (b"\x89PNG\r\n\x1a\n" + bytes(10), "damaged header", "truncated"),
        (b"\xff\xd8\xff\xe0" + bytes(10), "damaged", "truncated"),
    ],
)
def test_what_is_not_a_picture_says_what_it_is(data: bytes, words: str, kind: str) -> None:
    with pytest.raises(MediaError) as caught:
        open_image(data)
    assert words in str(caught.value)
    assert caught.value.kind == kind


def test_missing_and_folders(tmp_path: Path) -> None:
    for source, words, kind in (
        (str(tmp_path / "none.png"), "there is no file", "missing"),
        (str(tmp_path), "is not a file", "unreadable"),
        ("a\x00b.png", "there is no file", "missing"),
        ("https://x/y.png", "web address", "unsupported"),
    ):
        with pytest.raises(MediaError) as caught:
            image_size(source)
        assert words in str(caught.value)
        assert caught.value.kind == kind


def _png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_header(recwarn: pytest.WarningsRecorder) -> None:
    for size in ((60000, 60000), (10000, 9000)):
        with pytest.raises(MediaError) as caught:
            image_size(_png_header(*size))
        assert caught.value.kind == "too-large"
    with pytest.raises(MediaError, match="1,200 allowed"):
        open_image(encoded(gradient(50, 50), "PNG"), Budget(max_pixels=1200))
    with pytest.raises(MediaError, match="bytes, more than the 100 allowed"):
        open_image(encoded(gradient(), "BMP"), Budget(max_bytes=100))
    with pytest.raises(MediaError, match="allowed"):
        open_image(Pillow.new("RGB", (50, 50)), Budget(max_pixels=1200))


def test_header_that_lies_about_its_pixels() -> None:
    data = _png_header(100, 100)
    assert image_size(data) == (100, 100)
    with pytest.raises(MediaError, match="truncated or damaged"):
        open_image(data)
    with pytest.raises(MediaError, match="truncated or damaged"):
        verify_image(data, decode=True)


def test_many_threads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(gradient(), "JPEG"))
    expected = open_image(str(path)).tobytes()
    results: list[bool] = []

    def work() -> None:
        results.extend(open_image(str(path)).tobytes() == expected for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 160


_WHOLE = {format: encoded(gradient(), format) for format in FORMATS}


@given(st.sampled_from(FORMATS), st.data())
@settings(max_examples=400, deadline=None)
def test_damaged_bytes_raise_only_media_errors(format: str, data: st.DataObject) -> None:
    bytes_ = bytearray(_WHOLE[format])
    for _ in range(data.draw(st.integers(1, 6))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(bytes_)), st.integers(1, len(bytes_))))
    try:
        opened = open_image(bytes(bytes_[:cut]), Budget(max_pixels=10**6))
    except MediaError:
        pass
    else:
        assert opened.size == image_size(bytes(bytes_[:cut]), Budget(max_pixels=10**6))
    with suppress(MediaError):
        verify_image(bytes(bytes_[:cut]), Budget(max_pixels=10**6))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_raise_only_media_errors(data: bytes) -> None:
    for head in (
        b"",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"BM",
        b"II*\x00",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
    ):
        with pytest.raises(MediaError):
            verify_image(head + data)


def test_later_pictures_of_a_file_may_be_cut_off() -> None:
    """Only the first picture is used, so what is behind it does not make the file faulty."""
    noise = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for format in ("MPO", "PNG", "TIFF"):
        whole = encoded(noise, format, save_all=True, append_images=[noise.rotate(90)])
        assert verify_image(whole[: int(len(whole) * 0.9)]) == (64, 64)
        with pytest.raises(MediaError):
            verify_image(whole[: int(len(whole) * 0.3)])


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 1}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_variants_are_complete(format: str, options: dict[str, Any]) -> None:
    assert verify_image(encoded(gradient(), format, **options), decode=True) == (40, 24)


def test_an_open_picture_is_used_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decodes it and reads its Exif on first use; a second thread would see it half done."""
    import time

    data = io.BytesIO()
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (30, 20), "red").save(data, "JPEG", exif=exif)
    picture = Pillow.open(data)
    load, inside, together = picture.load, [], []

    def slow_load() -> object:
        inside.append(1)
        together.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return load()

    monkeypatch.setattr(picture, "load", slow_load)
    sizes: list[tuple[int, int]] = []
    threads = [threading.Thread(target=lambda: sizes.append(open_image(picture).size)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sizes == [(20, 30)] * 6
    assert set(together) == {1}


def test_the_limit_is_ours_where_the_reader_has_its_own() -> None:
    buffer = io.BytesIO()
    Pillow.new("1", (20_000, 20_000)).save(buffer, "PNG")
    with pytest.raises(MediaError, match="more pixels than the 1,000 allowed; scale it down") as caught:
        open_image(buffer.getvalue(), Budget(max_pixels=1000))
    assert "Pillow" not in str(caught.value)
