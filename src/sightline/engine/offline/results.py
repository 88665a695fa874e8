"""A results file: one JSON row per question, in order, each on disk before the next is computed.

A row carries a key made of its question and of everything that decides the answer, so that an interrupted
file is continued only by the run that began it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sightline.errors import SightlineError
from sightline.files import only_user


def key_of(request: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The key of a row: a hash over its question and the run's settings, both of plain JSON values."""
    text = json.dumps([request, settings], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(_bytes(text)).hexdigest()[:20]


def weights_mark(*folders: str | Path | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the weight files: what tells a model from its later training."""
    marks = []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.safetensors")) if folder is not None else []:
            status = path.stat()
            marks.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
    return marks


class ResultsFile:
    """Appends rows; with what an interrupted run of the same questions left, goes on behind it.

    Args:
        keys: the key of every question, in order.

    Raises:
        SightlineError: the file holds other results, or cannot be written.
    """

    def __init__(self, path: str | Path, keys: list[str]) -> None:
        self.path = Path(path)
        self._keys = keys
        self._file: IO[bytes] | None = None
        self._held = ExitStack()
        self.rows, self._end = self._read()

    def __enter__(self) -> ResultsFile:
        busy = f"another run is writing to {self.path}; wait for it or choose another output"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._held.enter_context(self.path.open("a+b"))
            self._held.enter_context(only_user(self.path, busy))
            self._file.truncate(self._end)
        except BaseException as error:
            self._held.close()
            if not isinstance(error, OSError):
                raise
            raise SightlineError(f"cannot write {self.path}: {error.strerror or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def append(self, row: dict[str, Any]) -> None:
        """Write the next row: its key is added, and it is on disk when this returns."""
        assert self._file is not None, "append belongs inside the with block"
        row = {"key": self._keys[len(self.rows)], **row}
        try:
            self._file.write(_bytes(json.dumps(row, ensure_ascii=False)) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SightlineError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.rows.append(row)

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """The rows that are whole, and where they end; a torn last line is left out."""
        rows: list[dict[str, Any]] = []
        end = 0
        if not self.path.exists():
            return rows, end
        if not self.path.is_file():
            raise SightlineError(f"{self.path} is not an ordinary file; choose another output")
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise SightlineError(f"cannot read {self.path}: {error.strerror or error}") from error
        for number, line in enumerate(lines):
            row = _parsed(line)
            if row is None and number == len(lines) - 1 and self._is_torn(line, number):
                break
            self._check(row, number)
            assert row is not None
            rows.append(row)
            end += len(line)
        return rows, end

    def _is_torn(self, line: bytes, number: int) -> bool:
        """Whether an interrupted run of ours was writing a line: a whole file of another kind may lack its
        last line break too, and is not ours to cut off."""
        if line.endswith(b"\n"):
            return False
        start = _bytes(json.dumps({"key": self._keys[0] if self._keys else ""}))[:-1]
        return number > 0 or line.startswith(start) or start.startswith(line)

    def _check(self, row: dict[str, Any] | None, number: int) -> None:
        if row is None or number >= len(self._keys) or row.get("key") != self._keys[number]:
            raise SightlineError(
                f"{self.path} holds other results (line {number + 1}: other questions, model or settings); "
                "choose another output or remove it"
            )


def _bytes(text: str) -> bytes:
    """JSON in UTF-8; half of a surrogate pair, which JSON may hold and UTF-8 may not, stays an escape."""
    return text.encode("utf-8", "backslashreplace")


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
