"""Which tokens a conversation becomes, and which of them are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from sightline.data.conversation import Conversation, Image, Message, RowError, Text
from sightline.errors import SightlineError
from sightline.models.processor import Processor, load_processor
from sightline.models.prompt import IGNORED

# As templates of reasoning models do: of earlier answers nothing is kept.
REWRITING = (
    "{%- for m in messages -%}{%- if loop.last or m['role'] != 'assistant' -%}"
    "{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@pytest.fixture
def processor(family_folder: Path) -> Processor:
    return load_processor(family_folder)


def talk(*turns: tuple[str, Any]) -> Conversation:
    picture = Pillow.new("RGB", (84, 56), "red")
    messages = []
    for role, text in turns:
        parts: list[Any] = [Image(picture)] if text.startswith("@") else []
        messages.append(Message(role, [*parts, Text(text.removeprefix("@"))]))
    return Conversation(messages)


def learnt(processor: Processor, conversation: Conversation) -> list[str]:
    """The supervised runs of tokens as text."""
    encoded = processor.encode(conversation, supervise=True)
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True):
        assert label in (token, IGNORED)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [processor.tokenizer.decode(run) for run in runs if run]


def test_only_the_answer_and_its_end_marker_are_learnt(processor: Processor) -> None:
    conversation = talk(("system", "be brief"), ("user", "@what shape?"), ("assistant", "a red circle."))
    assert learnt(processor, conversation) == ["a red circle.<|im_end|>"]


def test_every_answer_of_several_turns_is_learnt(processor: Processor) -> None:
    conversation = talk(
        ("user", "@what?"), ("assistant", "fox"), ("user", "@and this?"), ("assistant", " two\nlines \n")
    )
    assert learnt(processor, conversation) == ["fox<|im_end|>", " two\nlines \n<|im_end|>"]


def test_trailing_question_is_not_learnt(processor: Processor) -> None:
    conversation = talk(("user", "what?"), ("assistant", "fox"), ("user", "thanks"))
    assert learnt(processor, conversation) == ["fox<|im_end|>"]


def test_text_is_that_of_the_template(processor: Processor) -> None:
    conversation = talk(("user", "what?"), ("assistant", "a fox"), ("user", "sure?"), ("assistant", "yes"))
    encoded = processor.encode(conversation, supervise=True)
    text = "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\na fox<|im_end|>\n"
    text += "<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert processor.tokenizer.decode(encoded.input_ids) == text


@pytest.mark.parametrize("answer", ["fox", " fox", "\nfox", "é火", "0123"])
def test_prompt_of_inference_is_a_prefix_of_training(processor: Processor, answer: str) -> None:
    conversation = talk(("user", "@what?"), ("assistant", "a"), ("user", "and?"), ("assistant", answer))
    trained = processor.encode(conversation, supervise=True)
    asked = processor.encode(conversation, supervise=False)
    length = len(asked.input_ids)
    assert trained.input_ids[:length].equal(asked.input_ids)
    assert trained.position_ids[:, :length].equal(asked.position_ids)
    assert trained.pixel_values is not None
    assert trained.pixel_values.equal(asked.pixel_values)
    # What follows is what generation has to produce, cut into tokens as a model emits them.
    rest = trained.input_ids[length:]
    assert processor.tokenizer.decode(rest) == f"{answer}<|im_end|>\n"
    assert (asked.labels == IGNORED).all()
    assert trained.labels[length] == rest[0]


def test_placeholders_are_as_many_as_vision_tokens(processor: Processor) -> None:
    encoded = processor.encode(talk(("user", "@what?"), ("assistant", "fox")), supervise=True)
    grid = encoded.image_grid_thw
    assert grid is not None
    image = processor.prompt.image_id
    assert int((encoded.input_ids == image).sum()) == int(grid.prod()) // 4 == encoded.vision_tokens > 0
    assert (encoded.labels[encoded.input_ids == image] == IGNORED).all()


def test_template_that_rewrites_earlier_turns_is_refused(processor: Processor) -> None:
    processor.tokenizer.chat_template = REWRITING
    single = talk(("user", "what?"), ("assistant", "fox"))
    assert learnt(processor, single) == ["fox<|im_end|>"]
    several = talk(("user", "what?"), ("assistant", "fox"), ("user", "and?"), ("assistant", "dog"))
    with pytest.raises(SightlineError, match="rewrites earlier turns"):
        processor.encode(several, supervise=True)


@pytest.mark.parametrize("marker", ["<|image_pad|>", "<|video_pad|>"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_literal_placeholders_are_refused(processor: Processor, marker: str, role: str) -> None:
    turns = {"user": "@what?", "assistant": "fox"}
    turns[role] += f" {marker}"
    conversation = talk(*turns.items())
    with pytest.raises(RowError, match="remove the literal") as error:
        processor.encode(conversation, supervise=True)
    assert marker in str(error.value)


@pytest.mark.parametrize("supervise", [True, False])
def test_literal_slots_of_clips_are_refused(processor: Processor, supervise: bool) -> None:
    conversation = talk(("user", "a <|vision_start|><|video_pad|><|vision_end|> b"), ("assistant", "c"))
    with pytest.raises(RowError, match="remove the literal <.video_pad.>"):
        processor.encode(conversation, supervise=supervise)


def test_nobody_answers(processor: Processor) -> None:
    with pytest.raises(RowError, match="no assistant turn"):
        processor.encode(talk(("user", "what?")), supervise=True)


def test_template_that_fails_is_named(processor: Processor) -> None:
    processor.tokenizer.chat_template = "{{ raise_exception('only one turn\\nsecond line') }}"
    with pytest.raises(SightlineError) as raised:
        processor.encode(talk(("user", "what?"), ("assistant", "fox")), supervise=True)
    # One line, and no path: clients of a server read it.
    assert str(raised.value) == "the model's chat template refuses the conversation: only one turn"
