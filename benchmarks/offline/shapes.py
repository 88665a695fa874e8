"""Checkpoint folders with the shape of a published model and random weights, to measure speed without a download.

    python benchmarks/offline/shapes.py qwen2-vl-2b FOLDER      4.4 GB, about a minute
    python benchmarks/offline/shapes.py qwen2-vl-7b FOLDER      16.6 GB

Everything but the values is as published: config.json, tensor names, bfloat16, shards with an index, special token
ids, template, picture settings. Weights are drawn with a deviation of 0.02, shard by shard, so that building takes
little memory. The tokenizer has the published size (its loading is part of the time to ready) but made-up words.
"""

from __future__ import annotations

import argparse
import itertools
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sightline.demo.template import CHAT_TEMPLATE
from sightline.files import replacing_folder, write_json
from sightline.progress import note

# From the config.json of Qwen/Qwen2-VL-2B-Instruct and Qwen/Qwen2-VL-7B-Instruct.
_COMMON: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2_vl",
    "num_hidden_layers": 28,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
}
_TOWER: dict[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-vl-2b": {
        **_COMMON,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
        "vision_config": {**_TOWER, "hidden_size": 1536},
    },
    "qwen2-vl-7b": {
        **_COMMON,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "vision_config": {**_TOWER, "hidden_size": 3584},
    },
}
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "eos_token_id": [151645, 151643],
    "do_sample": True,
    "temperature": 0.01,
    "top_p": 0.001,
    "top_k": 1,
}
_FIRST_SPECIAL = 151643
_SPECIAL = [
    "<|endoftext|>",
    *("<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
# Qwen2-VL's: as the demo's, with a system prompt where the conversation brings none.
_LOOP = "{%- for message in messages -%}\n"
_TEMPLATE = CHAT_TEMPLATE.replace(
    _LOOP,
    _LOOP
    + """\
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
""",
)
_SHARD_BYTES = 1 << 30
_DEVIATION = 0.02


def build_shape(name: str, output: str | Path) -> Path:
    """Write the checkpoint folder of a shape in SHAPES and return its path.

    Raises:
        SightlineError: `output` is taken or cannot be written.
    """
    output = Path(output)
    config = SHAPES[name]
    note(f"writing random weights in the shape of {name} to {output}")
    with replacing_folder(output) as folder:
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", _GENERATION)
        write_json(folder / "preprocessor_config.json", PREPROCESSOR)
        _write_weights(folder, config)
        _write_tokenizer(folder)
    return output


def _write_weights(folder: Path, config: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shards = list(_shards(_published_shapes(folder, config)))
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _drawn(name, shape, generator) for name, shape in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(tensors, file)
    total = sum(2 * shape.numel() for shard in shards for shape in shard.values())
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": placed}
    )


def _published_shapes(folder: Path, config: dict[str, Any]) -> dict[str, torch.Size]:
    """Shapes by the names of the published files, which put `visual` beside `model`."""
    from transformers import AutoConfig, Qwen2VLForConditionalGeneration

    with torch.device("meta"):
        module = Qwen2VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
    shapes = {}
    for name, parameter in module.named_parameters():  # a tied head is not named twice
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        shapes[name] = parameter.shape
    if not config["tie_word_embeddings"] and "lm_head.weight" not in shapes:
        raise ValueError("the model has no head of its own, but its config says so")
    return shapes


def _shards(shapes: dict[str, torch.Size]) -> Iterator[dict[str, torch.Size]]:
    shard: dict[str, torch.Size] = {}
    taken = 0
    for name, shape in shapes.items():
        if shard and taken + 2 * shape.numel() > _SHARD_BYTES:
            yield shard
            shard, taken = {}, 0
        shard[name] = shape
        taken += 2 * shape.numel()
    yield shard


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1 and name.endswith("weight"):  # every norm
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, _DEVIATION, generator=generator)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _made_up_words()
    vocabulary |= {token: _FIRST_SPECIAL + number for number, token in enumerate(_SPECIAL)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=_SPECIAL,
        model_max_length=32768,
    )
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)
    # The class that other loaders know, as published.
    path = folder / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "Qwen2Tokenizer"})


def _made_up_words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level BPE with as many entries as Qwen's: the bytes, then words of two to four letters."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = sorted(ByteLevel.alphabet())
    letters = string.ascii_lowercase
    firsts = "Ġ" + letters  # a space begins a word
    merges: list[tuple[str, str]] = []
    for length in (1, 2, 3):
        for stem in itertools.product(firsts, *[letters] * (length - 1)):
            for letter in letters:
                if len(words) == _FIRST_SPECIAL:
                    break
                merges.append(("".join(stem), letter))
                words.append("".join(stem) + letter)
    return {word: number for number, word in enumerate(words)}, merges


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, help="absent or empty")
    options = parser.parse_args()
    build_shape(options.shape, options.folder)


if __name__ == "__main__":
    main()
