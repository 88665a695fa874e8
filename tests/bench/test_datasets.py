"""What is asked."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from sightline.bench.serve.datasets import DataSettings, PromptMaker
from sightline.bench.serve.pictures import Sizes, random_picture
from sightline.bench.serve.prompts import CHAT, Prompt
from sightline.bench.serve.words import random_text
from sightline.errors import SightlineError, UsageError


def make(count: int, seed: int = 1, counter: Any = None, **settings: Any) -> list[Prompt]:
    return asyncio.run(PromptMaker(DataSettings(**settings), seed, counter).make(count))


def texts_of(prompts: list[Prompt]) -> list[str]:
    return [prompt.conversation.messages[0].text for prompt in prompts]


async def uneven(text: str) -> int:
    """A tokenizer for which a word of seven letters and more is two tokens."""
    return sum(1 + (len(word) > 6) for word in text.split())


@pytest.mark.parametrize("tokens", [1, 2, 17, 300])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_texts_have_exactly_so_many_tokens(tokens: int, seed: int) -> None:
    text = asyncio.run(random_text(np.random.default_rng(seed), tokens, uneven))
    assert asyncio.run(uneven(text)) == tokens


def test_texts_of_a_real_tokenizer() -> None:
    from tiny import make_tokenizer

    tokenizer = make_tokenizer()

    async def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    for seed in range(5):
        text = asyncio.run(random_text(np.random.default_rng(seed), 200, count))
        assert abs(asyncio.run(count(text)) - 200) <= 1


def test_texts_without_a_counter_have_so_many_words() -> None:
    prompts = make(20, input_len=30, output_len=7)
    assert [prompt.words for prompt in prompts] == [30] * 20
    assert len(set(texts_of(prompts))) == 20
    assert {prompt.output_tokens for prompt in prompts} == {7}
    assert texts_of(make(3)) == texts_of(make(3))
    assert texts_of(make(3)) != texts_of(make(3, seed=2))


def test_lengths_spread_and_prefixes_are_shared() -> None:
    prompts = make(200, input_len=10, output_len=100, range_ratio=0.5, prefix_len=6)
    lengths = [prompt.words - 6 for prompt in prompts]
    assert (min(lengths), max(lengths)) == (5, 15)
    assert {50 <= prompt.output_tokens <= 150 for prompt in prompts} == {True}
    assert len({tuple(text.split()[:6]) for text in texts_of(prompts)}) == 1
    assert len({tuple(text.split()[6:]) for text in texts_of(prompts)}) == 200


def test_pictures_are_new_and_of_the_sizes_asked_for() -> None:
    sizes = Sizes.read("64x32:3, 32x48:1")
    prompts = make(80, dataset="random-mm", sizes=sizes, images=2, input_len=2)
    sources = [image.source for prompt in prompts for image in prompt.conversation.images]
    assert len(set(sources)) == 160
    found = Counter(PIL.Image.open(io.BytesIO(source)).size for source in sources)
    assert set(found) == {(64, 32), (32, 48)}
    assert 2 < found[64, 32] / found[32, 48] < 4.5


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_a_picture_has_the_bytes_of_a_photograph(format: str) -> None:
    data = random_picture(np.random.default_rng(0), (224, 160), format)
    picture = PIL.Image.open(io.BytesIO(data))
    assert (picture.format, picture.size, picture.mode) == (format.upper(), (224, 160), "RGB")
    assert len(data) > 224 * 160 * 0.1
    assert np.asarray(picture).std() > 20


def test_few_pictures_taken_in_turn() -> None:
    prompts = make(7, dataset="random-mm", sizes=Sizes.read("32x32"), repeat_images=3, input_len=2)
    sources = [prompt.conversation.images[0].source for prompt in prompts]
    assert len(set(sources)) == 3
    assert sources[:3] == sources[3:6]


@pytest.mark.parametrize("text", ["448", "0x3", "3x99999", "3x3:0", "3x3,", ""])
def test_sizes_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="--random-image-size"):
        Sizes.read(text)


def test_rows_of_a_file_with_their_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "Look: <image>what?"},
                {"role": "assistant", "content": "Red."},
            ],
            "images": ["a.png"],
        },
        {"messages": [{"role": "user", "content": "two"}]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = make(5, dataset=str(tmp_path / "rows.jsonl"), output_len=9)
    assert "asked again" in capsys.readouterr().err
    body = json.loads(prompts[2].body(CHAT, {"model": "m"}))
    system, user = body["messages"]  # its answer is not asked
    assert system == {"role": "system", "content": "Be short."}
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text"]
    assert user["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (body["max_tokens"], body["model"]) == (9, "m")
    assert json.loads(prompts[1].body(CHAT, {}))["messages"] == [{"role": "user", "content": "two"}]


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "notes.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("none")
        else:
            PIL.Image.new("RGB", (8, 8)).save(tmp_path / name)
    maker = PromptMaker(DataSettings(dataset=str(tmp_path), text="What?"), 0)
    assert maker.rows == 2
    first, _ = asyncio.run(maker.make(2))
    assert first.conversation.images[0].source == (tmp_path / "a.png").read_bytes()
    assert first.conversation.messages[0].text == "What?"


def test_datasets_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="is not there; write random"):
        PromptMaker(DataSettings(dataset=str(tmp_path / "absent")), 0)
    with pytest.raises(SightlineError, match="holds no pictures"):
        PromptMaker(DataSettings(dataset=str(tmp_path)), 0)
    for settings, words in (
        ({"output_len": 0}, "--random-output-len"),
        ({"range_ratio": 1.0}, "--random-range-ratio"),
        ({"image_format": "gif"}, "--image-format"),
    ):
        with pytest.raises(UsageError, match=words):
            DataSettings(**settings)  # type: ignore[arg-type]
