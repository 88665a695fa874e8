"""The packaged tiny Wan: loads with plain diffusers, stays small, and shows what it is asked for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.video.tiny import SPEC, tiny_wan_folder

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def pipe() -> Any:
    import torch

    loaded = diffusers.WanPipeline.from_pretrained(
        tiny_wan_folder(), torch_dtype=torch.float32, local_files_only=True
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


def generate(pipe: Any, prompts: list[str], steps: int = 12, **options: Any) -> np.ndarray:
    """Light in [0, 1], [prompts, frames, height, width], with seeds 0, 1, ..."""
    import torch

    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    given = {"guidance_scale": SPEC.guidance, "max_sequence_length": SPEC.text_length} | options
    frames = pipe(
        prompts,
        height=SPEC.height,
        width=SPEC.width,
        num_frames=SPEC.frames,
        num_inference_steps=steps,
        generator=seeds,
        output_type="np",
        **given,
    ).frames
    return np.asarray(frames).mean(-1)


def moved(clip: np.ndarray) -> tuple[float, float]:
    """How far the centre of light goes from the first frames to the last, in pixels to the right and down."""
    rows, columns = np.indices(clip.shape[1:])
    places = [((columns * frame).sum() / frame.sum(), (rows * frame).sum() / frame.sum()) for frame in clip]
    first, last = np.mean(places[:2], 0), np.mean(places[-2:], 0)
    return float(last[0] - first[0]), float(last[1] - first[1])


def test_the_folder_holds_wans_classes_in_safetensors_below_14_megabytes() -> None:
    folder = tiny_wan_folder()
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 14_000_000
    assert {path.suffix for path in files} == {".json", ".safetensors", ".txt"}
    assert json.loads((folder / "sightline.json").read_text()) == asdict(SPEC)
    assert "MNIST" in (folder / "NOTICE.txt").read_text()


def test_it_moves_where_the_prompt_says(pipe: Any) -> None:
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    clips = generate(pipe, [f"a three moving {way}" for way in ways])
    assert clips.shape == (4, SPEC.frames, SPEC.height, SPEC.width)
    for way, clip in zip(ways, clips, strict=True):
        across, down = moved(clip)
        along, aside = (across, down) if ways[way][0] else (down, across)
        # A digit of the training data goes 32 pixels; the first and last two frames' middles are 30 apart.
        assert 20 < along * sum(ways[way]) < 36, (way, across, down)
        assert abs(aside) < 6, (way, across, down)


def test_the_seed_decides_and_repeats(pipe: Any) -> None:
    twice, other = generate(pipe, ["a one moving up"], 4), generate(pipe, ["a one moving up"] * 2, 4)
    assert np.array_equal(twice, generate(pipe, ["a one moving up"], 4))
    assert np.abs(other[0] - other[1]).max() > 0.2


def test_words_that_it_does_not_know_and_pipeline_defaults_are_accepted(pipe: Any) -> None:
    """WanPipeline's own length of text is 512, sixteen times what a sentence of the grammar needs."""
    clips = generate(pipe, ["a bright three moving left, slowly!"], max_sequence_length=512)
    assert moved(clips[0])[0] < -15


def test_a_missing_folder_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sightline.errors import SightlineError
    from sightline.video import tiny

    monkeypatch.setattr(tiny, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(SightlineError, match=r"model_index\.json; install sightline again"):
        tiny.tiny_wan_folder()
