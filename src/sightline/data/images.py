"""Pictures: size from the header, pixels as RGB upright on white.

Nothing global of Pillow is set or relied on (where a program has set LOAD_TRUNCATED_IMAGES, the file's own
structure is looked at), and every call opens its own handle or waits for the open picture that it was given,
so all of this may run in many threads.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from PIL import ExifTags, ImageFile, UnidentifiedImageError
from PIL import Image as Pillow

from sightline.data.claims import check_claims, check_exif
from sightline.data.media import (
    DEFAULT,
    IMAGE_FORMATS,
    VIDEO_FORMATS,
    VIDEO_KINDS,
    Budget,
    MediaError,
    describe,
    opened,
    sniff,
)
from sightline.data.structure import is_complete, png_chunks

if TYPE_CHECKING:
    from sightline.data.conversation import Source

# By content, whatever the suffix says. JPEG includes MPO, that of phones with a second picture behind the first.
# One reader for each kind: what was looked at as one kind must not be read as another.
_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tiff": "TIFF"}

# Budget.max_pixels is our own check, with an error instead of a warning on stderr.
warnings.filterwarnings("ignore", category=Pillow.DecompressionBombWarning)
# Broken Exif blocks, which say nothing about the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def image_size(source: Source, budget: Budget = DEFAULT) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, from its header; nothing is decoded.

    Raises:
        MediaError: missing, not a picture we read, a broken header, or over the budget.
    """
    with _header(source, budget) as (picture, orientation):
        return _upright(picture.size, orientation)


def open_image(source: Source, budget: Budget = DEFAULT) -> Pillow.Image:
    """The picture as RGB, turned upright by its Exif orientation, transparency on white.

    Palettes, CMYK, 1 bit, grey with alpha are converted; 16-bit grey is scaled to 8 bits; of an animation the
    first frame is taken.

    Raises:
        MediaError: as `image_size`, or truncated or damaged pixels.
    """
    with _header(source, budget, pixels=True) as (picture, orientation), _readable(source):
        # Another library may have told Pillow to fill truncated pictures up with grey.
        if ImageFile.LOAD_TRUNCATED_IMAGES and not _ends_well(source, budget):
            raise MediaError(f"{describe(source)} is truncated or damaged; replace the file", "truncated")
        picture.load()
        return _turned(_on_white(picture), orientation)


def verify_image(source: Source, budget: Budget = DEFAULT, *, decode: bool = False) -> tuple[int, int]:
    """As `image_size`, and find out whether the file was cut off.

    The end of the file is looked at; only a file whose end looks wrong is decoded, to be sure, or every file
    with `decode`.

    Raises:
        MediaError: as `open_image`.
    """
    size = image_size(source, budget)
    if decode or not _ends_well(source, budget):
        open_image(source, budget)
    return size


def _ends_well(source: Source, budget: Budget) -> bool:
    if isinstance(source, Pillow.Image):
        return True
    with opened(source, budget) as file:
        format = sniff(file.read(64))
        size = file.seek(0, 2)
        if format == "tiff":
            with _header(source, budget) as (picture, _):
                return _tiff_strips_end(picture) <= size
        return format is None or is_complete(file, format, size)


def _tiff_strips_end(picture: Pillow.Image) -> int:
    tags = getattr(picture, "tag_v2", {})
    ends = [0]
    for offsets, lengths in ((273, 279), (324, 325)):
        ends += [sum(pair) for pair in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)]
    return int(max(ends))


@contextmanager
def _header(source: Source, budget: Budget, *, pixels: bool = False) -> Iterator[tuple[Pillow.Image, int]]:
    """Open without decoding; give the picture and its Exif orientation (1 to 8)."""
    if isinstance(source, Pillow.Image):
        _check_pixels(source, source.size, budget)
        with _lock_of(source):
            with _readable(source):
                orientation = _orientation(source)
            yield source, orientation
        return
    with opened(source, budget) as file:
        kind = sniff(file.read(64))
        if kind not in _FORMATS:
            raise _not_identified(source, kind)
        check_claims(source, file, kind, budget)
        if pixels:
            check_claims(source, file, kind, budget, pixels=True)
        with _readable(source, kind, budget):
            picture = Pillow.open(file, formats=[_FORMATS[kind]])
            _check_pixels(source, picture.size, budget)
            _check_tiles(source, picture, budget)
            if picture.format == "PNG":
                _find_late_exif(picture, file)
            check_exif(source, picture.info.get("exif"))
            orientation = _orientation(picture)
        yield picture, orientation


