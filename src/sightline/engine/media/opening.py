"""From what a caller hands over to what a request needs: token ids, patches, and where each medium stands.

In two steps, because the first waits for disks and the second computes: `fetch` reads the bytes of files and
data: URLs once, `build` hashes these bytes, takes the patches from the image cache or makes them, and
tokenises. Everything here runs in any number of threads.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from sightline.data.conversation import Conversation, Image, Source, Video
from sightline.data.media import DEFAULT, Budget, MediaError, Named, describe, local_path
from sightline.engine.inputs import Prompt, check_text
from sightline.engine.media.fingerprint import medium_key, settings_mark, source_key
from sightline.engine.media.image_cache import ImageCache
from sightline.engine.media.limits import MediaLimits, check_pixels
from sightline.engine.scheduling.request import Medium, Span
from sightline.errors import SightlineError, UsageError
from sightline.models.patches import Layout, Patched, open_medium, patch_medium, plan_medium

if TYPE_CHECKING:
    from sightline.data.vision_spec import VisionSpec
    from sightline.models.processor import Encoded, Processor


@dataclass
class Fetched:
    """A prompt whose media are at hand: `media` are its images, then its videos, by bytes where they were files.

    Clips stay on disk, for they may be large; `stamps` tells whether one was changed between its reads.
    """

    prompt: Prompt
    media: list[Image | Video]
    budget: Budget
    stamps: list[tuple[int, ...] | None]
    seconds: float


@dataclass
class Prepared:
    """What a request is made of; `media` is parallel to `encoded.media`.

    Attributes:
        seconds: "fetch", "decode" and "preprocess" (hashing, patching, tokenising), of this prompt.
    """

    encoded: Encoded
    media: list[Medium]
    spans: list[Span]
    seconds: dict[str, float] = field(default_factory=dict)


class MediaPreparer:
    """Opens the media of prompts for one engine.

    Args:
        cache: of patches; may serve several engines.
        dtype: of the patches that are kept. The tower casts them to the model's anyway, so that one is exact.
        most_tokens: of a prompt; what alone takes more by its header is never decoded.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        limits: MediaLimits,
        cache: ImageCache,
        dtype: torch.dtype,
        most_tokens: int,
    ) -> None:
        self.processor = processor
        self.limits = limits
        self.cache = cache
        self.dtype = dtype
        self.most_tokens = most_tokens
        _settle(processor.tokenizer)
        self._mark = settings_mark(processor.vision, dtype)
        self._tower: str | None = None

    def seen_with(self, vision: VisionSpec, tower: str | None) -> MediaPreparer:
        """The same for prompts of an adapter; pictures that it sees at one size are cut once for all.

        Args:
            vision: how its pictures are brought to the tower.
            tower: tells the features of its own tower from others'; None where it has none.
        """
        if vision == self.processor.vision and tower is None:
            return self
        other = copy.copy(self)  # the tokenizer is settled, and another thread may be using it
        other.processor = copy.copy(self.processor)
        other.processor.vision = vision
        other._mark = settings_mark(vision, self.dtype)
        other._tower = tower
        return other

    def prepare(self, prompt: Prompt, budget: Budget = DEFAULT) -> Prepared:
        """Both steps.

        Raises:
            UsageError: more or larger media than the limits allow, or a broken text.
            SightlineError: a medium cannot be used; the text says which of several.
        """
        return self.build(self.fetch(prompt, budget))

    def fetch(self, prompt: Prompt, budget: Budget = DEFAULT) -> Fetched:
        """Read files and data: URLs into memory. Nothing is decoded.

        Raises:
            UsageError: more media than allowed, or a broken text. MediaError: one cannot be read.
        """
        start = time.perf_counter()
        self.limits.check(prompt)
        check_text(prompt)
        if prompt.text is None and prompt.ids is None:
            prompt = replace(prompt, media=prompt.media.without_answer())
        media: list[Image | Video] = []
        stamps: list[tuple[int, ...] | None] = []
        for name, medium in _named(prompt.media):
            with _naming(name):
                media.append(_read(medium, budget))
                stamps.append(_stamp(media[-1]))
        return Fetched(prompt, media, budget, stamps, time.perf_counter() - start)

    def build(self, fetched: Fetched) -> Prepared:
        """Hash, decode and patch the media, then tokenise the prompt.

        Raises:
            UsageError: a medium is larger than the limits allow.
            SightlineError: a medium cannot be used, or placeholders and media differ in number.
        """
        start, clock = time.perf_counter(), _Clock()
        fetched = replace(fetched, budget=fetched.budget.started())
        prompt = fetched.prompt
        names = [name for name, _ in _named(prompt.media)]
        keys = []
        for name, medium in zip(names, fetched.media, strict=True):
            with _naming(name):
                keys.append(source_key(medium, self._mark, fetched.budget))
        self._check_sizes(fetched, keys, names)
        patched = []
        for index, (name, key) in enumerate(zip(names, keys, strict=True)):
            with _naming(name):
                patched.append(self._patched(fetched, index, key, clock))
        images = [medium for medium in patched if medium.layout.kind == "image"]
        videos = patched[len(images) :]
        built = self.processor.tokenise(
            prompt.media,
            [image.layout for image in images],
            [video.layout for video in videos],
            prompt=prompt.text if prompt.text is not None else prompt.ids,
        )
        encoded = self.processor.assemble(built, images, videos)
        layouts = [medium.layout for medium in patched]
        return Prepared(
            encoded,
            [
                Medium(layout.kind, medium_key(key, layout, self._tower), layout.tokens)
                for key, layout in zip(keys, layouts, strict=True)
            ],
            spans_of(encoded.kinds, layouts),
            {
                "fetch": fetched.seconds,
                "decode": clock.seconds,
                "preprocess": time.perf_counter() - start - clock.seconds,
            },
        )

    def _check_sizes(self, fetched: Fetched, keys: list[bytes], names: list[_Name]) -> None:
        """By headers alone: decoded, what is too large might take more memory than there is."""
        spec, total = self.processor.vision, 0
        pixels = {"image": 0, "video": 0}
        for name, key, medium in zip(names, keys, fetched.media, strict=True):
            kept = self.cache.peek(key)
            with _naming(name):
                layout = kept.layout if kept else plan_medium(spec, medium, fetched.budget)
            self.limits.check_size(spec, layout, str(name) or f"the {layout.kind}")
            total += layout.tokens
            pixels[layout.kind] += layout.pixels
        check_pixels(pixels, fetched.budget)
        if total >= self.most_tokens:
            raise UsageError(
                f"the prompt's images and videos take {total} tokens, which leaves no room for an answer in "
                f"max_model_len {self.most_tokens}; give fewer or lower max_pixels"
            )

    def _patched(self, fetched: Fetched, index: int, key: bytes, clock: _Clock) -> Patched:
        spec, medium = self.processor.vision, fetched.media[index]

        def make() -> Patched:
            with clock:
                opened = open_medium(spec, medium, fetched.budget)
                if _stamp(medium) != fetched.stamps[index]:
                    raise MediaError(f"{describe(medium.source)} was changed while it was read; try again")  # type: ignore[arg-type]
            made = patch_medium(spec, medium, opened)
            return replace(made, patches=made.patches.to(self.dtype))

        return self.cache.get(key, make)


