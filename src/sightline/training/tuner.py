"""Which parameters learn: LoRA or full training, frozen parts, a learning rate for each part."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from sightline.errors import SightlineError, UsageError, first_line
from sightline.training.config import TrainConfig

# PEFT's own word for an adapter that consists of modules_to_save alone.
_NOTHING = "dummy-target-modules"
PARTS = ("vision", "merger", "language")


def part_of(name: str) -> str:
    """The part a parameter belongs to: vision (the tower), merger (its way into the text), or language."""
    if "visual." in name:
        return "merger" if re.search(r"visual\..*merger", name) else "vision"
    return "language"


def apply_tuner(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Freeze what does not learn and put adapters on; what learns becomes float32.

    Returns:
        The model itself, or a PEFT model around it.
    """
    model.requires_grad_(False)
    if config.tuner == "lora":
        model = _with_lora(model, config)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not getattr(config.freeze, part_of(name)))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        raise UsageError("nothing would learn: every part is frozen; change the freeze section")
    for parameter in learning:
        # Small steps vanish in 16 bit: what learns is kept in float32 and cast where it is used.
        parameter.data = parameter.data.float()
    return model


def _with_lora(model: nn.Module, config: TrainConfig) -> nn.Module:
    peft_model = (
        _adapter_of(model, config) if config.init_adapter is not None else _new_adapter(model, config)
    )
    for module in peft_model.modules():
        # PEFT casts each adapter's input to float32, autocast casts it back: two copies of every activation.
        if hasattr(module, "cast_input_dtype_enabled"):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010 - not a field torch knows
    return peft_model


def _new_adapter(model: nn.Module, config: TrainConfig) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        use_rslora=config.lora.rslora,
        target_modules=_targets(model, config),
        # Names such as gate_proj occur in the tower too, which learns in full or not at all.
        exclude_modules=r".*\bvisual\..*" if isinstance(config.lora.targets, list) else None,
        modules_to_save=_learning_modules(model, config),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(config.model),
    )
    try:
        return get_peft_model(model, lora)
    except (ValueError, re.error) as error:
        raise UsageError(f"lora.targets {config.lora.targets!r}: {first_line(error)}") from error


def _adapter_of(model: nn.Module, config: TrainConfig) -> nn.Module:
    """The adapter that the run starts from; rank, scale, targets and the parts that learn are its own."""
    from peft import PeftModel

    folder = config.init_adapter
    assert folder is not None
    if not (folder / "adapter_config.json").exists():
        raise UsageError(f"init_adapter: {folder} holds no adapter_config.json")
    try:
        peft_model = PeftModel.from_pretrained(model, folder, is_trainable=True)
    except Exception as error:
        # peft raises many kinds for an adapter that does not fit; each means just that.
        raise SightlineError(
            f"init_adapter: {folder} does not fit {config.model}: {first_line(error)}"
        ) from error
    learning = learning_parameters(peft_model)
    for part in PARTS:
        if part not in learning and not getattr(config.freeze, part):
            raise UsageError(
                f"init_adapter: {folder} holds no {part} weights, so freeze.{part}: false cannot be followed; "
                f"set freeze.{part}: true, or merge the adapter first and start from the merged model"
            )
    return peft_model


def _targets(model: nn.Module, config: TrainConfig) -> str | list[str]:
    """`all-linear` as one regex over full names, so that the tower's linears of the same name stay out."""
    if config.freeze.language:
        return _NOTHING
    targets = config.lora.targets
    if targets != "all-linear":
        return targets
    prefix = "model.language_model.layers."
    names = {
        name.removeprefix(prefix).partition(".")[2]
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }
    if not names:
        raise SightlineError("the model has no linear layers under model.language_model.layers")
    choices = "|".join(re.escape(name) for name in sorted(names))
    return rf".*language_model\.layers\.\d+\.({choices})"


def _learning_modules(model: nn.Module, config: TrainConfig) -> list[str] | None:
    """Names of modules that learn in full beside the adapter and are saved with it."""
    visual: Any = model.model.visual  # type: ignore[union-attr]
    if not config.freeze.vision and not config.freeze.merger:
        return ["visual"]
    names: list[str] = []
    for name, module in visual.named_children():
        frozen = config.freeze.merger if "merger" in name else config.freeze.vision
        if frozen or not any(True for _ in module.parameters()):
            continue
        # PEFT cannot wrap a list of modules itself, so its members are named one by one.
        members = (
            [f"{name}.{index}" for index in range(len(module))]
            if isinstance(module, nn.ModuleList)
            else [name]
        )
        names += [f"visual.{member}" for member in members]
    return names or None


def learning_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers that learn in each part; a part in which none does is left out."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[part_of(name)] = counts.get(part_of(name), 0) + parameter.numel()
    return counts


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Optimizer groups: one a part and decay; norms and biases do not decay."""
    rates = {
        "vision": config.vision_lr or config.base_learning_rate,
        "merger": config.merger_lr or config.base_learning_rate,
        "language": config.base_learning_rate,
    }
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), parameter.dim() > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": config.weight_decay if decays else 0.0,
            "part": part,
        }
        for (part, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