def _lock_of(picture: Pillow.Image) -> threading.RLock:
    """One thread at a time: an open picture decodes itself and reads its Exif when first asked, in steps.

    Pictures cannot be keys, so many share a lock, which costs a wait now and then.
    """
    return _OPEN_LOCKS[id(picture) // 64 % len(_OPEN_LOCKS)]


_OPEN_LOCKS = [threading.RLock() for _ in range(64)]


@contextmanager
def _readable(source: Source, kind: str | None = None, budget: Budget = DEFAULT) -> Iterator[None]:
    """Turn whatever a parser throws at damaged bytes into one MediaError."""
    try:
        yield
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise _not_identified(source, kind) from error
    except Pillow.DecompressionBombError as error:
        most = min(budget.max_pixels, 2 * (Pillow.MAX_IMAGE_PIXELS or budget.max_pixels))
        raise MediaError(
            f"{describe(source)} has more pixels than the {most:,} allowed; scale it down", "too-large"
        ) from error
    except MemoryError as error:
        raise MediaError(
            f"{describe(source)} needs more memory than there is; scale it down", "too-large"
        ) from error
    # Pillow's readers raise OSError, ValueError, SyntaxError, struct.error, IndexError and more on bad bytes.
    except Exception as error:
        raise MediaError(
            f"{describe(source)} is truncated or damaged; replace the file", "truncated"
        ) from error


def _not_identified(source: Source, found: str | None) -> MediaError:
    if found in _FORMATS:
        what = (
            "a damaged header or deep colours (save it as an 8-bit png)"
            if found == "tiff"
            else "a damaged header"
        )
        return MediaError(f"{describe(source)} is a {found} with {what}; replace the file", "truncated")
    if found in VIDEO_KINDS:
        return MediaError(
            f"{describe(source)} is a video, not a picture; list it under videos with a <video> tag",
            "unsupported",
        )
    if found:
        return MediaError(
            f"{describe(source)} is a {found}, which is not supported; convert it to one of {IMAGE_FORMATS}",
            "unsupported",
        )
    return MediaError(
        f"{describe(source)} is not a picture in a supported format; use {IMAGE_FORMATS} "
        f"(or {VIDEO_FORMATS} as a video)",
        "unsupported",
    )


def _check_pixels(source: Source, size: tuple[int, int], budget: Budget) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(
            f"{describe(source)} is {width}x{height} pixels, so there is nothing to see; replace it"
        )
    if width * height > budget.max_pixels:
        raise MediaError(
            f"{describe(source)} is {width}x{height} pixels, more than the "
            f"{budget.max_pixels:,} allowed; scale it down",
            "too-large",
        )


def _check_tiles(source: Source, picture: Pillow.Image, budget: Budget) -> None:
    """A tile of a TIFF is decoded whole, however little of it the picture shows."""
    tags = getattr(picture, "tag_v2", {})
    width, height = tags.get(322, 1), tags.get(323, 1)
    if isinstance(width, int) and isinstance(height, int) and width * height > budget.max_pixels:
        raise MediaError(
            f"{describe(source)} has tiles of {width}x{height} pixels, more than the "
            f"{budget.max_pixels:,} allowed; save it with smaller ones",
            "too-large",
        )


def _find_late_exif(picture: Pillow.Image, file: BinaryIO) -> None:
    """PNG allows the Exif chunk behind the pixels, where Pillow sees it only after decoding."""
    if "exif" in picture.info:
        return
    position = file.tell()
    size = file.seek(0, 2)
    for name, offset, length in png_chunks(file, size):
        if name == b"eXIf":
            file.seek(offset)
            picture.info["exif"] = b"Exif\x00\x00" + file.read(min(length, 2**20))
            break
    file.seek(position)


def _orientation(picture: Pillow.Image) -> int:
    if picture.format == "TIFF":
        return 1  # Pillow turns TIFF by itself, and states the turned size
    try:
        # The base class's: PNG's own would decode the picture first.
        value = Pillow.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken Exif block says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    width, height = size
    return (height, width) if orientation >= 5 else (width, height)


_TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


def _turned(picture: Pillow.Image, orientation: int) -> Pillow.Image:
    turn = _TURNS.get(orientation)
    return picture.transpose(turn) if turn is not None else picture


def _on_white(picture: Pillow.Image) -> Pillow.Image:
    """A new RGB picture, at the size of `picture`."""
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture.copy()
    if mode.startswith("I") or mode == "F":
        return _grey8(picture).convert("RGB")
    if mode == "La":
        picture = picture.convert("LA")
    if mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Pillow.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=picture.getchannel("A"))
        return white
    return picture.convert("RGB")


def _grey8(picture: Pillow.Image) -> Pillow.Image:
    """Deep grey as 8 bits. Files do not say where white is: 16 bits unless the values show otherwise."""
    import numpy as np

    values = np.nan_to_num(np.asarray(picture).astype(np.float64), posinf=0.0, neginf=0.0)
    transparent = picture.info.get("transparency")
    keyed = values == transparent if isinstance(transparent, int) else None
    top = float(values.max())
    if picture.mode == "F":
        white = 1.0 if top <= 1.0 else 255.0 if top <= 255.0 else 65535.0 if top <= 65535.0 else top
    else:
        white = 65535.0 if top <= 65535.0 else float(2**31 - 1)
    grey = np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8)
    if keyed is not None:
        grey[keyed] = 255
    return Pillow.fromarray(grey)
