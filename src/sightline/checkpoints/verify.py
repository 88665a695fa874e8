"""The proof of a merge: base with adapter, run by plain PEFT, against the merged model, on a fixed input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.layered import layered_logits
from sightline.checkpoints.store import Store, read_config
from sightline.errors import SightlineError, first_line
from sightline.hardware.memory import of_machine
from sightline.progress import note

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
        """Whether the merged model is hardly nearer to base + adapter than the base alone (or one of them is nan)."""
        return self.moved != 0 and not self.difference < self.moved / 2


def verify(
    base: str | Path, adapters: Sequence[str | Path], merged: str | Path, *, weights: Sequence[float]
) -> Verification:
    """Run base + adapters, the base and the merged model on a fixed input: sixteen token ids, and behind them
    one small picture if the model sees."""
    inputs = trial_inputs(read_config(base))
    if _fits(base):
        # One model at a time: both together may not fit.
        model = load_plain(base)
        plain = logits_of(model, inputs)  # before: PEFT cannot take trained biases off again
        model = _adapted(model, [Path(folder) for folder in adapters], weights)
        expected = logits_of(model, inputs)
        del model
        found = logits_of(load_plain(merged), inputs)
    else:
        note("the model does not fit into memory in float32, so it is computed layer by layer from the disk")
        expected = layered_logits(base, inputs, adapters, weights)
        plain = layered_logits(base, inputs)
        found = layered_logits(merged, inputs)
    return Verification(float((expected - found).abs().max()), float((expected - plain).abs().max()))


def _fits(base: str | Path) -> bool:
    """Whether the model fits into memory in float32, and a quarter of it beside it."""
    numbers = sum(math.prod(entry.shape) for entry in Store(base).entries.values())
    return numbers * 4 * 1.25 < of_machine().free


def _adapted(base: Any, folders: Sequence[Path], weights: Sequence[float]) -> Any:
    """The base with adapters on it, by PEFT.

    Raises:
        SightlineError: PEFT does not place one of their tensors, or cannot compute them so.
    """
    from peft import PeftModel

    names = [f"adapter{number}" for number in range(len(folders))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries about one another
        model = PeftModel.from_pretrained(base, str(folders[0]), adapter_name=names[0])
        for name, folder in zip(names[1:], folders[1:], strict=True):
            model.load_adapter(str(folder), adapter_name=name)
        for name, folder, weight in zip(names, folders, weights, strict=True):
            _check_placed(model, folder, name)
            if weight != 1:
                _weigh(model, folder, name, weight)
        if len(names) > 1:
            try:
                model.base_model.set_adapter(names)
            except ValueError as error:
                raise SightlineError(
                    f"PEFT cannot compute these adapters together ({first_line(error)}), so there is nothing to "
                    "compare with; leave --verify out"
                ) from error
    return model


def _check_placed(model: Any, folder: Path, name: str) -> None:
    """Nothing of the adapter may be left out: the comparison would be with less than it."""
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    tensors = load_peft_weights(str(folder), device="cpu")
    result = set_peft_model_state_dict(model, tensors, adapter_name=name)
    if result.unexpected_keys:
        raise SightlineError(
            f"PEFT finds no place for {len(result.unexpected_keys)} of the {len(tensors)} tensors of {folder} in this "
            f"transformers' model, {result.unexpected_keys[0]} among them, so there is nothing to compare with; "
            "leave --verify out"
        )


def _weigh(model: Any, folder: Path, name: str, weight: float) -> None:
    if getattr(model.peft_config[name], "modules_to_save", None):
        raise SightlineError(
            f"PEFT cannot weigh the modules that {folder} trained whole, so there is nothing to compare with; "
            "leave --verify out"
        )
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and name in scaling:
            scaling[name] *= weight


def load_plain(folder: str | Path) -> Any:
    """The model of a folder in float32, as transformers loads it."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    classes = getattr(transformers, (read_config(folder).get("architectures") or [""])[0], None)
    return (classes or transformers.AutoModelForCausalLM).from_pretrained(str(folder), dtype=torch.float32)


def build_empty(folder: str | Path) -> Any:
    """The model of a folder without its weights: parameters on the meta device, buffers as they are."""
    import torch
    import transformers
    from accelerate import init_empty_weights

    config = transformers.AutoConfig.from_pretrained(str(folder))
    kind = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModelForCausalLM)
    with init_empty_weights(include_buffers=False):
        build = getattr(kind, "_from_config", None) or kind.from_config
        return build(config, dtype=torch.float32)


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
