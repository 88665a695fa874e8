"""One world of four processes for all tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_TESTS = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found (`world.py`); read only."""
    import torch

    folder = tmp_path_factory.mktemp("world")
    paths = [str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    program = [sys.executable, str(Path(__file__).with_name("world.py")), str(folder)]
    result = subprocess.run(
        program, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]
