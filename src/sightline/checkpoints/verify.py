"""The proof of a merge: base with adapter, run by plain PEFT, against the merged model, on a fixed input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.store import read_config

if TYPE_CHECKING:
    import torch

_TEXT_TOKENS = 16


def largest_difference(base: str | Path, adapter: str | Path, merged: str | Path) -> float:
    """The largest absolute difference between the logits of base+adapter and of `merged`, both in float32.

    The input is fixed: sixteen token ids, and behind them one small picture if the model sees. For a base
    in bfloat16 the difference shows the rounding of the merged weights.
    """
    from peft import PeftModel

    config = read_config(base)
    inputs = _inputs(config)
    # One model at a time: both together may not fit.
    expected = _logits(PeftModel.from_pretrained(_load(base), str(adapter)), inputs)
    found = _logits(_load(merged), inputs)
    return float((expected - found).abs().max())


def _load(folder: str | Path) -> Any:
    import torch
    import transformers

    classes = getattr(transformers, (read_config(folder).get("architectures") or [""])[0], None)
    return (classes or transformers.AutoModelForCausalLM).from_pretrained(str(folder), dtype=torch.float32)


def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        return model.eval()(**inputs).logits


def _inputs(config: dict[str, Any]) -> dict[str, torch.Tensor]:
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
