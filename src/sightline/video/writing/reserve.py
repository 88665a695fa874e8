"""A name for a video that takes long: kept while it is made, and another one where it was taken all the same."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sightline.errors import SightlineError
from sightline.files import only_user
from sightline.video.writing.save import STAGING, check_free


@contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Keep other processes from making a video of this name; what a killed one left does not count.

    Raises:
        SightlineError: another process makes one, or nothing can be written there.
    """
    whole = path.absolute()
    folder = whole.parent
    while not folder.exists():
        folder = folder.parent
    # One for each target: many videos may be made in one folder at once.
    token = (
        folder / f"{STAGING}{hashlib.sha256(str(whole).encode(errors='surrogateescape')).hexdigest()[:16]}"
    )
    try:
        token.mkdir(exist_ok=True)
    except OSError as error:
        raise SightlineError(
            f"cannot write {path}: {error.strerror or error}; choose another name with -o"
        ) from error
    with only_user(token, f"another process is making {path}; wait for it, or choose another name with -o"):
        try:
            yield
        finally:
            shutil.rmtree(token, ignore_errors=True)


def free_path(path: Path, *, overwrite: bool = False, save_frames: bool = False) -> Path:
    """The path itself, or with a number behind its name where something took it: `cat-2.mp4`."""
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            check_free(candidate, overwrite and number == 1, save_frames)
        except SightlineError:
            continue
        return candidate
    raise AssertionError  # numbers do not end
