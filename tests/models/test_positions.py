"""Positions of a sequence as the real model works them out itself, and token counts from headers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from sightline.data.conversation import Conversation, Image, Message, Part, Text, Video
from sightline.errors import SightlineError
from sightline.models.families import FAMILIES, family_of
from sightline.models.processor import Encoded, Processor, load_processor


def picture(width: int, height: int) -> PIL.Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def clip(frames: int, width: int = 90, height: int = 60, fps: float = 2.0) -> Video:
    first = picture(width, height)
    return Video(tuple(first.rotate(10 * index) for index in range(frames)), fps=fps)


def chat(*turns: list[Part] | str) -> Conversation:
    """Alternating turns of user and assistant."""
    roles = ("user", "assistant")
    return Conversation(
        [
            Message(roles[index % 2], [Text(turn)] if isinstance(turn, str) else turn)
            for index, turn in enumerate(turns)
        ]
    )


CONVERSATIONS = {
    "text": chat("what shape is it?", "a circle"),
    "image": chat([Image(picture(100, 60)), Text("what shape?")], "a red square"),
    "image last": chat([Text("what shape?"), Image(picture(40, 200))], "a circle"),
    "images in a row": chat([Image(picture(60, 60)), Image(picture(200, 90)), Image(picture(30, 90))], "yes"),
    "video": chat([clip(4), Text("what moves?")], "a blue circle"),
    "odd video, other rate": chat([Text("look: "), clip(5, fps=1.0), Text("what moves?")], "nothing"),
    "long video": chat([clip(24, 40, 40), Text("what moves?")], "nothing"),
    "all, in two rounds": chat(
        [Text("compare "), Image(picture(100, 60)), Text(" and "), clip(3), Image(picture(60, 100))],
        "the first is red",
        [clip(6, 60, 120, fps=4.0), clip(2), Text("and these? "), Image(picture(57, 57))],
        "they are green",
    ),
}


@pytest.fixture(scope="module")
def processor(family_folder: Path) -> Processor:
    return load_processor(family_folder)


@pytest.fixture(scope="module")
def model(family_folder: Path) -> Any:
    return family_of(family_folder).model_class().from_pretrained(family_folder).eval()


def inputs_of(encoded: Encoded, processor: Processor) -> dict[str, Any]:
    """What a user of plain transformers gives the model: everything but positions."""
    given = {
        "input_ids": encoded.input_ids[None],
        "mm_token_type_ids": encoded.kinds[None],
        "pixel_values": encoded.pixel_values,
        "image_grid_thw": encoded.image_grid_thw,
        "pixel_values_videos": encoded.pixel_values_videos,
        "video_grid_thw": encoded.video_grid_thw,
    }
    if processor.family.clip_seconds and encoded.second_per_grid_ts:
        given["second_per_grid_ts"] = torch.tensor(encoded.second_per_grid_ts)
    return given


conversations = pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())


@conversations
@pytest.mark.parametrize("supervise", [True, False])
def test_equal_to_the_modules_rope_index(
    processor: Processor, model: Any, conversation: Conversation, supervise: bool
) -> None:
    encoded = processor.encode(conversation, supervise=supervise)
    given = inputs_of(encoded, processor)
    given = {name: value for name, value in given.items() if "pixel" not in name}
    positions, delta = model.model.get_rope_index(
        attention_mask=torch.ones_like(encoded.input_ids)[None], **given
    )
    assert encoded.position_ids.dtype == torch.int64
    assert encoded.position_ids.shape == (3, len(encoded.input_ids))
    torch.testing.assert_close(encoded.position_ids, positions[:, 0], rtol=0, atol=0)
    assert encoded.rope_delta == delta.item()


@conversations
def test_equal_to_what_the_forward_pass_uses(
    processor: Processor, model: Any, conversation: Conversation
) -> None:
    """The language model inside sees our positions when the whole model is called without any."""
    seen: list[torch.Tensor | None] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["position_ids"])

    encoded = processor.encode(conversation, supervise=True)
    handle = model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.inference_mode():
            logits = model(**inputs_of(encoded, processor)).logits
            ours = model(**inputs_of(encoded, processor), position_ids=encoded.position_ids[:, None]).logits
    finally:
        handle.remove()
    torch.testing.assert_close(ours, logits)
    if seen[0] is not None:  # without media the model leaves it to the language model to count up
        torch.testing.assert_close(encoded.position_ids, seen[0][-3:, 0], rtol=0, atol=0)
    else:
        assert conversation is CONVERSATIONS["text"]


def test_positions_of_an_image_from_first_principles(processor: Processor) -> None:
    conversation = chat([Text("a "), Image(picture(112, 56)), Text(" b")], "yes")
    encoded = processor.encode(conversation, supervise=True)
    first = encoded.kinds.tolist().index(1)
    assert encoded.image_grid_thw is not None
    assert encoded.image_grid_thw.tolist() == [[1, 4, 8]]
    columns = encoded.position_ids.T.tolist()
    assert columns[:first] == [[i, i, i] for i in range(first)]
    window = [[first, first + row, first + column] for row in range(2) for column in range(4)]
    assert columns[first : first + 8] == window
    after = first + 4  # the wider side of the picture
    rest = len(columns) - first - 8
    assert columns[first + 8 :] == [[after + i] * 3 for i in range(rest)]
    assert encoded.rope_delta == after + rest - len(columns) == -4


def test_seconds_between_temporal_patches_follow_the_clip(processor: Processor) -> None:
    for fps, step in ((2.0, 1.0), (4.0, 0.5), (1.0, 2.0)):
        encoded = processor.encode(chat([clip(6, fps=fps), Text("what moves?")]), supervise=False)
        assert encoded.second_per_grid_ts == [pytest.approx(step)]
        if processor.family.clip_seconds:
            times = encoded.position_ids[0][encoded.kinds == 2].unique().tolist()
            # Two positions a second, by the tiny model's configuration.
            assert [time - times[0] for time in times] == [0, int(2 * step), int(4 * step)]


@conversations
def test_count_equals_the_encoded_length(processor: Processor, conversation: Conversation) -> None:
    encoded = processor.encode(conversation, supervise=True)
    count = processor.count(conversation)
    assert count.total == len(encoded.input_ids)
    assert count.vision == encoded.vision_tokens == int((encoded.kinds > 0).sum())
    question = conversation.without_answer()
    assert processor.count(question).total <= count.total


def test_vision_tokens_fit_the_grids(processor: Processor) -> None:
    encoded = processor.encode(CONVERSATIONS["all, in two rounds"], supervise=True)
    assert encoded.image_grid_thw is not None
    assert encoded.video_grid_thw is not None
    assert encoded.pixel_values is not None
    assert encoded.pixel_values_videos is not None
    assert len(encoded.pixel_values) == int(encoded.image_grid_thw.prod(1).sum())
    assert len(encoded.pixel_values_videos) == int(encoded.video_grid_thw.prod(1).sum())
    assert encoded.kinds.eq(1).sum() * 4 == len(encoded.pixel_values)
    assert encoded.kinds.eq(2).sum() * 4 == len(encoded.pixel_values_videos)


def test_count_reads_headers_only(processor: Processor, tmp_path: Path) -> None:
    """A picture cut off after its header can be counted but not encoded."""
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    picture(301, 170).save(whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    good = chat([Image(str(whole)), Text("what shape?")], "a circle")
    bad = chat([Image(str(cut)), Text("what shape?")], "a circle")
    assert processor.count(bad) == processor.count(good)
    assert processor.count(good).total == len(processor.encode(good, supervise=True).input_ids)
    with pytest.raises(SightlineError, match=r"cut\.png"):
        processor.encode(bad, supervise=True)


@pytest.mark.parametrize("seconds", [0.4, 1.3, 3.0])
def test_count_of_a_video_file(processor: Processor, tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, round(seconds * 10), rate=10)
    conversation = chat([Video(str(path)), Text("what moves?")], "nothing")
    encoded = processor.encode(conversation, supervise=True)
    assert processor.count(conversation).total == len(encoded.input_ids)
    limited = chat([Video(str(path), fps=1.0, max_frames=2, max_pixels=56 * 56)], "nothing")
    assert processor.count(limited).total == len(processor.encode(limited, supervise=True).input_ids)
    assert processor.count(limited).vision <= processor.count(conversation).vision


def test_the_checkpoints_sampling_is_used(processor: Processor, family_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, 10, rate=10)
    conversation = chat([Video(str(path)), Text("what moves?")], "nothing")
    folder = tmp_path / "model"
    shutil.copytree(family_folder, folder)
    file = folder / "video_preprocessor_config.json"
    for settings, steps in (
        ({}, 2),
        ({"min_frames": 8}, 4),
        ({"fps": 10}, 5),
        ({"fps": 10, "max_frames": 6}, 3),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        other = load_processor(folder)
        encoded = other.encode(conversation, supervise=True)
        assert encoded.video_grid_thw is not None
        assert encoded.video_grid_thw[0, 0] == steps
        assert other.count(conversation).total == len(encoded.input_ids)
        shutil.copy(family_folder / file.name, file)


def write_video(path: Path, frames: int, rate: int) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(96, 64).rotate(index))))
        container.mux(stream.encode())


def test_families_of_the_fixture_are_all() -> None:
    from tiny import FAMILIES as MADE

    assert set(MADE) == set(FAMILIES)
