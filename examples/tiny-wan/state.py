"""Where a training stands: weights, their average, and the optimizer's moments, in one safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


@torch.no_grad()
def average(averaged: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's by (1 - decay)."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


def save_state(
    state: Path,
    result: Path,
    model: torch.nn.Module,
    averaged: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    spent: float,
) -> None:
    """Write what `load_state` reads, and the averaged weights alone as `result`; each file beside and renamed."""
    weights = {name: tensor.contiguous() for name, tensor in averaged.named_parameters()}
    tensors = {f"averaged.{name}": tensor for name, tensor in weights.items()}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach().contiguous()
        if not parameter.requires_grad:
            continue
        for key in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{key}.{name}"] = optimizer.state[parameter][key].clone()
    for path, content in ((result, weights), (state, tensors)):
        beside = path.with_suffix(".writing")
        save_file(content, beside, metadata={"step": str(step), "spent": repr(spent)})
        beside.rename(path)


def load_state(
    state: Path, model: torch.nn.Module, averaged: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """(steps done, seconds spent) after loading everything in place; (0, 0.0) when there is no such file."""
    if not state.is_file():
        return 0, 0.0
    fused = bool(optimizer.defaults.get("fused"))  # then the count of steps is where the weights are
    with safe_open(state, "pt") as file:
        metadata = file.metadata()
        for name, parameter in averaged.named_parameters():
            parameter.data.copy_(file.get_tensor(f"averaged.{name}"))
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor(f"model.{name}"))
            if not parameter.requires_grad:
                continue
            optimizer.state[parameter] = {
                key: file.get_tensor(f"{key}.{name}").to(
                    "cpu" if key == "step" and not fused else parameter.device
                )
                for key in ("exp_avg", "exp_avg_sq", "step")
            }
    return int(metadata["step"]), float(metadata["spent"])
