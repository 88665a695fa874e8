"""The folder of a demo run: which steps are done, with which settings, and what may be removed from it.

Each step leaves a stamp with the key of its settings and of the steps before it. A step whose stamp still
fits is not done again; one whose stamp differs loses its outputs and is done anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError, UsageError
from sightline.files import only_user, write_json

MARKER = "demo.json"
STEPS = "steps"
# All that a run writes; nothing else in the folder is ever touched.
OUTPUTS = (
    *("model", "data", "before.jsonl", "train.yaml", "training", "merged", "after.jsonl"),
    *("accuracy.png", "report.html", "report.json", STEPS),
)


@dataclass(frozen=True)
class Done:
    """A finished step. `state` is new, resumed (an earlier run began it) or reused (an earlier run did it).

    `seconds` are those of the work, whichever run did it; `spent` are those of this run.
    """

    name: str
    result: dict[str, Any]
    seconds: float
    spent: float
    state: str

    @property
    def seconds_without_download(self) -> float:
        """`seconds` without the `download_seconds` of the result, which are the network's."""
        return self.seconds - float(self.result.get("download_seconds", 0.0))


class RunFolder:
    """Made by `opened`, which holds the folder for one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._builds: dict[str, str] = {}
        self.done: list[Done] = []

    def step(
        self,
        name: str,
        settings: Mapping[str, Any],
        action: Callable[[], dict[str, Any]],
        *,
        after: Sequence[str] = (),
        outputs: Sequence[str] = (),
        resumable: bool = False,
    ) -> Done:
        """Do `action` unless a stamp says that it is done; its result must be plain JSON.

        Args:
            after: steps whose outputs are used. If one of them was done anew, so is this.
            outputs: files and folders that the action writes.
            resumable: `action` goes on from what an interrupted run left of `outputs`.
        """
        key = _key([settings, [self._builds[parent] for parent in after]])
        stamp = self._stamp(name)
        fits = stamp.get("key") == key
        if fits and stamp["build"] and all((self.path / output).exists() for output in outputs):
            self._builds[name] = stamp["build"]
            return self._add(Done(name, stamp["result"], stamp["seconds"], 0.0, "reused"))
        goes_on = fits and not stamp["build"] and resumable
        if not goes_on:
            for output in outputs:
                _remove(self.path / output)
        earlier = float(stamp["seconds"]) if goes_on else 0.0
        begun = {"key": key, "build": None, "settings": settings, "result": None}
        write_json(self._stamp_path(name), {**begun, "seconds": earlier})
        start = time.perf_counter()
        try:
            result = action()
        except BaseException:
            write_json(
                self._stamp_path(name), {**begun, "seconds": round(earlier + time.perf_counter() - start, 2)}
            )
            raise
        spent = time.perf_counter() - start
        finished = {"build": uuid.uuid4().hex, "result": result, "seconds": round(earlier + spent, 2)}
        write_json(self._stamp_path(name), {**begun, **finished})
        self._builds[name] = str(finished["build"])
        return self._add(Done(name, result, earlier + spent, spent, "resumed" if earlier else "new"))

    def _add(self, done: Done) -> Done:
        self.done.append(done)
        return done

    def _stamp_path(self, name: str) -> Path:
        return self.path / STEPS / f"{name}.json"

    def _stamp(self, name: str) -> dict[str, Any]:
        try:
            stamp = json.loads(self._stamp_path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        wanted = {"key", "build", "seconds", "result"}
        return stamp if isinstance(stamp, dict) and wanted <= stamp.keys() else {}


@contextmanager
def opened(path: Path, *, fresh: bool = False) -> Iterator[RunFolder]:
    """Take a new, empty or earlier demo folder; `fresh` removes what an earlier run left there.

    Raises:
        UsageError: the folder holds something else. SightlineError: it cannot be written, or another demo
            is running in it.
    """
    _check(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / MARKER).exists():
            write_json(path / MARKER, {"sightline": "demo"})
    except OSError as error:
        raise SightlineError(f"cannot make the folder {path}: {error.strerror or error}") from error
    busy = f"another sightline demo is running in {path}; wait for it or choose another --output"
    with only_user(path / MARKER, busy):
        for output in OUTPUTS if fresh else ():
            _remove(path / output)
        # What a killed run was writing: `sightline.files` gives it a name of its own until it is whole.
        for leftover in (entry for output in OUTPUTS for entry in path.glob(f".{output}.*")):
            _remove(leftover)
        yield RunFolder(path)


def _check(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {path} is a file; give a folder")
    if path.is_dir() and not (path / MARKER).is_file() and any(path.iterdir()):
        raise UsageError(
            f"--output {path} is not empty and not the folder of a demo run (it has no {MARKER}); "
            "choose another folder"
        )


def _key(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=os.fspath)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise SightlineError(f"cannot remove {error.filename or path}: {error.strerror or error}") from error
