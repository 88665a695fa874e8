"""An output folder that is written file by file in a hidden folder beside it, and goes on where it was interrupted.

The target appears at once and whole, by one rename. Until then everything is in `.NAME.partial`: files that are
whole under their own names, the one being written with `.part` behind its name, and `job.json`, which says what is
being made of what, so that nothing is gone on with whose sources or options have changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from sightline.errors import SightlineError
from sightline.files import (
    check_free,
    flush,
    make_ordinary,
    make_ordinary_folder,
    only_user,
    read_object,
    write_json,
)
from sightline.progress import note, size

_PLAN = "job.json"
_PART = ".part"


class Job:
    """Use it with `with`; give it each file by `file`.

    Raises:
        SightlineError: the target is taken, another process writes it, there is too little room, or an interrupted
            job that shall be gone on with was another one.
    """

    def __init__(self, output: str | Path, plan: dict[str, Any], *, bytes: int, resume: bool = False) -> None:
        """
        Args:
            plan: what makes the output what it is, as JSON; `sources` of this module says it of input files.
            bytes: that the output will have.
            resume: go on with an interrupted job; otherwise what it left is removed.
        """
        self.output = Path(output)
        self.folder = self.output.parent / f".{self.output.name}.partial"
        self._plan = json.loads(json.dumps(plan, default=str))
        self._bytes = bytes
        self._resume = resume
        self._done = 0
        self._flushed: set[Path] = set()

    def __enter__(self) -> Job:
        check_free(self.output)
        busy = f"another process is writing {self.output}; wait for it"
        with self._told():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = only_user(self.folder, busy)
            self._lock.__enter__()
        try:
            with self._told():
                # Between our look and our lock the other process may have finished, and given the folder its name.
                check_free(self.output)
                if not self.folder.is_dir():
                    raise SightlineError(busy)
                self._begin()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SightlineError(f"cannot write {self.output}: {error.strerror or error}") from error

    def _begin(self) -> None:
        if self._resume and (self.folder / _PLAN).is_file():
            found = read_object(self.folder / _PLAN)
            other = next((key for key in self._plan if found.get(key) != self._plan[key]), None)
            if other is not None:
                raise SightlineError(
                    f"the interrupted job in {self.folder} was another one: its {other} differs; run without "
                    "--resume to start anew"
                )
            self._clear_unfinished()
        else:
            if any(self.folder.iterdir()):
                note(
                    f"what an interrupted run left in {self.folder} is removed; --resume would have gone on with it"
                )
            self._clear()
        # Not their sizes: a file that waits to be filled takes no room yet.
        written = sum(file.stat().st_blocks * 512 for file in self.folder.rglob("*") if file.is_file())
        free = shutil.disk_usage(self.folder).free
        if free + written < self._bytes:
            if not written:
                self._give_up()
            raise SightlineError(
                f"{self.output} needs {size(self._bytes)}, but its disk has {size(free)} free; make room or "
                "choose another output folder"
            )
        write_json(self.folder / _PLAN, self._plan)

    def file(self, name: str, write: Callable[[Path], None]) -> bool:
        """Write one file by `write(path)`, unless an earlier run has done so; whether it was written now.

        Raises:
            SightlineError: the disk is full, or cannot be written.
        """
        target = self.folder / name
        if target.is_file():
            self._done += 1
            return False
        part = target.with_name(target.name + _PART)
        try:
            with self._told():
                part.parent.mkdir(parents=True, exist_ok=True)
                write(part)
                make_ordinary(part)
                flush(part)
                self._flushed.add(target)
                part.rename(target)
                flush(target.parent)
        except BaseException:
            part.unlink(missing_ok=True)  # room for whoever filled the disk
            raise
        self._done += 1
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with self._told():
                    self._finish()
                return
            if self._done:
                note(
                    f"what is done of {self.output} is kept; the same command with --resume goes on from there"
                )
            else:
                self._give_up()
        finally:
            self._lock.__exit__(None, None, None)
        if isinstance(error, OSError):  # of a small file beside the weights
            raise SightlineError(f"cannot write {self.output}: {error.strerror or error}") from error

    def _finish(self) -> None:
        for path in [self.folder, *self.folder.rglob("*")]:
            if path.is_dir():
                make_ordinary_folder(path)
            if path not in self._flushed:
                flush(path)
        # Behind this the folder is whole. Killed before the rename, it is made anew: nothing says what it was made of.
        (self.folder / _PLAN).unlink()
        if self.output.exists():
            self.output.rmdir()
        self.folder.rename(self.output)
        flush(self.output.parent)

    def _clear_unfinished(self) -> None:
        """What was being written when the job ended, and would not be written again under the same name."""
        for path in list(self.folder.rglob("*")):
            if path.is_file() and (path.name.endswith(_PART) or path.name.startswith(".")):
                path.unlink()

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _give_up(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def sources(files: Iterable[Path]) -> list[list[Any]]:
    """What changes when one of these files does: path, size and time of change of each."""
    return [
        [str(file.resolve()), found.st_size, found.st_mtime_ns]
        for file in sorted(set(files))
        if (found := file.stat())
    ]
