"""The proof of a merge: base with adapter, run by plain PEFT, against the merged model, on a fixed input."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.store import read_config

if TYPE_CHECKING:
    import torch

_TEXT_TOKENS = 16


@dataclass(frozen=True)
class Verification:
    """Largest absolute differences of logits, computed in float32.

    Attributes:
        difference: between base + adapter and the merged model. For a base in bfloat16 this is what rounding
            the merged weights does.
        moved: between the base alone and base + adapter: what the difference is to be seen against.
    """

    difference: float
    moved: float

    @property
    def lost(self) -> bool:
        """Whether the merged model is no nearer to base + adapter than the base alone (or one of them is nan)."""
        return self.moved != 0 and not self.difference < self.moved


def verify(base: str | Path, adapter: str | Path, merged: str | Path) -> Verification:
    """Run base + adapter, the base and the merged model on a fixed input: sixteen token ids, and behind them
    one small picture if the model sees."""
    from peft import PeftModel

    inputs = trial_inputs(read_config(base))
    # One model at a time: both together may not fit.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the libraries about one another
        model = PeftModel.from_pretrained(load_plain(base), str(adapter))
    expected = logits_of(model, inputs)
    with model.disable_adapter():
        plain = logits_of(model, inputs)
    del model
    found = logits_of(load_plain(merged), inputs)
    return Verification(float((expected - found).abs().max()), float((expected - plain).abs().max()))


def load_plain(folder: str | Path) -> Any:
    """The model of a folder in float32, as transformers loads it."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    classes = getattr(transformers, (read_config(folder).get("architectures") or [""])[0], None)
    return (classes or transformers.AutoModelForCausalLM).from_pretrained(str(folder), dtype=torch.float32)


def logits_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[1, tokens, vocabulary]"""
    import torch

    with torch.inference_mode():
        return model.eval()(**inputs).logits


def trial_inputs(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A fixed input for a model of this config.json: token ids, and a small picture if it sees."""
    import torch

    random = torch.Generator().manual_seed(0)
    size = config.get("vocab_size") or config["text_config"]["vocab_size"]
    ids = torch.randint(
        0, min(size, config.get("image_token_id") or size, 1000), (1, _TEXT_TOKENS), generator=random
    )
    vision = config.get("vision_config")
    if not vision:
        return {"input_ids": ids}
    merge = vision.get("spatial_merge_size", 2)
    rows = 2 * merge
    width = 3 * vision.get("temporal_patch_size", 2) * vision.get("patch_size", 14) ** 2
    picture = torch.full((1, rows * rows // merge**2), config["image_token_id"])
    frame = [torch.tensor([[config[f"vision_{side}_token_id"]]]) for side in ("start", "end")]
    ids = torch.cat([ids, frame[0], picture, frame[1], ids[:, :2]], dim=1)
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config["image_token_id"]).long(),
        "pixel_values": torch.randn(rows * rows, width, generator=random),
        "image_grid_thw": torch.tensor([[1, rows, rows]]),
    }
