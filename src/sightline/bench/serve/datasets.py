"""Where the prompts come from: random texts and pictures, rows of a jsonl file, or a folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sightline.bench.serve.pictures import FORMATS, Sizes, random_picture
from sightline.bench.serve.prompts import Prompt, question
from sightline.bench.serve.words import Count, random_text
from sightline.errors import SightlineError, UsageError
from sightline.progress import Progress, note

RANDOM, RANDOM_MM = "random", "random-mm"


@dataclass(frozen=True)
class DataSettings:
    """What is asked.

    Attributes:
        dataset: "random" (text), "random-mm" (pictures too), a jsonl or json file of rows, or a folder of pictures.
        input_len, output_len: tokens of a random text, and of an answer at most.
        range_ratio: lengths are drawn from length x (1 - ratio) to length x (1 + ratio).
        prefix_len: tokens at the beginning that all random texts share.
        images: pictures of a random prompt; sizes, image_format: theirs.
        repeat_images: so many different pictures are made and taken in turn; 0 makes each one new.
        text: the question of a folder's pictures.
    """

    dataset: str = RANDOM
    input_len: int = 256
    output_len: int = 128
    range_ratio: float = 0.0
    prefix_len: int = 0
    images: int = 1
    sizes: Sizes = Sizes(((448, 448),), (1.0,))  # noqa: RUF009 - frozen
    image_format: str = "jpeg"
    repeat_images: int = 0
    text: str = "Describe this picture."

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--random-input-len", self.input_len, 0),
            ("--random-output-len", self.output_len, 1),
            ("--shared-prefix-len", self.prefix_len, 0),
            ("--images-per-request", self.images, 0),
            ("--repeat-images", self.repeat_images, 0),
        ):
            if value < least:
                raise UsageError(f"{name} must be {least} or more, not {value}")
        if not 0 <= self.range_ratio < 1:
            raise UsageError(f"--random-range-ratio must be from 0 to below 1, not {self.range_ratio}")
        if self.image_format not in FORMATS:
            raise UsageError(f"--image-format is {self.image_format!r}; write {' or '.join(FORMATS)}")

    @property
    def is_random(self) -> bool:
        return self.dataset in (RANDOM, RANDOM_MM)

    @property
    def has_pictures(self) -> bool:
        return self.dataset == RANDOM_MM and self.images > 0


class PromptMaker:
    """Makes prompts, new ones at each call where they are random."""

    def __init__(self, settings: DataSettings, seed: int, count: Count | None = None) -> None:
        """`count` counts the tokens of a text; without it they are counted as words.

        Raises:
            SightlineError: the dataset is not there, or has nothing to ask.
        """
        import numpy as np

        self.settings = settings
        self._random = np.random.default_rng(seed)
        self._count = count
        self._rows: list[Prompt] | None = None if settings.is_random else _read(settings)
        self._next = 0
        self._prefix: str | None = None
        self._kept: list[bytes] = []

    @property
    def rows(self) -> int | None:
        """How many prompts there are; None for as many as are asked for."""
        return None if self._rows is None else len(self._rows)

    async def make(self, count: int) -> list[Prompt]:
        """The next `count` prompts; a dataset begins again when it is used up."""
        if self._rows is not None:
            return [self._row() for _ in range(count)]
        prompts = []
        with Progress("making prompts", count) as progress:
            for _ in range(count):
                prompts.append(await self._random_prompt())
                progress.advance()
        return prompts

    def _row(self) -> Prompt:
        assert self._rows is not None
        if self._next == len(self._rows):
            note(f"the dataset has {len(self._rows)} prompts; they are asked again, which caches will notice")
        row = self._rows[self._next % len(self._rows)]
        self._next += 1
        return row

    async def _random_prompt(self) -> Prompt:
        settings = self.settings
        tokens, answer = self._length(settings.input_len), max(self._length(settings.output_len), 1)
        if self._prefix is None and settings.prefix_len:
            self._prefix = await random_text(self._random, settings.prefix_len, self._count) + " "
        text = (self._prefix or "") + await random_text(self._random, tokens, self._count)
        pictures = [self._picture() for _ in range(settings.images)] if settings.has_pictures else []
        return question(text, pictures, answer)

    def _length(self, middle: int) -> int:
        spread = self.settings.range_ratio
        low, high = int(middle * (1 - spread)), int(middle * (1 + spread))
        return int(self._random.integers(low, high + 1))

    def _picture(self) -> bytes:
        settings = self.settings
        if settings.repeat_images and len(self._kept) == settings.repeat_images:
            self._kept.append(self._kept.pop(0))
            return self._kept[-1]
        picture = random_picture(self._random, settings.sizes.choose(self._random), settings.image_format)
        if settings.repeat_images:
            self._kept.append(picture)
        return picture


def _read(settings: DataSettings) -> list[Prompt]:
    from sightline.data.media import IMAGE_SUFFIXES
    from sightline.data.rows import load_conversations

    path = Path(settings.dataset)
    if not path.exists():
        raise SightlineError(
            f"--dataset {path} is not there; write {RANDOM}, {RANDOM_MM}, a jsonl file or a folder of pictures"
        )
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        prompts = [question(settings.text, [file.read_bytes()], settings.output_len) for file in files]
    else:
        conversations = [one.without_answer() for one in load_conversations(path)]
        prompts = [Prompt(one, settings.output_len) for one in conversations if one.messages]
    if not prompts:
        raise SightlineError(f"--dataset {path} holds no {'pictures' if path.is_dir() else 'questions'}")
    return prompts


def without_pictures(settings: DataSettings) -> DataSettings:
    """For the first request to a server, which asks only whether it answers."""
    return replace(settings, dataset=RANDOM, input_len=4, output_len=2, prefix_len=0)


__all__ = ["RANDOM", "RANDOM_MM", "DataSettings", "Prompt", "PromptMaker", "without_pictures"]
