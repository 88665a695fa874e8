"""A video, its record and its pictures, written beside the target and renamed: all of them or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import SightlineError
from sightline.files import flush, only_user
from sightline.video.result import Video
from sightline.video.writing.encode import encode, to_bytes
from sightline.video.writing.formats import PICTURES, check_suffix, encoder_for
from sightline.video.writing.record import Record, digest_of, file_digest, now, versions

if TYPE_CHECKING:
    import numpy as np

STAGING = ".sightline-video."  # how names begin of what is there only while a video is made


def record_path(path: Path) -> Path:
    """The JSON beside a video: `cat.json` of `cat.mp4`."""
    return path.with_suffix(".json")


def frames_folder(path: Path) -> Path:
    """The folder of a video's pictures: `cat.frames` of `cat.mp4`."""
    return path.with_suffix(".frames")


def check_target(
    path: Path, *, overwrite: bool = False, save_frames: bool = False, quality: int | None = None
) -> None:
    """Refuse a target that could not be written, before the long part.

    Raises:
        UsageError: a suffix of no video, or a quality that its encoder does not have.
        SightlineError: something is there already, the folder cannot be written to, or there is no encoder.
    """
    check_suffix(path)
    if path.suffix.lower() not in PICTURES:
        encoder_for(path).settings(quality)
    try:
        check_free(path, overwrite, save_frames)
    except OSError as error:  # a name that is too long, a folder that cannot be looked into
        raise SightlineError(
            f"cannot write {path}: {error.strerror or error}; choose another name with -o"
        ) from error
    _check_writable(path)


def check_free(path: Path, overwrite: bool, save_frames: bool) -> None:
    """Raises SightlineError where a video, its record or its pictures would replace something."""
    pictures = frames_folder(path)
    if path.is_dir() or (save_frames and pictures.is_file()):
        raise SightlineError(
            f"{path if path.is_dir() else pictures} is in the way; choose another name with -o"
        )
    for taken in (path, pictures) if save_frames else (path,):
        if taken.exists() and not overwrite:
            raise SightlineError(f"{taken} already exists; choose another name with -o or give --overwrite")
    record = record_path(path)
    if record.exists():
        try:
            whose = Record.read(record).file
        except SightlineError as error:
            raise SightlineError(
                f"{record} is there and no record of a video; choose another name with -o"
            ) from error
        if whose != path.name and (path.parent / whose).is_file():
            raise SightlineError(f"{record} belongs to {whose}; choose another name with -o")


def save(
    video: Video,
    path: Path,
    record: Record,
    *,
    quality: int | None = None,
    save_frames: bool = False,
    overwrite: bool = False,
) -> Record:
    """Write a video and what belongs to it.

    Args:
        record: of this video; what is only known here (names, digests, seconds of writing) is filled in.
        quality: of the encoder (crf).
        save_frames: the frames as PNG files too, without loss.
        overwrite: replace what is there.

    Returns:
        The record as it was written.

    Raises:
        SightlineError: something is there already, a frame is broken, the folder cannot be written to or is full.
    """
    check_suffix(path, len(video.frames))
    check_target(path, overwrite=overwrite, save_frames=save_frames, quality=quality)
    begun = time.perf_counter()
    pictures = to_bytes(video.frames)
    try:
        with _staging(path) as folder:
            staged = folder / path.name
            encoding = encode(pictures, staged, video.request.fps, quality)
            if save_frames:
                _save_pictures(pictures, frames_folder(staged))
            flush(staged)
            record = replace(
                record,
                file=path.name,
                file_sha256=file_digest(staged),
                frames_sha256=digest_of(pictures),
                encoding=encoding,
                versions=versions(),
                created=now(),
                seconds={**record.seconds, "write": time.perf_counter() - begun},
            )
            _write_record(record, record_path(staged))
            _put(folder, path, save_frames)
    except OSError as error:
        raise SightlineError(f"cannot write {path}: {error.strerror or error}") from error
    return record


def save_alone(video: Video, path: Path, *, quality: int | None = None, overwrite: bool = False) -> None:
    """Write a video without a record; one of the video that is replaced goes too.

    Raises:
        SightlineError: as `save`.
    """
    check_suffix(path, len(video.frames))
    check_target(path, overwrite=overwrite, quality=quality)
    try:
        with _staging(path) as folder:
            staged = folder / path.name
            encode(to_bytes(video.frames), staged, video.request.fps, quality)
            flush(staged)
            record_path(path).unlink(missing_ok=True)
            staged.replace(path)
            flush(path.parent)
    except OSError as error:
        raise SightlineError(f"cannot write {path}: {error.strerror or error}") from error


def made(path: Path, *, save_frames: bool = False) -> Record | None:
    """The record of a video that is there whole, or None.

    Raises:
        SightlineError: there is a video without its record, or a record's file that is none: nothing of ours; or it
            cannot be read.
    """
    beside = record_path(path)
    try:
        if not beside.exists():
            if path.exists():
                raise SightlineError(
                    f"{path} is there without {beside.name}, so it is not known how it was made"
                )
            return None
        try:
            record = Record.read(beside)
        except SightlineError as error:
            raise SightlineError(
                f"{error}; remove it and {path.name} to make the video again, or choose another folder with -o"
            ) from error
        if not path.is_file() or file_digest(path) != record.file_sha256:
            return None
        if save_frames and not _has_pictures(frames_folder(path), record):
            return None
    except OSError as error:
        raise SightlineError(f"cannot read {path}: {error.strerror or error}") from error
    return record


def _has_pictures(folder: Path, record: Record) -> bool:
    """Whether a folder holds a video's pictures, and not those of the one that was there before it."""
    import numpy as np
    from PIL import Image

    files = sorted(folder.glob("*.png"))
    if len(files) != record.request.frames:
        return False
    try:
        pictures = np.stack([np.asarray(Image.open(file)) for file in files])
    except (OSError, ValueError):  # one is damaged, or of another size
        return False
    return digest_of(pictures) == record.frames_sha256


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half written, and leave alone what another one is writing."""
    for left in folder.glob(f"{STAGING}*"):
        with suppress(SightlineError, OSError), only_user(left, "being written"):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """An empty folder beside the target, on the same disk; gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=STAGING, dir=path.parent))
    try:
        with only_user(folder, "being removed"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, path: Path, save_frames: bool) -> None:
    """Rename everything to its place, the video last: a record without its video is a video that is not there."""
    staged = folder / path.name
    if save_frames:
        old = frames_folder(path)
        if old.exists():
            old.rename(folder / "old.frames")
        frames_folder(staged).rename(old)
    record_path(staged).replace(record_path(path))
    staged.replace(path)
    flush(path.parent)


def _write_record(record: Record, path: Path) -> None:
    text = json.dumps(record.to_json(), ensure_ascii=False, indent=2) + "\n"
    # Names of files need not be UTF-8; such bytes become escapes, which JSON reads back as they were.
    path.write_bytes(text.encode("utf-8", "backslashreplace"))
    flush(path)


def _save_pictures(pictures: np.ndarray, folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:05d}.png", compress_level=4)


def _check_writable(path: Path) -> None:
    """Make a folder where the target's would be made, and remove it: rights and read-only disks say so only then."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        Path(tempfile.mkdtemp(prefix=STAGING, dir=folder)).rmdir()
    except OSError as error:
        raise SightlineError(
            f"cannot write {path}: {folder}: {error.strerror or error}; choose another name with -o"
        ) from error