def spans_of(kinds: torch.Tensor, media: Sequence[Layout]) -> list[Span]:
    """Where each medium's features stand.

    Media of one kind that touch are told apart by their token counts; a clip whose temporal patches are
    announced by text has a span for each.

    Args:
        kinds: int64 [T]: 0 text, 1 image, 2 video.
        media: those of one kind in the order of their placeholders.

    Raises:
        ValueError: the placeholders are not as many as the media's tokens.
    """
    waiting = {
        number: [
            [index, layout.tokens]
            for index, layout in reversed(list(enumerate(media)))
            if layout.kind == kind
        ]
        for number, kind in ((1, "image"), (2, "video"))
    }
    spans: list[Span] = []
    start = 0
    values, counts = torch.unique_consecutive(kinds, return_counts=True)
    for kind, count in zip(values.tolist(), counts.tolist(), strict=True):
        end = start + count
        while kind and start < end:
            if not waiting[kind]:
                raise ValueError(f"{end - start} placeholders from token {start} on belong to no medium")
            index, left = waiting[kind][-1]
            length = min(left, end - start)
            spans.append(Span(index, start, length, media[index].tokens - left))
            waiting[kind][-1][1] -= length
            if length == left:
                waiting[kind].pop()
            start += length
        start = end
    if waiting[1] or waiting[2]:
        raise ValueError(f"{len(waiting[1]) + len(waiting[2])} media have fewer placeholders than tokens")
    return spans


def _settle(tokenizer: Any) -> None:
    """Bring a tokenizer to the settings that every call of the engine asks for.

    A call that has to change them first fails while another thread tokenises or decodes ("Already borrowed"). With
    nothing to change, any number of threads may use it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens


@dataclass(frozen=True)
class _Name:
    """What errors call a medium: its kind and number among those of its kind, counted from 0."""

    kind: str
    number: int
    several: bool

    def __str__(self) -> str:
        """One alone needs none."""
        return f"{self.kind} {self.number + 1} of the prompt" if self.several else ""


def _named(media: Conversation) -> Iterator[tuple[_Name, Image | Video]]:
    """The images, then the videos, each with its name."""
    images, videos = media.images, media.videos
    several = len(images) + len(videos) > 1
    for number, image in enumerate(images):
        yield _Name("image", number, several), image
    for number, video in enumerate(videos):
        yield _Name("video", number, several), video


@contextmanager
def _naming(name: _Name) -> Iterator[None]:
    """Say in an error which medium it is about."""
    try:
        yield
    except SightlineError as error:
        kind = error.kind if isinstance(error, MediaError) else "unsupported"
        text = f"{name}: {error}" if name.several else str(error)
        raise MediaError(text, kind, medium=(name.kind, name.number)) from error


def _read(medium: Image | Video, budget: Budget) -> Image | Video:
    """With the bytes of its files in memory, so that what is hashed is what is decoded."""
    if isinstance(medium, Image):
        return replace(medium, source=_bytes(medium.source, budget))
    if isinstance(medium.source, tuple):
        return replace(medium, source=tuple(_bytes(source, budget) for source in medium.source))
    if isinstance(medium.source, str) and local_path(medium.source) is None:
        return replace(medium, source=Named.read(medium.source, budget))
    return medium


def _bytes(source: Source, budget: Budget) -> Source:
    return Named.read(source, budget) if isinstance(source, str) else source


def _stamp(medium: Image | Video) -> tuple[int, ...] | None:
    """What changes when the file of a clip does; None where no file is read again."""
    path = local_path(medium.source) if isinstance(medium.source, str) else None
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class _Clock:
    """Adds up the seconds spent inside it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start
