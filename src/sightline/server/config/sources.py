"""Settings from where they may stand: the command line, a file, the environment, in this order."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sightline.errors import UsageError
from sightline.server.config.explain import explain
from sightline.server.config.mindie import is_mindie, read_mindie
from sightline.server.config.serve_yaml import read_yaml
from sightline.server.settings import ServeSettings

# MindIE's daemon finds its configuration here.
MINDIE_VARIABLE = "MIES_CONFIG_JSON_PATH"
# The first that is set counts.
_KEY_VARIABLES = ("SIGHTLINE_API_KEY", "VLLM_API_KEY")


@dataclass(frozen=True)
class Source:
    """Values of options from one place.

    Attributes:
        names: how the place calls an option, such as "serve.yaml:3: port"; for those it has.
        notes: what its reader wants to be told once, a line each.
    """

    values: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """Settings, and what is to be said about where they come from."""

    settings: ServeSettings
    notes: tuple[str, ...] = ()


def load_settings(
    given: Mapping[str, Any], config: Path | None = None, environment: Mapping[str, str] | None = None
) -> Loaded:
    """Settings from `given` (the command line's options), a file and the environment.

    `config` is a serve.yaml or MindIE's config.json, told apart by their content. Without it and without a model,
    MIES_CONFIG_JSON_PATH names one.

    Raises:
        UsageError: a value is missing, of the wrong type or out of its range, two contradict each other, or the file
            cannot be read; the text names each.
    """
    environment = os.environ if environment is None else environment
    if config is None and "model" not in given and environment.get(MINDIE_VARIABLE):
        config = Path(environment[MINDIE_VARIABLE])
    file = Source({}) if config is None else read_config(config)
    line = Source(given, {name: _option(name) for name in given})
    sources = (line, file, _environment(environment))
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for source in reversed(sources):
        values |= source.values
        names |= source.names
    if "model" not in values:
        missing = "" if config is None else f" and {config} names none"
        raise UsageError(f"--model is missing{missing}; give a checkpoint folder, or --config with a file")
    settings = validate(values, lambda name: names.get(name, _option(name)))
    return Loaded(settings, file.notes)


def validate(values: Mapping[str, Any], source: Callable[[str], str]) -> ServeSettings:
    """The settings of `values`; raises UsageError with the names that `source` gives options."""
    try:
        return ServeSettings(**values)
    except ValidationError as error:
        raise UsageError(explain(error, source)) from error


def read_config(path: Path) -> Source:
    """The values of a serve.yaml or of MindIE's config.json.

    Raises:
        UsageError: it cannot be read, or is neither.
    """
    text = _read(path)
    if is_mindie(text):
        values, names, notes = read_mindie(text, path)
        return Source(values, names, tuple(notes))
    values, names = read_yaml(text, path)
    return Source(values, names)


_MOST_BYTES = 10 * 2**20  # MindIE's limit


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror or error}") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"--config {path} has more than 10 MB, so it is no configuration")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path} is not UTF-8 text (byte {error.start})") from error


def _environment(environment: Mapping[str, str]) -> Source:
    for variable in _KEY_VARIABLES:
        if environment.get(variable):
            return Source({"api_key": [environment[variable]]}, {"api_key": variable})
    return Source({})


def _option(name: str) -> str:
    return f"--{name}".replace("_", "-")
