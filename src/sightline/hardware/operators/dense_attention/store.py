"""Measurements on disk: one JSON file for each device and set of versions, in the cache folder.

A file that is damaged, of another format or of another machine is taken for absent and replaced by the next
measurement. Processes that write at the same time wait for one another and lose nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sightline.errors import SightlineError
from sightline.files import cache_folder, read_object, write_json
from sightline.hardware.accelerator import Accelerator
from sightline.hardware.operators.dense_attention.measure import Measurement

log = logging.getLogger("sightline.hardware")

_FORMAT = "sightline-attention"
# Raise it when the file or the forms change so that older measurements say nothing any more.
_SCHEMA = 1
_LIBRARIES = ("torch_npu", "flash_attn", "flash_attn_3", "sageattention")


def environment(device: torch.device, kind: str) -> dict[str, Any]:
    """What a measurement depends on besides the call: the device by name, the versions, the CPU's threads."""
    versions = {name: _version(name) for name in _LIBRARIES}
    known: dict[str, Any] = {
        "kind": kind,
        "device": Accelerator(device.type, device.index).name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cann": getattr(torch.version, "cann", None),
        **versions,
    }
    if kind == "cpu":
        known |= {"threads": torch.get_num_threads(), "machine": platform.machine()}
    return {name: value for name, value in known.items() if value is not None}


def path_of(surroundings: dict[str, Any]) -> Path:
    """Where measurements of this device with these versions are kept."""
    name = re.sub(r"[^a-z0-9]+", "-", str(surroundings["device"]).lower()).strip("-")[:60]
    text = json.dumps(surroundings, sort_keys=True)
    return cache_folder() / "attention" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def load(surroundings: dict[str, Any]) -> dict[str, Measurement]:
    """The measurements on disk by `Problem.key`; none where the file is absent, damaged or another's."""
    path = path_of(surroundings)
    if not path.exists():
        return {}
    try:
        value = read_object(path)
        if (value["format"], value["schema"], value["environment"]) != (_FORMAT, _SCHEMA, surroundings):
            raise ValueError("it was written by another version or on another machine")
        known = [Measurement.from_plain(entry) for entry in value["measurements"].values()]
    except (SightlineError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("attention is measured anew: %s cannot be used (%s)", path, error)
        return {}
    return {measurement.problem.key(): measurement for measurement in known}


def save(surroundings: dict[str, Any], measurement: Measurement) -> None:
    """Add a measurement to those on disk. Where the folder cannot be written to, a warning says so."""
    try:
        with _alone(path_of(surroundings)):
            known = load(surroundings) | {measurement.problem.key(): measurement}
            _write(surroundings, known)
    except (SightlineError, OSError) as error:
        log.warning(
            "the choice of an attention kernel is not kept (%s); set SIGHTLINE_CACHE to a folder that can be "
            "written to",
            error,
        )


def _write(surroundings: dict[str, Any], known: dict[str, Measurement]) -> None:
    value = {
        "format": _FORMAT,
        "schema": _SCHEMA,
        "environment": surroundings,
        "measurements": {key: known[key].plain() for key in sorted(known)},
    }
    write_json(path_of(surroundings), value)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process changes the file; the system ends the wait for one that died."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not on this system: the last of two writers wins
        yield
        return
    with path.with_suffix(".lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
