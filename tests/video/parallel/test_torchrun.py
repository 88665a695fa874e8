"""The command a user types, in real processes that torchrun starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from wan_folder import make_wan_folder

PROMPT = "a three moving left"
SETTINGS: dict[str, Any] = {"width": 48, "height": 32, "frames": 5, "steps": 3}
TYPED = ["--size", "48*32", "--frame-num", "5", "--sample-steps", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def alone(folder: Path) -> np.ndarray:
    """The frames of one process, [F, H, W, 3] in [0, 255]."""
    from sightline.video.pipeline import VideoPipeline

    pipeline = VideoPipeline.load(folder, dtype="fp32", device="cpu")
    frames = pipeline.generate(PROMPT, **SETTINGS).frames
    return (frames.permute(0, 2, 3, 1) * 255).numpy()


def test_two_processes_make_the_video_of_one(folder: Path, alone: np.ndarray, tmp_path: Path) -> None:
    """Over guidance branches: tests/cli/test_video_generate.py."""
    output = tmp_path / "video.mp4"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "sightline", "video", "generate", "--model", str(folder), "--prompt", PROMPT]
    command += ["-o", str(output), "--save-frames", "--dtype", "fp32", "--device", "cpu", *TYPED]
    command += ["--ulysses-size", "2", "--vae-parallel"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SIGHTLINE_QUIET": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )

    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count("video.mp4") == 1  # one of them speaks
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["parallel"] == {"processes": 2, "ulysses": 2, "cfg": 1, "vae": True}
    found = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*frames*/*.png"))])
    assert found.shape == alone.shape
    assert np.abs(found - alone).max() <= 1
    assert found.std() > 1
