"""In float32, greedy, every request's tokens are those that transformers.generate gives it alone."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from sightline.data.conversation import Conversation, Image, Message, Part, Text, Video
from sightline.engine.llm import LLM
from sightline.engine.sampling import SamplingParams
from sightline.models.families import family_of

TOKENS = 12


@lru_cache(maxsize=3)
def load(folder: Path) -> LLM:
    return LLM(folder, dtype="fp32", device="cpu", max_num_seqs=4)


@lru_cache(maxsize=3)
def plain(folder: Path) -> Any:
    """The same checkpoint as transformers runs it by itself."""
    return family_of(folder).model_class().from_pretrained(folder, dtype=torch.float32).eval()


def picture(width: int, height: int, seed: int) -> Pillow.Image:
    return Pillow.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


def clip(frames: int, seed: int) -> Video:
    return Video(tuple(picture(60, 60, seed + index) for index in range(frames)), fps=2.0)


def alone(llm: LLM, conversation: Conversation, tokens: int = TOKENS, **options: Any) -> list[int]:
    """transformers' own generate, fed with what its processor would give."""
    encoded = llm.model.processor.encode(conversation, supervise=False)
    inputs: dict[str, Any] = {
        "input_ids": encoded.input_ids[None],
        "attention_mask": torch.ones_like(encoded.input_ids)[None],
        "mm_token_type_ids": encoded.kinds[None],
    }
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        if getattr(encoded, name) is not None:
            inputs[name] = getattr(encoded, name)
    if encoded.second_per_grid_ts and llm.model.processor.family.clip_seconds:
        inputs["second_per_grid_ts"] = torch.tensor(encoded.second_per_grid_ts)
    ends = llm.end_tokens
    options = {"do_sample": False, "eos_token_id": sorted(ends), "pad_token_id": 0} | options
    with torch.inference_mode():
        out = plain(llm.model.folder).generate(**inputs, max_new_tokens=tokens, **options)
    return out[0, len(encoded.input_ids) :].tolist()


def ask(*parts: Part) -> Conversation:
    return Conversation([Message("user", list(parts))])


MIXED = [
    ask(Text("what shape is in the image?")),
    ask(Image(picture(64, 64, 1)), Text("is it red?")),
    ask(Image(picture(120, 60, 2)), Text("and"), Image(picture(57, 99, 3)), Text("this? " * 9)),
    ask(clip(5, 4), Text("what happens?")),
    ask(Text("compare"), clip(2, 9), Image(picture(200, 40, 5)), Text("yes or no")),
    Conversation([Message("system", [Text("be brief")]), Message("user", [Text("a")])]),
]


def test_a_mixed_batch(family_folder: Path) -> None:
    llm = load(family_folder)
    params = SamplingParams(temperature=0, max_tokens=TOKENS)
    found = [output.outputs[0].token_ids for output in llm.chat(MIXED, params)]
    assert found == [alone(llm, conversation) for conversation in MIXED]


parts = st.one_of(
    st.builds(
        lambda words: Text(" ".join(words)),
        st.lists(st.sampled_from(["red", "is", "a", "?"]), min_size=1, max_size=20),
    ),
    st.builds(
        lambda w, h, s: Image(picture(w, h, s)), st.integers(20, 150), st.integers(20, 150), st.integers(0, 9)
    ),
    st.builds(clip, st.integers(1, 5), st.integers(0, 9)),
)
asked = st.lists(parts, min_size=1, max_size=4).map(lambda found: ask(*found, Text("?")))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    conversations=st.lists(asked, min_size=1, max_size=5),
    lengths=st.lists(st.integers(1, 9), min_size=5, max_size=5),
)
def test_any_batch(family_folder: Path, conversations: list[Conversation], lengths: list[int]) -> None:
    llm = load(family_folder)
    lengths = lengths[: len(conversations)]
    params = [SamplingParams(temperature=0, max_tokens=length) for length in lengths]
    found = [output.outputs[0].token_ids for output in llm.chat(conversations, params)]
    assert found == [alone(llm, one, length) for one, length in zip(conversations, lengths, strict=True)]


def test_repetition_penalty(tiny_folder: Path) -> None:
    llm = load(tiny_folder)
    params = SamplingParams(temperature=0, max_tokens=TOKENS, repetition_penalty=1.3)
    found = [output.outputs[0].token_ids for output in llm.chat(MIXED[:3], params)]
    assert found == [alone(llm, one, repetition_penalty=1.3) for one in MIXED[:3]]
    plain = [
        output.outputs[0].token_ids
        for output in llm.chat(MIXED[:3], SamplingParams(temperature=0, max_tokens=TOKENS))
    ]
    assert found != plain


def test_an_end_token_ends_one_row_and_not_its_neighbours(tiny_folder: Path) -> None:
    llm = load(tiny_folder)
    free = [alone(llm, one) for one in MIXED[:4]]
    end = free[1][3]
    expected = [row[: row.index(end) + 1] if end in row else row for row in free]
    params = SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=[end])
    outputs = [output.outputs[0] for output in llm.chat(MIXED[:4], params)]
    assert [output.token_ids for output in outputs] == expected
    assert [output.finish_reason for output in outputs] == [
        "stop" if end in row else "length" for row in free
    ]
    assert outputs[1].stop_reason == end


def test_prompts_as_text_and_as_ids_are_the_conversation(family_folder: Path) -> None:
    llm = load(family_folder)
    image, video = picture(64, 90, 1), [picture(60, 60, seed) for seed in range(4)]
    text = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>and "
        "<|vision_start|><|video_pad|><|vision_end|>?<|im_end|>\n<|im_start|>assistant\n"
    )
    data = {"image": image, "video": [video]}
    options = {"fps": 2.0}
    params = SamplingParams(temperature=0, max_tokens=TOKENS)
    by_text, by_ids = llm.generate(
        [
            {"prompt": text, "multi_modal_data": data, "mm_processor_kwargs": options},
            {
                "prompt_token_ids": llm.get_tokenizer()(text)["input_ids"],
                "multi_modal_data": {"image": [image], "video": video},
                "mm_processor_kwargs": options,
            },
        ],
        params,
    )
    conversation = ask(Image(image), Text("and "), Video(tuple(video), fps=2.0), Text("?"))
    assert by_text.outputs[0].token_ids == by_ids.outputs[0].token_ids == alone(llm, conversation)
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids
    assert by_text.vision_tokens > 4
    assert (by_text.prompt, by_ids.prompt) == (text, None)
