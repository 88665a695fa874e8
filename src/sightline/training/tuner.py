"""Which parameters learn: LoRA or full training, frozen parts, a learning rate for each part."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from sightline.errors import SightlineError, UsageError
from sightline.training.config import TrainConfig

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
    from peft import LoraConfig, PeftModel, get_peft_model

    if config.init_adapter is not None:
        if not (config.init_adapter / "adapter_config.json").exists():
            raise UsageError(f"init_adapter: {config.init_adapter} holds no adapter_config.json")
        return PeftModel.from_pretrained(model, config.init_adapter, is_trainable=True)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora.dropout,
        use_rslora=config.lora.rslora,
        target_modules=_targets(model, config.lora.targets),
        modules_to_save=_learning_modules(model, config),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(config.model),
    )
    try:
        peft_model = get_peft_model(model, lora)  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(f"lora.targets {config.lora.targets!r}: {str(error).splitlines()[0]}") from error
    for module in peft_model.modules():
        # PEFT casts each adapter's input to float32, autocast casts it back: two copies of every activation.
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    return peft_model


def _targets(model: nn.Module, targets: str | list[str]) -> str | list[str]:
    """`all-linear` as one regex over full names, so that the tower's linears of the same name stay out."""
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
    if not config.freeze.vision and not config.freeze.merger:
        return ["visual"]
    if not config.freeze.merger:
        return [name for name, _ in model.model.visual.named_children() if "merger" in name]  # type: ignore[union-attr]
    if not config.freeze.vision:
        # PEFT cannot wrap the list of blocks itself, so the blocks are named one by one.
        visual: Any = model.model.visual
        names = ["visual.patch_embed", *(f"visual.blocks.{index}" for index in range(len(visual.blocks)))]
        return names + (["visual.pos_embed"] if hasattr(visual, "pos_embed") else [])
    return None


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
