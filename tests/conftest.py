"""Shared fixtures: tiny checkpoints made once a run, and a world without hubs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for _variable in ("MAX_PIXELS", "MIN_PIXELS", "VIDEO_MAX_PIXELS"):
    os.environ.pop(_variable, None)
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL checkpoint folder; read only."""
    from tiny import make_model_folder

    return make_model_folder(tmp_path_factory.mktemp("tiny") / "model", "qwen2_5_vl")


@pytest.fixture(scope="session", params=("qwen2_vl", "qwen2_5_vl", "qwen3_vl"))
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder of each family in turn; read only."""
    from tiny import make_model_folder

    return make_model_folder(tmp_path_factory.mktemp("family") / request.param, request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and videos beside the project, where there are some."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data with real images is not here")
    return folder
