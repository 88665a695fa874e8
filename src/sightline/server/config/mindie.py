"""MindIE's config.json as settings of `serve`: its fields mapped, and said once which have no meaning here."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sightline.errors import UsageError
from sightline.server.config.jsonc import read_jsonc, without_comments
from sightline.server.config.mindie_fields import FIELDS, OLDER, SECTIONS, B, D, Field, M, S
from sightline.server.config.mindie_values import check, devices, log_level, lora_modules, plugins
from sightline.server.options import GIB, MIB

_MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,256}")


def is_mindie(text: str) -> bool:
    """Whether a configuration is one of MindIE: an object of JSON with one of its sections."""
    plain = without_comments(text).lstrip()
    return plain.startswith("{") and any(f'"{section}"' in plain for section in SECTIONS)


def read_mindie(text: str, path: Path) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The options that a config.json sets, the fields that set them, and what its owner should hear once.

    Raises:
        UsageError: it is no JSON, or a field's value is impossible; the text names the field and its range.
    """
    root = read_jsonc(text, path)
    reader = _Reader(path, {entry.path: entry for entry in _flatten(root, path)})
    reader.read()
    return reader.values, reader.names, reader.notes()


@dataclass(frozen=True)
class _Entry:
    """A value: `path` in the newer schema, and `given` as the file has it."""

    path: str
    given: str
    value: Any


class _Reader:
    def __init__(self, path: Path, entries: dict[str, _Entry]) -> None:
        self.values: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self._path = path
        self._entries = entries
        self._ignored: dict[str, list[str]] = {}
        self._unknown: list[str] = []

    def read(self) -> None:
        for entry in self._entries.values():
            field = _find(entry.path)
            if field is None:
                self._unknown.append(entry.given)
                continue
            check(f"{self._path}: {entry.given}", entry.value, field)
            if field.special:
                continue
            if field.option is not None:
                self._set(field.option, entry.value, entry)
            elif not _is_harmless(entry.value, field):
                if field.refused:
                    raise UsageError(
                        f"{self._path}: {entry.given} must be {field.refused}, not {entry.value!r}"
                    )
                self._ignore(entry.given, field.why)
        self._read_server()
        self._read_tls()
        self._read_model()

    def notes(self) -> list[str]:
        """One block: which fields are passed over and why, and which are not known."""
        if not self._ignored and not self._unknown:
            return []
        lines = [f"{self._path}: these fields change nothing here"]
        lines += [f"  {', '.join(names)}: {why}" for why, names in self._ignored.items()]
        if self._unknown:
            lines.append(f"  not known: {', '.join(map(_suggested, self._unknown))}")
        return lines

    def _set(self, option: str, value: Any, entry: _Entry) -> None:
        self.values[option] = value
        self.names[option] = f"{self._path}: {entry.given}"

    def _ignore(self, name: str, why: str) -> None:
        self._ignored.setdefault(why, []).append(name.rpartition(".")[2])

    def _get(self, path: str) -> _Entry | None:
        return self._entries.get(path)

    def _fail(self, entry: _Entry, text: str) -> UsageError:
        return UsageError(f"{self._path}: {entry.given} {text}")

    def _read_server(self) -> None:
        host, everywhere = self._get(f"{S}ipAddress"), self._get(f"{S}allowAllZeroIpListening")
        for name in (f"{S}ipAddress", f"{S}managementIpAddress"):
            entry = self._get(name)
            if entry and entry.value in ("0.0.0.0", "::") and not (everywhere and everywhere.value):
                raise self._fail(entry, f"is {entry.value}, which needs {S}allowAllZeroIpListening: true")
        if host is not None and "management_host" not in self.values:
            self._set("management_host", host.value, host)
        timeout = self._get(f"{S}timeoutInSeconds")
        if timeout is not None and "request_seconds" not in self.values:
            self._set("request_seconds", timeout.value, timeout)
        length = self._get(f"{S}maxRequestLength")
        if length is not None:
            self._set("max_body", length.value * MIB, length)
        for name in ("dynamicLogLevel", "logLevel"):
            entry = self._get(f"LogConfig.{name}")
            if entry is not None and entry.value:
                self._set("log_level", log_level(f"{self._path}: {entry.given}", entry.value), entry)

    def _read_tls(self) -> None:
        enabled = self._get(f"{S}httpsEnabled")
        if enabled is None or not enabled.value:
            return
        if not (self._get(f"{S}tlsCert") and self._get(f"{S}tlsPk")):
            raise self._fail(
                enabled, f"is true, which needs {S}tlsCert and {S}tlsPk; name both, or set it to false"
            )
        for prefix, options in (("tls", ""), ("managementTls", "management_"), ("metricsTls", "metrics_")):
            for name, option in (("Cert", "ssl_certfile"), ("Pk", "ssl_keyfile")):
                entry = self._get(f"{S}{prefix}{name}")
                if entry is not None:
                    self._set(f"{options}{option}", self._beside(entry.value), entry)
            authorities = self._get(f"{S}{prefix}CaFile")
            if authorities is not None and authorities.value:
                self._set(f"{options}ssl_ca_certs", self._authority(prefix, authorities), authorities)

    def _authority(self, prefix: str, entry: _Entry) -> str:
        files = entry.value if isinstance(entry.value, list) else [entry.value]
        if len(files) != 1 or not isinstance(files[0], str):
            raise self._fail(entry, "must be one file; put several certificates into one")
        folder = self._get(f"{S}{prefix}CaPath") or self._get(f"{S}tlsCaPath")
        return self._beside(str(Path(folder.value if folder else "") / files[0]))

    def _read_model(self) -> None:
        name, weights = self._get(f"{M}modelName"), self._get(f"{M}modelWeightPath")
        if name is not None:
            if not _MODEL_NAME.fullmatch(name.value):
                raise self._fail(
                    name, f"must be 1 to 256 letters, digits, '.', '_' or '-', not {name.value!r}"
                )
            self._set("served_model_name", [name.value], name)
        if weights is not None:
            self._set("model", self._beside(weights.value), weights)
        batch = self._get(f"{M}maxBatchSize")
        if batch is not None and "max_num_seqs" not in self.values:
            self._set("max_num_seqs", batch.value, batch)
        longest = self._get(f"{D}maxInputTokenLen")
        if longest is not None and self.values.get("max_model_len"):
            self._set("max_prompt_tokens", min(longest.value, self.values["max_model_len"] - 1), longest)
        self._read_adapters()
        self._read_plugins()
        self._read_cards()

    def _read_adapters(self) -> None:
        for name, option in (("maxLoras", "max_adapters"), ("maxLoraRank", "max_lora_rank")):
            entry = self._get(f"{D}{name}")
            if entry is not None and entry.value:  # 0 is without adapters
                self._set(option, entry.value, entry)
        modules = self._get(f"{D}LoraModules")
        if modules is not None and modules.value:
            pairs = lora_modules(f"{self._path}: {modules.given}", modules.value)
            self._set("adapter", [f"{name}={self._beside(path)}" for name, path in pairs], modules)

    def _read_plugins(self) -> None:
        entry = self._get(f"{M}plugin_params")
        if entry is None or not entry.value:
            return
        kinds = plugins(f"{self._path}: {entry.given}", entry.value)
        if "prefix_cache" in kinds:
            self._set("prefix_caching", True, entry)
        others = [kind for kind in kinds if kind != "prefix_cache"]
        if others:
            self._ignore(
                f"{entry.given} {','.join(others)}", "guessing ahead is set by --num-speculative-tokens"
            )

    def _read_cards(self) -> None:
        """Which cards, and how much of their memory; of a machine without any, the CPU computes with its own."""
        numbers, size, memory = (
            self._get(f"{B}npuDeviceIds"),
            self._get(f"{M}worldSize"),
            self._get(f"{M}npuMemSize"),
        )
        if memory is not None and memory.value != -1 and memory.value <= 0:
            raise self._fail(memory, f"must be -1 or above 0 (GB), not {memory.value}")
        cards = [] if numbers is None else devices(f"{self._path}: {numbers.given}", numbers.value)
        if cards and size is not None and len(cards) != size.value:
            raise self._fail(
                size, f"is {size.value}, but npuDeviceIds names {len(cards)} cards; make them agree"
            )
        kind = _accelerator()
        if kind == "cpu":
            for entry in (numbers, size, memory):
                if entry is not None and not (entry is memory and memory.value == -1):
                    self._ignore(entry.given, "this machine has no NPU or GPU, so its CPU computes")
            return
        if memory is not None and memory.value > 0:
            self._set("kv_cache_memory", int(memory.value * GIB), memory)
        several = size if size is not None and size.value > 1 else numbers if len(cards) > 1 else None
        if several is not None:
            self._set("device_map", "auto", several)
        elif numbers is not None and cards:
            self._set("device", f"{kind}:{cards[0]}", numbers)

    def _beside(self, path: str) -> str:
        """A path of the file, which stands relative to it."""
        return str(self._path.resolve().parent / Path(path).expanduser())


