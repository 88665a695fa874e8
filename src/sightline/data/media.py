"""Getting at the bytes of a medium: paths, file:// and data: URLs and bytes, under a budget.

Every medium of the house is opened here, whether it comes from a data set, a prompt or a request, so what a
medium may cost is bounded in one place, before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, unquote_to_bytes

from sightline.data.budget import DEFAULT as DEFAULT
from sightline.data.budget import Budget as Budget
from sightline.errors import SightlineError

if TYPE_CHECKING:
    from sightline.data.conversation import Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".wmv", ".mov", ".mkv", ".webm", ".m4v")
IMAGE_FORMATS = "jpg, png, webp, bmp, gif, tiff"
VIDEO_FORMATS = "mp4, avi, wmv, mov, mkv, webm"
# What `sniff` calls those that are read.
IMAGE_KINDS = frozenset({"jpg", "png", "webp", "bmp", "gif", "tiff"})
VIDEO_KINDS = frozenset({"mp4", "avi", "mkv", "wmv"})


class MediaError(SightlineError):
    """A picture or video that cannot be used.

    `kind` is what `data check` counts it under: missing, unreadable, truncated, unsupported or too-large. `medium` is
    the place of one among several, counted from 0: ("image", 1) is the second image of a prompt.
    """

    def __init__(self, text: str, kind: str = "unreadable", *, medium: tuple[str, int] | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.medium = medium


class Named(bytes):
    """The bytes of a medium that were read already, under the name that messages give it."""

    name: str

    @classmethod
    def read(cls, source: str, budget: Budget = DEFAULT) -> Named:
        """All bytes of a path, a file:// or a data: URL.

        Raises:
            MediaError: as `opened`.
        """
        with opened(source, budget) as file:
            data = cls(file.read())
        data.name = describe(source)
        return data


def describe(source: Source) -> str:
    """`source` as an error message names it: short, and never with the medium's data in it."""
    if isinstance(source, Named):
        return source.name
    if isinstance(source, str):
        if source[:5].lower() == "data:":
            kind = source[5:40].split(",")[0].split(";")[0].encode("ascii", "replace").decode()
            return f"the data: URL ({kind or 'text/plain'})"
        return source if len(source) <= 300 else f"{source[:120]}..."
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the medium of {len(source)} bytes"
    return "the open picture"


def is_web_address(source: object) -> bool:
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def file_url_to_path(url: str) -> str:
    """The path a file:// URL names, percent-decoded; the host must be empty or localhost.

    Raises:
        MediaError: the URL names another machine or no absolute path.
    """
    host, slash, path = url[len("file://") :].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise MediaError(
            f"{describe(url)} is not a local file URL; write file:///absolute/path", "unsupported"
        )
    return unquote("/" + path)


def local_path(source: Source) -> Path | None:
    """The file that `source` names, or None where it holds the data itself.

    Raises:
        MediaError: a web address or another kind of URL.
    """
    if not isinstance(source, str) or source[:5].lower() == "data:":
        return None
    if is_web_address(source):
        raise MediaError(
            f"{describe(source)} is a web address, which is not fetched here; "
            "download the file and give its path",
            "unsupported",
        )
    if source[:7].lower() == "file://":
        return Path(file_url_to_path(source))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):
        raise MediaError(
            f"{describe(source)} is not a path, a file:// or a data: URL; give one of these", "unsupported"
        )
    return Path(source)


