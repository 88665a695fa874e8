"""What a measurement must compute and read at least, counted from the model's own shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sightline.data.vision import image_grid
from sightline.data.vision_spec import VisionSpec
from sightline.models.families import family_of

# Bytes that a weight takes, scales left out, and the products it is multiplied with.
WEIGHT_BYTES = {"bf16": 2.0, "fp32": 4.0, "int8": 1.0, "int4": 0.5, "q4_1": 0.625}
RATE = {
    "bf16": "bf16_flops",
    "fp32": "bf16_flops",
    "int8": "int8_ops",
    "int4": "int8_ops",
    "q4_1": "int8_ops",
}


@dataclass(frozen=True)
class Counts:
    """Sizes of a model.

    Attributes:
        text_weights: of the decoder's matrices; head_weights: of the output head.
        cache_bytes: keys and values of one token, in bfloat16.
        patch_weights, merger_weights: of the vision encoder, used once a patch and once a vision token.
        attention_width: operations of the vision encoder's attention are 4 times this times patches squared;
            0 where blocks attend within windows.
    """

    text_weights: int
    head_weights: int
    cache_bytes: int
    patch_weights: int
    merger_weights: int
    attention_width: int
    folder: Path

    @classmethod
    def of(cls, folder: Path) -> Counts:
        from transformers import AutoConfig

        family = family_of(folder)
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            module = family.model_class()(config)
        text, vision = config.get_text_config(), config.vision_config
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        tower = _weights(module.model.visual)
        merger = _weights(module.model.visual.merger)
        width = getattr(vision, "embed_dim", 0) * vision.depth if family.model_type == "qwen2_vl" else 0
        return cls(
            text_weights=_weights(module.model.language_model.layers),
            head_weights=text.vocab_size * text.hidden_size,
            cache_bytes=2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head,
            patch_weights=tower - merger,
            merger_weights=merger,
            attention_width=width,
            folder=folder,
        )

    def patches(self, size: tuple[int, int]) -> int:
        """Of a picture of (width, height)."""
        spec = VisionSpec.from_folder(self.folder, family_of(self.folder).model_type)
        frames, height, width = image_grid(spec, *size)
        return frames * height * width

    def encode_seconds(self, size: tuple[int, int], precision: str, ceilings: dict[str, float]) -> float:
        """Operations over rate, for one picture. Attention is computed in bf16 whatever the weights are."""
        patches = self.patches(size)
        linear = 2 * patches * (self.patch_weights + self.merger_weights / 4)
        attention = 4 * patches**2 * self.attention_width
        return linear / ceilings[RATE[precision]] + attention / ceilings["bf16_flops"]

    def prefill_seconds(self, tokens: float, precision: str, ceilings: dict[str, float]) -> float:
        return 2 * tokens * self.text_weights / ceilings[RATE[precision]]

    def step_bytes(self, precision: str, context: int = 0) -> float:
        """A decode step reads every weight once, and the keys and values of `context` tokens in all."""
        weights = (self.text_weights + self.head_weights) * WEIGHT_BYTES[precision]
        return weights + context * self.cache_bytes

    def step_seconds(self, precision: str, ceilings: dict[str, float], context: int = 0) -> float:
        return self.step_bytes(precision, context) / ceilings["read_bytes"]


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)
