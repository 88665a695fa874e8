"""Files that stay open while they are read from, and are closed with their owner."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from sightline.errors import SightlineError


class OpenFiles:
    """Descriptors by path, opened when they are first asked for."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def descriptor(self, file: Path) -> int:
        """An open file, for reading.

        Raises:
            SightlineError: it cannot be read (any more).
        """
        if file not in self._open:
            try:
                self._open[file] = os.open(file, os.O_RDONLY)
            except OSError as error:
                raise SightlineError(f"{file} cannot be read: {error.strerror or error}") from error
            weakref.finalize(self, os.close, self._open[file])
        return self._open[file]
