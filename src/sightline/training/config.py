"""The training configuration: typed, from YAML, every field overridable as key=value on the command line."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sightline.errors import UsageError

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def _path_text(value: Any) -> Any:
    """A folder may be called 2026 or 2026-11-20, which YAML reads as a number and a date."""
    return str(value) if isinstance(value, (int, float, date)) and not isinstance(value, bool) else value


_Path = Annotated[Path, BeforeValidator(_path_text)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class LoraConfig(_Section):
    """Low-rank adapters on the language model."""

    r: int = Field(8, ge=1, description="rank")
    alpha: float = Field(16, gt=0, description="scale: the update counts alpha / r (rsLoRA: alpha / sqrt(r))")
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: str | list[str] = Field(
        "all-linear", description="all-linear: the language model's linears; or module names; or one regex"
    )
    rslora: bool = False


class FreezeConfig(_Section):
    """Parts that do not learn. With LoRA, a part that is not frozen learns in full beside the adapter."""

    vision: bool = True
    merger: bool = True
    language: bool = False


_SECTIONS: dict[str, type[_Section]] = {"lora": LoraConfig, "freeze": FreezeConfig}


class TrainConfig(_Section):
    """Everything that decides a run. Paths are relative to where the command is run."""

    model: _Path = Field(description="base checkpoint folder")
    data: _Path = Field(description="training rows, json or jsonl")
    output: _Path = Field(description="folder of the run: adapter or model, logs, curves, checkpoints")
    media_root: _Path | None = Field(None, description="where relative media paths are looked up as well")
    validation: _Path | None = Field(None, description="validation rows")
    validation_split: float = Field(0.0, ge=0, lt=1, description="share of the training rows held out")
    max_samples: int | None = Field(None, ge=1, description="read only the first rows")
    on_bad_row: Literal["stop", "skip"] = "stop"

    tuner: Literal["lora", "full"] = "lora"
    lora: LoraConfig = Field(default_factory=LoraConfig)
    freeze: FreezeConfig = Field(default_factory=FreezeConfig)
    init_adapter: _Path | None = Field(None, description="adapter folder whose weights the run starts from")

    max_pixels: int | None = Field(None, ge=1, description="per image; recorded in the output")
    min_pixels: int | None = Field(None, ge=1)
    max_length: int | None = Field(
        None, ge=2, description="longest sample in tokens; longer ones are faulty rows"
    )

    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; wins over epochs")
    max_seconds: float | None = Field(
        None, gt=0, description="stop after this training time, schedule included"
    )
    batch_size: int = Field(1, ge=1, description="samples per device and forward pass")
    accumulation: int = Field(1, ge=1, description="forward passes per optimizer step")
    learning_rate: float | None = Field(None, gt=0, description="default 1e-4 for LoRA, 1e-5 for full")
    vision_lr: float | None = Field(None, gt=0, description="default: learning_rate")
    merger_lr: float | None = Field(None, gt=0, description="default: learning_rate")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False

    device: str | None = Field(None, description="cpu, cuda, npu; default: the best there is")
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    threads: int | None = Field(None, ge=1, description="CPU threads of the arithmetic; default: all cores")
    workers: int = Field(0, ge=0, description="loader processes; 0 reads in the training process")
    seed: int = 42

    log_interval: int = Field(10, ge=1, description="optimizer steps between log lines")
    save_interval: int | None = Field(
        None, ge=1, description="optimizer steps between checkpoints; default: none"
    )
    save_total_limit: int = Field(2, ge=1)
    save_optimizer: bool = Field(True, description="false: small checkpoints that cannot be resumed exactly")
    eval_interval: int | None = Field(None, ge=1, description="optimizer steps between validations")
    resume: Literal["auto", "never"] = Field("auto", description="auto: go on from the last whole checkpoint")
    tensorboard: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        frozen = self.freeze
        if frozen.vision and frozen.merger and frozen.language:
            raise ValueError(
                "everything is frozen; set freeze.language, freeze.merger or freeze.vision to false"
            )
        if self.validation is not None and self.validation_split:
            raise ValueError("give validation or validation_split, not both")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        if self.init_adapter is not None and self.tuner != "lora":
            raise ValueError("init_adapter needs tuner: lora")
        if self.eval_interval and self.validation is None and not self.validation_split:
            raise ValueError("eval_interval needs validation or validation_split")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must be at least 0 and below 1")
        return self

    @property
    def base_learning_rate(self) -> float:
        return self.learning_rate or (1e-4 if self.tuner == "lora" else 1e-5)


def load_config(path: str | Path | None, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file and apply `key=value` overrides; a dot reaches into a section (`lora.r=16`).

    Raises:
        UsageError: no such file, not YAML, an unknown field (the nearest known one is named), a wrong value.
    """
    import yaml

    values: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(loaded, dict):
            raise UsageError(f"{path} must hold `field: value` lines, such as `model: FOLDER`")
        values = loaded
    for override in overrides or []:
        _apply(values, override)
    return parse_config(values, str(path or "the command line"))


def parse_config(values: dict[str, Any], where: str) -> TrainConfig:
    """Validate plain values; `where` names their source in errors."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error)}") from error


def write_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML that `load_config` reads back."""
    import yaml

    from sightline.files import replacing

    with replacing(path) as file:
        yaml.safe_dump(config.model_dump(mode="json"), file, sort_keys=False, allow_unicode=True)


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UsageError(f"{override!r} is not of the form key=value, such as lora.r=16")
    *sections, name = key.replace("-", "_").split(".")
    place = values
    for section in sections:
        if place.get(section) is None:
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise UsageError(f"{key}: {section} is a value, not a section")
    place[name] = _value(override, text)


def _value(override: str, text: str) -> Any:
    import yaml

    # YAML 1.1 reads 1e-4 as text; a person means the number.
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{override!r}: the value is not valid YAML") from error


def _explain(error: ValidationError) -> str:
    """All complaints in one sentence, each with its field."""
    complaints = []
    for item in error.errors():
        field = ".".join(str(step) for step in item["loc"])
        if item["type"] == "extra_forbidden":
            complaints.append(f"unknown field {field}{_nearest(item['loc'])}")
        elif item["type"] == "missing":
            complaints.append(f"the field {field} is missing")
        elif item["type"] == "model_type":
            complaints.append(
                f"{field} is a section: give its fields, such as {field}.{_first_field(field)}=..."
            )
        else:
            text = item["msg"].removeprefix("Value error, ")
            complaints.append(f"{field}: {text}" if field else text)
    return "; ".join(complaints)


def _first_field(section: str) -> str:
    return next(iter(_SECTIONS[section].model_fields))


def _nearest(location: tuple[Any, ...]) -> str:
    import difflib

    model = _SECTIONS.get(str(location[0]), TrainConfig) if len(location) > 1 else TrainConfig
    close = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
