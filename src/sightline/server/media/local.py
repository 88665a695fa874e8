"""Files that requests may name: those under the allowed folders, and nothing through links, devices or races.

The path is followed folder by folder from an open allowed folder, never through a link, and what was opened is
looked at before it is read. A link that is swapped in meanwhile makes the opening fail, not lead elsewhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

from sightline.server.media.refusal import empty, no_such_file, too_many_bytes

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not waiting for the other end of a pipe, should one appear between the look and the opening.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_LONGEST = 4096  # characters, as PATH_MAX


def is_file_url(source: str) -> bool:
    return source[:5].lower() == "file:"


def is_plain_path(source: str) -> bool:
    """Whether MindIE's dialect would read this as the path of a file."""
    return source.startswith("/")


def path_of(source: str) -> str:
    """The absolute path that a file:// URL or a plain path names, with `.` and `..` taken out by their text.

    Raises:
        Refused: another machine's file, a path that is not absolute, or no path at all.
    """
    if is_file_url(source):
        rest = source[5:]
        if not rest.startswith("//"):
            raise no_such_file()
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost") or not slash:
            raise no_such_file()
        try:
            text = os.fsdecode(unquote_to_bytes(slash + path))
        except UnicodeError as error:  # half of a surrogate pair, which JSON may hold
            raise no_such_file() from error
    else:
        text = source
    if not text.startswith("/") or text.startswith("//") or "\0" in text or len(text) > _LONGEST:
        raise no_such_file()
    return os.path.normpath(text)


def read_local(source: str, roots: Sequence[Path], most: int) -> bytes:
    """The bytes of a file under one of `roots`, at most `most` of them.

    Raises:
        Refused: not there, not allowed, not readable or not a file, all in the same words; or empty; or larger.
    """
    path = path_of(source)
    try:
        descriptor = _opened(path, roots)
    except (OSError, ValueError) as error:
        raise no_such_file() from error
    with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor, not a path)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise no_such_file()
        if found.st_size > most:
            raise too_many_bytes(most)
        if not found.st_size:
            raise empty()
        try:
            data = file.read(found.st_size + 1)
        except OSError as error:
            raise no_such_file() from error
    if len(data) != found.st_size:  # written to at this moment
        raise no_such_file()
    return data


def _opened(path: str, roots: Sequence[Path]) -> int:
    """A descriptor of the file. Raises OSError where there is none that may be opened."""
    real_roots = [os.path.realpath(root) for root in roots]
    # By its text first, so that nothing outside is even looked for.
    if not any(_is_under(path, str(root)) for root in (*roots, *real_roots)):
        raise PermissionError(path)
    real = os.path.realpath(path)
    for root in real_roots:
        if _is_under(real, root):
            return _walk(root, Path(real).relative_to(root).parts)
    raise PermissionError(path)


def _is_under(path: str, root: str) -> bool:
    return path.startswith(root.rstrip(os.sep) + os.sep)


def _walk(root: str, names: Sequence[str]) -> int:
    folder = os.open(root, _FOLDER)
    try:
        for name in names[:-1]:
            inner = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        # A device may act on being opened, so it is looked at before; what is opened is looked at again.
        if not stat.S_ISREG(os.stat(names[-1], dir_fd=folder, follow_symlinks=False).st_mode):
            raise PermissionError(names[-1])
        return os.open(names[-1], _FILE, dir_fd=folder)
    finally:
        os.close(folder)
