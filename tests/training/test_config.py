"""The configuration: every mistake is named, every field can be overridden and is documented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sightline.errors import UsageError
from sightline.training.config import FreezeConfig, LoraConfig, TrainConfig, load_config, write_config

BASE = ["model=m", "data=d.jsonl", "output=o"]
ROOT = Path(__file__).parents[2]


def refused(*overrides: str) -> str:
    with pytest.raises(UsageError) as error:
        load_config(None, [*BASE, *overrides])
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("learning_rate=5E-05", "learning_rate", 5e-5),
        ("max_pixels=1e6", "max_pixels", 1_000_000),
        ("max-pixels=802816", "max_pixels", 802816),
        ("lora.r=16", "lora.r", 16),
        ("lora.alpha=2e1", "lora.alpha", 20.0),
        ("lora.targets=[q_proj, v_proj]", "lora.targets", ["q_proj", "v_proj"]),
        ("lora.targets=.*(q|v)_proj", "lora.targets", ".*(q|v)_proj"),
        ("freeze.vision=false", "freeze.vision", False),
        ("freeze={vision: false}", "freeze.vision", False),
        ("betas=[0.9, 0.95]", "betas", (0.9, 0.95)),
        ("validation=null", "validation", None),
        ("max_steps=", "max_steps", None),
        ("data=a=b.jsonl", "data", Path("a=b.jsonl")),
        ("output=2026", "output", Path("2026")),
        ("output=2026-11-20", "output", Path("2026-11-20")),
        ("model=/models/my model", "model", Path("/models/my model")),
        ("epochs=0.5", "epochs", 0.5),
    ],
)
def test_overrides(override: str, field: str, value: Any) -> None:
    found: Any = load_config(None, [*BASE, override])
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "unknown field learning_rat (did you mean learning_rate?)"),
        ("save-intervall=3", "unknown field save_intervall (did you mean save_interval?)"),
        ("lora.alph=3", "unknown field lora.alph (did you mean alpha?)"),
        ("freeze.vit=true", "unknown field freeze.vit"),
        ("batch_size=many", "batch_size: Input should be a valid integer"),
        ("batch_size=0", "batch_size: Input should be greater than or equal to 1"),
        ("batch_size=1.5", "batch_size: "),
        ("learning_rate=-1", "learning_rate: Input should be greater than 0"),
        ("learning_rate=nan", "learning_rate: "),
        ("lora.r=0", "lora.r: "),
        ("lora.dropout=1", "lora.dropout: Input should be less than 1"),
        ("betas=[0.9]", "the field betas.1 is missing"),
        ("betas=[0.9, 1.2]", "betas [0.9, 1.2] must be at least 0 and below 1"),
        ("tuner=qlora", "tuner: Input should be 'lora' or 'full'"),
        ("schedule=step", "schedule: "),
        ("on_bad_row=ignore", "on_bad_row: Input should be 'stop' or 'skip'"),
        ("resume=yes", "resume: "),
        ("lora=8", "lora is a section: give its fields, such as lora.r=..."),
        ("model.path=x", "model is a value, not a section"),
        ("learning_rate", "'learning_rate' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("betas=[0.9", "the value is not valid YAML"),
        ("freeze={vision: true, merger: true, language: true}", "everything is frozen"),
        ("min_pixels=100", None),
        ("eval_interval=5", "eval_interval needs validation or validation_split"),
        ("init_adapter=a", None),
    ],
)
def test_mistakes_are_named(override: str, message: str | None) -> None:
    if message is None:
        load_config(None, [*BASE, override])
    else:
        assert message in refused(override)


def test_settings_that_contradict_each_other() -> None:
    assert "not both" in refused("validation=v.jsonl", "validation_split=0.1")
    assert "min_pixels 300 is above max_pixels 200" in refused("min_pixels=300", "max_pixels=200")
    assert "init_adapter needs tuner: lora" in refused("init_adapter=a", "tuner=full")


def test_all_mistakes_at_once_with_their_source(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nmodell: x\nlora: {r: none}\n")
    with pytest.raises(UsageError) as error:
        load_config(path)
    text = str(error.value)
    for part in (
        str(path),
        "unknown field modell",
        "lora.r: ",
        "the field data is missing",
        "the field output",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "is not valid YAML"),
        (b"model: a: b", "is not valid YAML"),
        (b"- model\n", "must hold `field: value` lines"),
        (b"", "must hold `field: value` lines"),
        (b"\xff\xfe\x00", "is not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(str(path))) as error:
        load_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file() -> None:
    with pytest.raises(UsageError, match=r"cannot read absent\.yaml: No such file"):
        load_config("absent.yaml")


def test_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\noutput: o\nlearning_rate: 1e-4\nlora:\nfreeze: {merger: false}\n")
    config = load_config(path, ["lora.r=32", "freeze.vision=false", "epochs=2"])
    assert (config.learning_rate, config.lora.r, config.epochs) == (1e-4, 32, 2.0)
    assert (config.freeze.vision, config.freeze.merger, config.freeze.language) == (False, False, False)


def test_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    overrides = [
        "lora.targets=[a, b]",
        "betas=[0.8, 0.9]",
        "max_seconds=3.5",
        "learning_rate=1e-7",
        "output=2026",
    ]
    config = load_config(None, [*BASE, *overrides])
    write_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config


def fields() -> dict[str, Any]:
    """Every field by the name that a user writes, sections by their fields."""
    sections = {"lora": LoraConfig, "freeze": FreezeConfig}
    result: dict[str, Any] = {}
    for name, field in TrainConfig.model_fields.items():
        if name in sections:
            result |= {f"{name}.{inner}": value for inner, value in sections[name].model_fields.items()}
        else:
            result[name] = field
    return result


def test_docs_list_every_field_with_its_default() -> None:
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.partition("## Every field")[2].partition("## Going on")[0].splitlines():
        match = re.match(r"\| `([\w.]+)` \| (.+?) \| (.+) \|$", line)
        if match:
            rows[match[1]] = match[2]
    documented = {name: default for name, default in rows.items() if name in fields()}
    assert documented.keys() == fields().keys()
    for name, field in fields().items():
        expected = "required" if field.is_required() else f"`{_written(field.default)}`"
        assert documented[name] == expected, name


def _written(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    load_config(path)
    assert path.read_text().startswith("# ")
    assert f"sightline train examples/{path.name}" in path.read_text()
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_there_are_examples() -> None:
    assert len(list((ROOT / "examples").glob("*.yaml"))) >= 6
