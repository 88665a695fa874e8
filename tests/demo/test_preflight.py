"""What is missing is said in one sentence before the first step."""

from __future__ import annotations

import importlib.util
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from sightline.demo.journey import run_demo
from sightline.demo.preflight import bytes_to_write, check_disk, check_libraries
from sightline.demo.settings import Settings
from sightline.errors import SightlineError, UsageError

Usage = namedtuple("Usage", "total used free")


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name in names else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_missing_libraries_are_named_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "easy_vqa", "gguf")
    with pytest.raises(SightlineError) as error:
        check_libraries(Settings())
    assert str(error.value) == (
        'the demo needs the libraries easy-vqa, gguf; run: pip install "sightline[demo]"'
    )
    with pytest.raises(SightlineError, match="the library easy-vqa; run"):
        check_libraries(Settings(base=Path("base")))  # a given base is not read with gguf


def test_a_full_disk_is_known_before_the_first_step(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(base=tiny_folder)
    check_disk(settings, tmp_path / "not" / "there" / "yet")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(SightlineError, match=r"has 1\.0 kB free, but the demo needs \d+\.\d MB.*--output"):
        run_demo(tmp_path / "run", settings)
    assert not (tmp_path / "run" / "steps").exists()


def test_the_built_in_model_takes_less_than_two_gigabytes(tmp_path: Path) -> None:
    assert 0.5e9 < bytes_to_write(Settings(), tmp_path) < 2e9
    (tmp_path / "model").mkdir()
    assert bytes_to_write(Settings(), tmp_path) < 0.75e9


def test_a_base_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(SightlineError, match=r"config\.json"):
        run_demo(tmp_path / "run", Settings(base=tmp_path / "base"))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"train_seconds": 0}, "--train-seconds"),
        ({"train_seconds": float("nan")}, "--train-seconds"),
        ({"questions": 3}, "--questions"),
    ],
)
def test_settings_out_of_range_are_wrong_usage(values: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Settings(**values)