def decode_data_url(url: str, budget: Budget = DEFAULT) -> bytes:
    """The bytes inside a data: URL (RFC 2397), base64 or percent-encoded.

    Raises:
        MediaError: no comma, broken base64, or more than `budget.max_bytes`.
    """
    head, comma, body = url.partition(",")
    if not comma:
        raise MediaError(f"{describe(url)} has no comma, so no data follows; write data:image/png;base64,...")
    base64_encoded = head.lower().endswith(";base64")
    if (len(body) * 3 // 4 if base64_encoded else len(body) // 3) > budget.max_bytes:
        raise _too_many_bytes(url, len(body) * 3 // 4, budget)
    if not base64_encoded and len(body) > _LONGEST_PERCENT:
        raise MediaError(f"{describe(url)} is long for percent-encoding; encode it in base64")
    try:
        if not base64_encoded:
            return unquote_to_bytes(body)
        return base64.b64decode(_base64_letters(body), validate=True)
    except (binascii.Error, ValueError) as error:
        form = "base64" if base64_encoded else "Unicode"
        raise MediaError(f"{describe(url)} is not valid {form}; encode the file's bytes again") from error


# Taking percent signs apart needs some 60 times the memory of a text that is full of them.
_LONGEST_PERCENT = 2**20  # characters
# What writers of URLs do to base64: both alphabets, blanks and line ends, and these as percent signs.
_REWRITTEN = (
    *(("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "=")),
    *(("%0A", ""), ("%0a", ""), ("%0D", ""), ("%0d", ""), ("%20", ""), ("%09", "")),
    *((" ", ""), ("\n", ""), ("\r", ""), ("\t", ""), ("-", "+"), ("_", "/")),
)


def _base64_letters(body: str) -> str:
    """Standard base64, padded. Texts of any content take a few times their length, and no more."""
    for written, meant in _REWRITTEN:
        if written in body:
            body = body.replace(written, meant)
    body = body.rstrip("=")
    return body + "=" * (-len(body) % 4)


def to_data_url(data: bytes, mime: str | None = None) -> str:
    """`data` as a data: URL; the type is read off the first bytes unless given."""
    mime = mime or _MIMES.get(sniff(data[:64]) or "", "application/octet-stream")
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


@contextmanager
def opened(source: str | bytes, budget: Budget = DEFAULT) -> Iterator[BinaryIO]:
    """Open the bytes of `source` for reading and seeking; sizes are checked before anything is read.

    Raises:
        MediaError: missing, not a file, empty, over `budget.max_bytes`, not readable, or a broken URL; or its
            time is over.
    """
    check_time(source, budget)
    path = local_path(source)
    if path is None:
        data = decode_data_url(source, budget) if isinstance(source, str) else source
        _check_bytes(source, len(data), budget)
        yield io.BytesIO(data)
        return
    if not budget.files:
        raise MediaError("a file of this machine cannot be opened here; give its bytes", "unsupported")
    try:
        if not path.exists():
            raise MediaError(
                f"there is no file {describe(source)}; "
                "correct the path, or give --media-root for relative ones",
                "missing",
            )
        if not path.is_file():
            raise MediaError(f"{describe(source)} is not a file; give the path of a picture or video")
        _check_bytes(source, path.stat().st_size, budget)
        file = path.open("rb")
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{describe(source)} cannot be opened: {cause.lower()}") from error
    with file:
        yield file


def check_time(source: Source, budget: Budget) -> None:
    """Raises MediaError where the prompt's media have taken longer than they may."""
    if budget.is_over:
        raise MediaError(
            f"{describe(source)} takes the prompt's media over the {budget.max_decode_seconds:g} s allowed to decode "
            "them; give fewer, shorter or smaller ones",
            "too-large",
        )


def _check_bytes(source: Source, size: int, budget: Budget) -> None:
    if size == 0:
        raise MediaError(f"{describe(source)} is empty (0 bytes); put the real file there", "truncated")
    if size > budget.max_bytes:
        raise _too_many_bytes(source, size, budget)


def _too_many_bytes(source: Source, size: int, budget: Budget) -> MediaError:
    return MediaError(
        f"{describe(source)} has {size:,} bytes, more than the {budget.max_bytes:,} allowed; "
        "use a smaller file",
        "too-large",
    )


# What the first bytes of a file say it is: (offset, bytes, name).
_MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (8, b"WEBP", "webp"),
    (0, b"GIF8", "gif"),
    (0, b"II*\x00", "tiff"),
    (0, b"MM\x00*", "tiff"),
    (0, b"II+\x00", "tiff"),
    (0, b"MM\x00+", "tiff"),
    (8, b"AVI ", "avi"),
    (0, b"\x1aE\xdf\xa3", "mkv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "wmv"),
    (4, b"ftypavif", "avif"),
    (4, b"ftyphei", "heic"),
    (4, b"ftyphev", "heic"),
    (4, b"ftypmif1", "heic"),
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"wide", "mp4"),
    (4, b"free", "mp4"),
    (4, b"skip", "mp4"),
    (4, b"pnot", "mp4"),
    (0, b"%PDF", "pdf"),
    (0, b"8BPS", "psd"),
    (0, b"\xff\x0a", "jxl"),
    (0, b"\x00\x00\x00\x0cJXL ", "jxl"),
    (0, b"\x00\x00\x01\x00", "ico"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"version https://git-lfs", "git-lfs pointer (run `git lfs pull`)"),
    (0, b"BM", "bmp"),
)
_MIMES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "tiff": "image/tiff",
    "bmp": "image/bmp",
    "mp4": "video/mp4",
    "avi": "video/x-msvideo",
    "mkv": "video/x-matroska",
    "wmv": "video/x-ms-wmv",
}


def sniff(head: bytes) -> str | None:
    """What the first 64 bytes of a file say it is (`jpg`, `mp4`, `heic`, ...), or None."""
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    if start.startswith((b"<svg", b"<?xml")):
        return "svg"
    return "web page (html)" if start.startswith((b"<!doctype html", b"<html")) else None


def suffix_of(source: Source) -> str:
    """The lower-case suffix of the path in `source`, or an empty string."""
    return Path(source).suffix.lower() if isinstance(source, str) and source[:5].lower() != "data:" else ""
