"""What clients may call the model and its adapters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sightline.engine.llm import LLM
from sightline.server.errors import RequestError


@dataclass(frozen=True)
class Served:
    """One name that a request may ask for. `adapter` is None for the model itself."""

    name: str
    adapter: str | None = None


class Names:
    """The model under its own names, the first of which answers tell, and each loaded adapter under its name."""

    def __init__(self, llm: LLM, model: Sequence[str]) -> None:
        self._llm = llm
        self._model = tuple(model)
        self._started = int(time.time())

    @property
    def model(self) -> str:
        return self._model[0]

    def find(self, name: str | None) -> Served:
        """What a request's `model` field asks for; the model itself where it says nothing.

        Raises:
            RequestError: 404, nothing is called so.
        """
        if name is None or name == "":
            return Served(self.model)
        if name in self._model:
            return Served(name)
        if name in self._llm.engine.adapters:
            return Served(name, adapter=name)
        known = ", ".join([*self._model, *self._llm.engine.adapters])
        raise RequestError(
            f"the model {name!r} does not exist; this server has {known}",
            status=404,
            param="model",
            code="model_not_found",
        )

    def listed(self) -> list[dict[str, Any]]:
        """Every name as /v1/models tells it."""
        length = self._llm.max_model_len
        common = {
            "object": "model",
            "created": self._started,
            "owned_by": "sightline",
            "max_model_len": length,
        }
        models = [{"id": name, **common, "root": self.model, "parent": None} for name in self._model]
        adapters = [
            {"id": name, **common, "root": name, "parent": self.model} for name in self._llm.engine.adapters
        ]
        return models + adapters

    def described(self, name: str) -> dict[str, Any]:
        """One of `listed`; raises as `find`."""
        found = self.find(name).name
        return next(entry for entry in self.listed() if entry["id"] == found)