def _flatten(root: Any, path: Path) -> Iterator[_Entry]:
    """Every value by its path in the newer schema."""
    if not isinstance(root, dict):
        raise UsageError(f"{path} must hold an object with ServerConfig and BackendConfig")
    for given, value in _leaves(root, ""):
        yield _Entry(_newer(given), given, value)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        place = f"{path}.{name}" if path else name
        field = _find(_newer(place))
        if isinstance(inner, dict) and field is None:
            yield from _leaves(inner, place)
        elif name in ("ModelConfig", "modelParam", "ModelParam") and isinstance(inner, list):
            if len(inner) != 1 or not isinstance(inner[0], dict):
                raise UsageError(f"{place} must hold one object, for one process serves one model")
            yield from _leaves(inner[0], f"{place}[0]")
        else:
            yield place, inner


def _newer(path: str) -> str:
    for older, newer in OLDER:
        if path.startswith(older):
            return newer + path.removeprefix(older)
    return path


def _find(path: str) -> Field | None:
    """The field of a path: its own, or one that stands for many."""
    exact = _BY_PATH.get(path)
    if exact is not None:
        return exact
    return next((field for field in _MANY if fnmatchcase(path, field.path.replace("[", "[[]"))), None)


_BY_PATH = {field.path: field for field in FIELDS}
_MANY = tuple(field for field in FIELDS if field.path.endswith("*"))


def _is_harmless(value: Any, field: Field) -> bool:
    # 1 is not True here, though Python says that they are equal.
    told = json.dumps(value)
    return any(json.dumps(known) == told for known in field.harmless)


def _suggested(given: str) -> str:
    name = given.rpartition(".")[2]
    known = [field.path.rpartition(".")[2] for field in FIELDS]
    close = difflib.get_close_matches(name, known, n=1)
    return f"{given} (did you mean {close[0]}?)" if close and close[0] != name else given


def _accelerator() -> str:
    """The kind of device that would compute."""
    from sightline.hardware.accelerator import find

    return find().kind
