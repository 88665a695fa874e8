"""What a search has done so far, on the disk: a record a probe and run, so that it can be ended and go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import SightlineError
from sightline.files import read_object, replacing, write_json

SETTINGS = "settings.json"


class State:
    """The records of one search.

    Args:
        folder: made if it is not there; what is in it must be of the same search.
        settings: all that decides what the search finds, as JSON has it.

    Raises:
        SightlineError: the folder holds another search, with what differs, or something else.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        known = folder / "state" / SETTINGS
        # As a file gives it back, so that nothing differs by being written.
        wanted = json.loads(json.dumps(settings))
        if known.exists():
            _check(read_object(known), wanted, folder)
        else:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise SightlineError(
                    f"{folder} already exists and holds no search; choose another output folder or remove it"
                )
            write_json(known, wanted)

    def clean(self) -> None:
        """Remove what writes that were cut off have left; no other process may be writing."""
        for rest in (self.folder / "state").glob(".*"):
            if rest.is_file():
                rest.unlink()

    def get(self, kind: str, key: Any) -> dict[str, Any] | None:
        """A record, or None where there is none yet."""
        path = self._path(kind, key, "json")
        return read_object(path)["record"] if path.exists() else None

    def put(self, kind: str, key: Any, record: Mapping[str, Any]) -> None:
        """Write a record; the key is kept with it for people."""
        write_json(self._path(kind, key, "json"), {"key": key, "record": record})

    def get_arrays(self, kind: str, key: Any) -> dict[str, np.ndarray] | None:
        """Arrays by name, or None."""
        path = self._path(kind, key, "npz")
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def put_arrays(self, kind: str, key: Any, arrays: Mapping[str, np.ndarray]) -> None:
        with replacing(self._path(kind, key, "npz"), "wb") as file:
            np.savez(file, allow_pickle=False, **dict(arrays))

    def drop_arrays(self, kind: str, key: Any) -> None:
        """Forget arrays that nobody will ask for."""
        self._path(kind, key, "npz").unlink(missing_ok=True)

    def _path(self, kind: str, key: Any, suffix: str) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self.folder / "state" / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.{suffix}"


def _check(known: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    known, wanted = _flat(known), _flat(wanted)
    differing = [
        f"{name} ({_short(known.get(name))}, here {_short(wanted.get(name))})"
        for name in dict.fromkeys((*known, *wanted))
        if known.get(name) != wanted.get(name)
    ]
    if differing:
        raise SightlineError(
            f"{folder} holds a search with other settings: {'; '.join(differing)}; give the same ones to go on with "
            f"it, or another output folder"
        )


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Fields of objects in it beside its own, by path, so that a difference has the name of a field."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat.update(
            _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
        )
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
