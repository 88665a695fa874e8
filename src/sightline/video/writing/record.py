"""The JSON beside a video: what it was made with and how to make it again."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UsageError
from sightline.files import read_object
from sightline.video.plan import Plan
from sightline.video.request import Request
from sightline.video.setting import Setting

if TYPE_CHECKING:
    import numpy as np

SCHEMA = "sightline-video"
VERSION = 1
_LIBRARIES = ("sightline", "torch", "diffusers", "transformers", "ftfy", "av")
# Options of `VideoPipeline.load` as JSON has them.
_TEXTS = (
    "model",
    "device",
    "dtype",
    "offload",
    "transformer_file",
    "vae_file",
    "text_encoder_file",
    "tokenizer",
)
_LOAD: dict[str, type] = dict.fromkeys((*_TEXTS, "text_encoder_device"), str)
_LOAD |= dict.fromkeys(("cast_weights", "tile_vae", "operators", "vae_parallel"), bool)
_WORDS: dict[type, str] = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
# Of what a model is loaded with, what can change a pixel; where its files lie does not, and the weights are compared.
_SEEN = {"operators": True, "cast_weights": False, "tile_vae": False}


@dataclass(frozen=True)
class Record:
    """A video that was made.

    Attributes:
        request: what was asked for.
        load: options of `VideoPipeline.load`.
        setting: what it was computed with: weights, dtype, device, versions.
        plan: of the step cache, whole; None where every step was computed.
        plan_anyway: it was used though it had been found for another generation.
        parts: fingerprints of the text encoder and the VAE, as far as they are known.
        parallel: `processes`, `ulysses`, `cfg`, `vae` (whether decoding was spread).
        seconds: by part: `load`, `text`, `denoise`, `decode`, `write`, as far as they are known.
        operations: what was computed, by part: `tflop`, and `share` of what the machine can do
            (`sightline.video.roofline.figures`).
        command: the command line, in words.
        frames_sha256: of the frames in 8 bits, [F, H, W, 3], before they were encoded.
        file, file_sha256, encoding: the video's name, its bytes, and what encoded them.
        versions: of the libraries.
        created: UTC, ISO 8601.
    """

    request: Request
    load: Mapping[str, Any]
    setting: Setting
    plan: Plan | None = None
    plan_anyway: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)
    parallel: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    operations: Mapping[str, Any] = field(default_factory=dict)
    frames_sha256: str = ""
    file: str = ""
    file_sha256: str = ""
    encoding: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def seconds_per_step(self) -> float | None:
        """Of the denoising loop, or None where it was not timed."""
        whole = self.seconds.get("denoise")
        return None if whole is None else whole / self.request.steps

    def to_json(self) -> dict[str, Any]:
        """As the file has it: what people look for first."""
        setting = {key: value for key, value in asdict(self.setting).items() if value is not None}
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "file": self.file,
            "created": self.created,
            "request": self.request.to_json(),
            "load": dict(self.load),
            "plan": None if self.plan is None else self.plan.to_json(),
            "plan_anyway": self.plan_anyway,
            "parallel": dict(self.parallel),
            "setting": setting,
            "parts": dict(self.parts),
            "versions": dict(self.versions),
            "seconds": {part: round(value, 4) for part, value in self.seconds.items()},
            "seconds_per_step": None if self.seconds_per_step is None else round(self.seconds_per_step, 5),
            "operations": dict(self.operations),
            "encoding": self.encoding,
            "file_sha256": self.file_sha256,
            "frames_sha256": self.frames_sha256,
            "command": list(self.command),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The record that `to_json` wrote.

        Raises:
            UsageError: it is another file's JSON, or a field is missing or wrong.
        """
        if data.get("schema") != SCHEMA:
            raise UsageError(f"schema must be {SCHEMA!r}, not {data.get('schema')!r}")
        if data.get("version") != VERSION:
            raise UsageError(
                f"version must be {VERSION}, not {data.get('version')!r}; it was written by another release"
            )
        known = {each.name for each in fields(cls)}
        given = {name: value for name, value in data.items() if name in known}
        _check(given)
        given["request"] = Request.from_json(dict(given["request"]))
        given["plan"] = None if given.get("plan") is None else Plan.from_json(given["plan"])
        given["command"] = tuple(given.get("command", ()))
        try:
            given["setting"] = Setting(**given["setting"])
        except TypeError as error:
            raise UsageError(f"setting has a wrong field: {error}") from error
        return cls(**given)

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """Read a record's file.

        Raises:
            SightlineError: it cannot be read, or is no record, with the field at fault.
        """
        try:
            return cls.from_json(read_object(path))
        except UsageError as error:
            raise SightlineError(f"{path} is no record of a video: {error}") from error

    def differences(
        self,
        request: Request,
        setting: Setting,
        load: Mapping[str, Any],
        plan: Plan | None,
        parts: Mapping[str, str] | None = None,
    ) -> list[str]:
        """In what a video made so would differ from this one, as `steps (50, here 30)`.

        Devices, versions and the number of processes move the last bits only and are not compared; nor are parts of
        which one side does not know the weights.
        """
        theirs = request.to_json()
        pairs = [(name, value, theirs[name]) for name, value in self.request.to_json().items()]
        for name in ("weights", "dtype"):
            pairs.append((name, getattr(self.setting, name), getattr(setting, name)))
        for name, usual in _SEEN.items():
            pairs.append((name, self.load.get(name, usual), load.get(name, usual)))
        pairs.append(("plan", _what(self.plan), _what(plan)))
        pairs += [
            (f"weights of {name}", self.parts.get(name, new), new) for name, new in (parts or {}).items()
        ]
        return [f"{name} ({_short(old)}, here {_short(new)})" for name, old, new in pairs if old != new]


