"""The adapters that requests may name: loaded and unloaded while the engine computes.

A request holds its adapter from the moment it is given. So nothing is swapped between steps: a new adapter is in use
when the first request brings it, and an unloaded one is gone from memory when the last of its requests has ended.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.models.adapters.loader import AdapterInfo, LoadedAdapter

_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,128}")

#: (name, folder, key of this load) -> the adapter in memory
Load = Callable[[str, "str | Path", str], "LoadedAdapter"]


@dataclass(frozen=True)
class LoRARequest:
    """An adapter as vLLM's calls name it. It is loaded when it is first asked for.

    Attributes:
        lora_int_id: not used; adapters are told apart by their names.
        lora_path: its folder; may be left out for one that is loaded.
    """

    lora_name: str
    lora_int_id: int = 0
    lora_path: str = ""


def check_name(name: Any) -> str:
    """
    Raises:
        UsageError: not 1 to 128 letters, digits and . _ : / -
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of an adapter; use 1 to 128 letters, digits and . _ : / -"
        )
    return name


class Adapters:
    """By name; any thread may use it.

    Args:
        load: None where this engine can have no adapters; `reason` says why.
        most: how many may be loaded at a time.
    """

    def __init__(
        self, load: Load | None, *, most: int, reason: str = "this engine computes no adapters"
    ) -> None:
        self._load = load
        self._most = most
        self._reason = reason
        self._loaded: dict[str, LoadedAdapter] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        # One load at a time, so that each sees the memory that the one before it left. Requests do not wait for it.
        self._loading = threading.Lock()

    @property
    def infos(self) -> dict[str, AdapterInfo]:
        """In the order in which they were loaded."""
        with self._lock:
            return {name: loaded.info for name, loaded in self._loaded.items()}

    def get(self, name: str) -> LoadedAdapter:
        """
        Raises:
            UsageError: there is none of this name.
        """
        loaded = self._loaded.get(name)
        if loaded is None:
            known = ", ".join(self._loaded) or "none"
            raise UsageError(f"there is no adapter {name!r}; loaded are: {known}")
        return loaded

    def load(self, name: str, folder: str | Path) -> AdapterInfo:
        """Read and check a folder and take it into memory; takes seconds, beside the running engine.

        Raises:
            SightlineError: the adapter does not fit this model, or memory does not suffice.
            UsageError: the name is none or is taken, or too many are loaded.
        """
        check_name(name)
        if self._load is None:
            raise UsageError(f"the adapter {name} cannot be loaded: {self._reason}")
        with self._loading:
            if name in self._loaded:
                path = self._loaded[name].info.path
                raise UsageError(f"there is an adapter {name!r} already, of {path}; unload it first")
            if len(self._loaded) >= self._most:
                raise UsageError(
                    f"{len(self._loaded)} adapters are loaded, and max_adapters is {self._most}; unload one or raise it"
                )
            # A name may come back with other weights, and what the caches hold of the old ones must not be found.
            loaded = self._load(name, folder, f"{name}#{next(self._numbers)}")
            with self._lock:
                self._loaded[name] = loaded
            return loaded.info

    def load_all(self, folders: Mapping[str, str | Path]) -> None:
        """Load several; see `load`."""
        for name, folder in folders.items():
            self.load(name, folder)

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter; those that were given are computed to their end with it.

        Raises:
            UsageError: there is none of this name.
        """
        with self._lock:
            self.get(name)
            del self._loaded[name]

    def named(self, asked: str | LoRARequest | None) -> str | None:
        """The name of what a call asks for; a `LoRARequest` of a new name is loaded.

        Raises:
            UsageError: neither a name nor a `LoRARequest`, or its name belongs to another folder.
            SightlineError: it cannot be loaded.
        """
        if asked is None or isinstance(asked, str):
            return asked
        name, folder = getattr(asked, "lora_name", None), getattr(asked, "lora_path", None)
        if not isinstance(name, str):
            raise UsageError(f"an adapter is named by text or a LoRARequest, not {type(asked).__name__}")
        known = self._loaded.get(name)
        if known is None and folder:
            self.load(name, folder)
        elif known is not None and folder and Path(folder).resolve() != known.info.path.resolve():
            raise UsageError(
                f"the adapter {name} is loaded from {known.info.path}, not {folder}; give another name"
            )
        return name
