"""In float32, greedy, every request's tokens are those that transformers.generate gives it alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from exactness import answer_plainly, ask, clip, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sightline.data.conversation import Conversation, Image, Message, Text, Video
from sightline.engine.llm import LLM
from sightline.engine.sampling.params import SamplingParams

TOKENS = 12


@lru_cache(maxsize=3)
def load(folder: Path) -> LLM:
    return LLM(folder, dtype="fp32", device="cpu", max_num_seqs=4)


def alone(llm: LLM, conversation: Conversation, tokens: int = TOKENS, **options: Any) -> list[int]:
    return answer_plainly(llm.model.processor, llm.model.folder, conversation, tokens, **options).tokens


@lru_cache(maxsize=12)
def mixed_alone(llm: LLM, place: int) -> list[int]:
    return alone(llm, MIXED[place])


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
    assert found == [mixed_alone(llm, place) for place in range(len(MIXED))]


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
    assert found != [mixed_alone(llm, place) for place in range(3)]


def test_an_end_token_ends_one_row_and_not_its_neighbours(tiny_folder: Path) -> None:
    llm = load(tiny_folder)
    free = [mixed_alone(llm, place) for place in range(4)]
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
