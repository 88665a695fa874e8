"""The package data file with what examples/tiny-vlm trained, and how it goes into the base model.

The file (bfloat16 safetensors) holds `visual.<name>` for every tensor of the tower with its merger, and
`language_model.<module>.lora_A` [r, in] and `.lora_B` [out, r] for every adapted linear of the language
model. Its metadata are texts: `format`, `r`, `alpha`, `scale` (what B @ A counts), `targets`, `recipe`
(sha256 of the recipe's files) and `training` (JSON: what the run reported).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch

ASSET = Path(__file__).parent / "assets" / "tiny_vlm.safetensors"
FORMAT = "1"


def describe(path: str | Path = ASSET) -> dict[str, str]:
    """The metadata of a packed file: what was trained, how, and by which recipe.

    Raises:
        SightlineError: no such file, or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise SightlineError(
            f"cannot read the pre-trained weights {path}; install the package again or make them with "
            "examples/tiny-vlm"
        ) from error
    if metadata.get("format") != FORMAT:
        raise SightlineError(
            f"{path} has no pre-trained weights of format {FORMAT}; pack them again with examples/tiny-vlm"
        )
    return metadata


def apply_pretrained(model: torch.nn.Module, path: str | Path = ASSET) -> dict[str, str]:
    """Load tower and merger and add the low-rank changes to the language model, in place.

    The sums are float32 on top of the weights rounded to bfloat16, for that is what was trained.

    Args:
        model: a Qwen2.5-VL from `place` (float32).
        path: a packed file.

    Returns:
        The file's metadata.

    Raises:
        SightlineError: the file is not ours or belongs to a model of another shape.
    """
    import torch
    from safetensors.torch import load_file

    metadata = describe(path)
    scale = float(metadata["scale"])
    tensors = load_file(path)
    places = dict(model.named_parameters())
    missing = {name for name in places if name.startswith("model.visual.")}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.endswith(".lora_B"):
                continue
            if name.endswith(".lora_A"):
                module = name.removesuffix(".lora_A")
                weight = _place(places, f"model.{module}.weight", path)
                change = scale * tensors[f"{module}.lora_B"].float() @ tensor.float()
                _fit(change, weight, name, path)
                weight.copy_(weight.to(torch.bfloat16).float() + change)
            else:
                weight = _place(places, f"model.{name}", path)
                _fit(tensor, weight, name, path)
                weight.copy_(tensor.float().view_as(weight))
                missing.discard(f"model.{name}")
    if missing:
        raise SightlineError(
            f"{path} lacks {len(missing)} tensors of the vision tower, such as {min(missing)}"
        )
    return metadata


def _place(places: dict[str, torch.nn.Parameter], name: str, path: str | Path) -> torch.nn.Parameter:
    if name not in places:
        raise SightlineError(f"{path} changes {name}, which the model does not have")
    return places[name]


def _fit(tensor: torch.Tensor, weight: torch.Tensor, name: str, path: str | Path) -> None:
    # A patch embedding may be stored as the matrix that it is trained as.
    if tensor.shape[0] != weight.shape[0] or tensor.numel() != weight.numel():
        raise SightlineError(
            f"{path}: {name} is {tuple(tensor.shape)}, but the model's place for it {tuple(weight.shape)}"
        )
