"""The model families Sightline knows: what tells them apart, so that nothing else has to ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError
from sightline.files import read_object


@dataclass(frozen=True)
class Family:
    """One Qwen-VL generation.

    Attributes:
        model_type: the name in config.json.
        class_name: its transformers class with language-model head.
        timestamps: each temporal patch of a clip is announced by its time as text (Qwen3-VL).
        clip_seconds: positions in time follow the seconds between temporal patches (Qwen2.5-VL).
    """

    model_type: str
    class_name: str
    timestamps: bool = False
    clip_seconds: bool = False

    def model_class(self) -> Any:
        import transformers

        return getattr(transformers, self.class_name)


FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", "Qwen2VLForConditionalGeneration"),
        Family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", clip_seconds=True),
        Family("qwen3_vl", "Qwen3VLForConditionalGeneration", timestamps=True),
    )
}


def family_of(folder: str | Path) -> Family:
    """The family of a checkpoint folder, by its config.json.

    Raises:
        SightlineError: not a folder, no or broken config.json, or a model that is not supported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SightlineError(f"{folder} is not a folder; give a checkpoint folder that holds config.json")
    path = folder / "config.json"
    if not path.exists():
        hint = ""
        if (folder / "adapter_config.json").exists():
            hint = " (this is an adapter: give its base model here and the adapter with --adapter)"
        raise SightlineError(f"{folder} holds no config.json, so it is not a model checkpoint{hint}")
    model_type = read_object(path).get("model_type")
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise SightlineError(f"{path} names the model type {model_type!r}; supported are {known}")
    return FAMILIES[model_type]