def _check(given: Mapping[str, Any]) -> None:
    """Refuse a record with values of wrong types; what is in the request, the setting and the plan they see to.

    Raises:
        UsageError: the field.
    """
    objects = ("request", "load", "setting", "parts", "parallel", "seconds", "operations", "versions", "plan")
    for name in objects:
        value = given.get(name, None if name in ("request", "load", "setting") else {})
        if not isinstance(value, Mapping) and (value is not None or name != "plan"):
            raise UsageError(f"{name} must be an object, not {value!r}")
    for name, value in given["load"].items():
        if name not in _LOAD:
            raise UsageError(f"load has no option {name!r}; the options are {', '.join(_LOAD)}")
        if value is not None and type(value) is not _LOAD[name]:
            raise UsageError(f"{name} of load must be {_WORDS[_LOAD[name]]}, not {value!r}")
    for name, kind in (("parts", str), ("parallel", int), ("seconds", float), ("versions", str)):
        for key, value in given.get(name, {}).items():
            if not isinstance(value, (int, float) if kind is float else kind):
                raise UsageError(f"{key} of {name} must be {_WORDS[kind]}, not {value!r}")
    for name in ("file", "file_sha256", "frames_sha256", "encoding", "created"):
        if not isinstance(given.get(name, ""), str):
            raise UsageError(f"{name} must be a text, not {given[name]!r}")
    if not isinstance(given.get("command", []), list):
        raise UsageError(f"command must be a list, not {given['command']!r}")


def digest_of(pictures: np.ndarray) -> str:
    """SHA-256 (hex) of pictures [F, H, W, 3] in uint8."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(pictures).data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of what has a say in the pixels, as far as it is installed."""
    found = {"python": sys.version.split()[0]}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """UTC to the second, as a record has it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _what(plan: Plan | None) -> Any:
    """What a plan does, without its name and figures; one that computes everything is like none."""
    if plan is None:
        return None
    told = ("schema", "version", "name", "setting", "evidence")
    done = {name: value for name, value in plan.to_json().items() if name not in told}
    plain = all(set(row) <= {"C"} for sites in done["actions"].values() for row in sites.values())
    return None if plain else done


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "another"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
