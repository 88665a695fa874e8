"""A Qwen2-VL or Qwen2.5-VL model by its config.json: the sizes that layouts are cut by, and every tensor it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline.errors import SightlineError

Shapes = dict[str, tuple[int, ...]]

_FAMILIES = ("qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True)
class Architecture:
    """Sizes of a model.

    Attributes:
        family: qwen2_vl or qwen2_5_vl.
        layers, hidden, heads, kv_heads, ffn, vocab: of the language model; tied: it has no head of its own.
        vision_layers, vision_hidden, vision_heads, vision_ffn: of the tower.
        patch: shape of its patch embedding; merged: width of what the projector reads.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool
    vision_layers: int
    vision_hidden: int
    vision_heads: int
    vision_ffn: int
    patch: tuple[int, ...]
    merged: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def gated_vision(self) -> bool:
        """Whether the tower's MLP has gate and up."""
        return self.family == "qwen2_5_vl"

    @classmethod
    def of(cls, config: dict[str, Any], where: str) -> Architecture:
        """From a config.json, whose text settings stand at its top (older files) or under text_config.

        Raises:
            SightlineError: another kind of model, or a setting is missing.
        """
        family = config.get("model_type")
        if family not in _FAMILIES:
            raise SightlineError(
                f"{where} is a {family or 'model without model_type'}; MindSpeed-MM's layout is known for "
                "Qwen2-VL, Qwen2.5-VL and Wan"
            )
        text = {**config, **(config.get("text_config") or {})}
        vision = config.get("vision_config") or {}
        try:
            hidden = int(text["hidden_size"])
            width = int(vision["embed_dim"] if family == "qwen2_vl" else vision["hidden_size"])
            inner = vision["intermediate_size"] if family == "qwen2_5_vl" else width * vision["mlp_ratio"]
            patch = int(vision["patch_size"])
            return cls(
                family=family,
                layers=int(text["num_hidden_layers"]),
                hidden=hidden,
                heads=int(text["num_attention_heads"]),
                kv_heads=int(text["num_key_value_heads"]),
                ffn=int(text["intermediate_size"]),
                vocab=int(text["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
                vision_layers=int(vision["depth"]),
                vision_hidden=width,
                vision_heads=int(vision["num_heads"]),
                vision_ffn=int(inner),
                patch=(
                    width,
                    int(vision.get("in_channels", vision.get("in_chans", 3))),
                    int(vision["temporal_patch_size"]),
                    patch,
                    patch,
                ),
                merged=width * int(vision["spatial_merge_size"]) ** 2,
            )
        except KeyError as error:
            raise SightlineError(f"{where}/config.json has no {error.args[0]}") from error

    def tensors(self) -> Shapes:
        """Every tensor by our canonical name (`sightline.checkpoints.names`), with its shape."""
        shapes: Shapes = {"text.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            shapes |= {f"text.layers.{layer}.{name}": shape for name, shape in self._text_layer().items()}
        shapes["text.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        shapes["visual.patch_embed.proj.weight"] = self.patch
        for layer in range(self.vision_layers):
            shapes |= {f"visual.blocks.{layer}.{name}": shape for name, shape in self._vision_layer().items()}
        return shapes | {
            "visual.merger.ln_q.weight": (self.vision_hidden,),
            **({} if self.gated_vision else {"visual.merger.ln_q.bias": (self.vision_hidden,)}),
            **_linear("visual.merger.mlp.0", self.merged, self.merged),
            **_linear("visual.merger.mlp.2", self.hidden, self.merged),
        }

    def _text_layer(self) -> Shapes:
        keys = self.kv_heads * self.head_dim
        return {
            "input_layernorm.weight": (self.hidden,),
            **_linear("self_attn.q_proj", self.hidden, self.hidden),
            **_linear("self_attn.k_proj", keys, self.hidden),
            **_linear("self_attn.v_proj", keys, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, self.hidden),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.ffn, self.hidden),
            "mlp.up_proj.weight": (self.ffn, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.ffn),
        }

    def _vision_layer(self) -> Shapes:
        width, inner = self.vision_hidden, self.vision_ffn
        norms = ["norm1.weight", "norm2.weight"]
        norms += [] if self.gated_vision else ["norm1.bias", "norm2.bias"]
        maps = (
            {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
            if self.gated_vision
            else {"fc1": (inner, width), "fc2": (width, inner)}
        )
        shapes: Shapes = dict.fromkeys(norms, (width,))
        shapes |= _linear("attn.qkv", 3 * width, width) | _linear("attn.proj", width, width)
        for name, (out, into) in maps.items():
            shapes |= _linear(f"mlp.{name}", out, into)
        return shapes


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
