"""Reading objects of JSON; and writing so that nothing is lost: beside the target, flushed, then renamed over it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sightline.errors import SightlineError


@contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file beside `path`; on success it replaces `path`, on any exception nothing is left.

    Raises:
        SightlineError: the folder cannot be written to or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; the result is an ordinary one.
        make_ordinary(temporary)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise SightlineError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; on success it becomes `path` (which must be absent or empty).

    Raises:
        SightlineError: `path` is taken, cannot be written, or the disk is full.
    """
    path = Path(path)
    check_free(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        make_ordinary_folder(temporary)
        for inside in temporary.rglob("*"):
            if inside.is_file():
                make_ordinary(inside)
                flush(inside)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
        temporary = None
    except OSError as error:
        raise SightlineError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_free(output: Path) -> None:
    """Whether a folder can be made there.

    Raises:
        SightlineError: something is there already that is not an empty folder.
    """
    try:
        taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except OSError as error:
        raise SightlineError(f"cannot write {output}: {error.strerror or error}") from error
    if taken:
        raise SightlineError(f"{output} already exists; choose another output folder or remove it")


@contextmanager
def only_user(path: Path, busy: str) -> Iterator[None]:
    """Hold an existing file or folder for this process; the system lets go of it however the process ends.

    Raises:
        SightlineError: with the text `busy`, when another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SightlineError(busy) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def make_ordinary(path: str | Path) -> None:
    """Give a file the permissions of a newly made one; mkstemp and safetensors make theirs private."""
    Path(path).chmod(0o666 & ~_umask())


def make_ordinary_folder(path: str | Path) -> None:
    """The same for a folder; mkdtemp makes private ones."""
    Path(path).chmod(0o777 & ~_umask())


def flush(path: Path) -> None:
    """Bring a written file or a folder's names to the disk; a name may reach it before the contents do."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        SightlineError: the file is missing, cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SightlineError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        check_fetched(path)
        raise SightlineError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise SightlineError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def check_fetched(path: Path) -> None:
    """Raises SightlineError where a file is what git leaves in a large file's place until Git LFS has fetched it."""
    with path.open("rb") as file:
        if file.read(30).startswith(b"version https://git-lfs"):
            raise SightlineError(
                f"{path} is a pointer of Git LFS, not the file itself; run git lfs pull in its folder"
            )


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


def cache_folder() -> Path:
    """Where what can be had again is kept: `SIGHTLINE_CACHE`, else `sightline` in the user's cache directory."""
    chosen = os.environ.get("SIGHTLINE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "sightline"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
