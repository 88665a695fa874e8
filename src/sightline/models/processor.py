"""What turns a conversation into a model's inputs: everything of a checkpoint but its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sightline.data.conversation import Conversation, Image, Message, Text, Video
from sightline.data.vision_spec import VisionSpec
from sightline.errors import SightlineError, first_line
from sightline.files import check_fetched
from sightline.models.families import Family, family_of
from sightline.models.patches import Layout, Patched, joined, open_medium, patch_medium, plan_medium
from sightline.models.positions import RopePositions
from sightline.models.prompt import PromptBuilder, Tokens


@dataclass(frozen=True)
class TokenCount:
    """Tokens a conversation takes, and how many of them stand for images and videos."""

    total: int
    vision: int


@dataclass
class Encoded:
    """One sequence, ready for the model; all tensors on the CPU.

    Attributes:
        input_ids, labels, kinds: int64 [T]; labels are -100 where nothing is learnt; kinds are 0 text,
            1 image, 2 video.
        position_ids: int64 [3, T], M-RoPE; rope_delta is added to a token's index when generating.
        images, videos: the media, each in the order of their placeholders.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    kinds: torch.Tensor
    position_ids: torch.Tensor
    rope_delta: int
    images: list[Patched] = field(default_factory=list)
    videos: list[Patched] = field(default_factory=list)

    @property
    def media(self) -> list[Patched]:
        """The images, then the videos."""
        return [*self.images, *self.videos]

    @property
    def pixel_values(self) -> torch.Tensor | None:
        """float [patches of all images, values] or None; joined anew by each call."""
        return joined(self.images)

    @property
    def pixel_values_videos(self) -> torch.Tensor | None:
        """As `pixel_values`, of the videos."""
        return joined(self.videos)

    @property
    def image_grid_thw(self) -> torch.Tensor | None:
        """int64 [images, 3] or None"""
        return _grids([image.layout for image in self.images])

    @property
    def video_grid_thw(self) -> torch.Tensor | None:
        """int64 [videos, 3] or None"""
        return _grids([video.layout for video in self.videos])

    @property
    def second_per_grid_ts(self) -> list[float] | None:
        """Seconds between the temporal patches of each video, or None."""
        return _seconds([video.layout for video in self.videos])

    @property
    def vision_tokens(self) -> int:
        return int((self.kinds > 0).sum())


class Processor:
    """Tokenizer, chat template, vision settings and positions of one checkpoint."""

    def __init__(self, folder: Path, family: Family, config: Any, tokenizer: Any, vision: VisionSpec) -> None:
        self.folder = folder
        self.family = family
        self.config = config
        self.tokenizer = tokenizer
        self.vision = vision
        self.prompt = PromptBuilder(tokenizer, str(folder))
        self._positions = RopePositions(family, config)

    def encode(self, conversation: Conversation, *, supervise: bool) -> Encoded:
        """Open the media and build a sequence.

        With `supervise` the whole conversation with labels on the assistant's tokens, otherwise the
        conversation up to its last answer and the opening of the next one.

        Raises:
            RowError: the row cannot be used; MediaError: a medium cannot.
        """
        if not supervise:
            conversation = conversation.without_answer()
        images = [self.patch(image) for image in conversation.images]
        videos = [self.patch(video) for video in conversation.videos]
        built = self.tokenise(conversation, _layouts(images), _layouts(videos), supervise=supervise)
        return self.assemble(built, images, videos)

    def encode_prompt(self, prompt: str | Sequence[int], media: Conversation) -> Encoded:
        """Build a sequence from a prompt that the chat template was applied to: a text, or token ids.

        It holds one placeholder for each of the images and videos of `media`, whose texts are not looked at.

        Raises:
            RowError: placeholders and media differ in number; MediaError: a medium cannot be used.
        """
        images = [self.patch(image) for image in media.images]
        videos = [self.patch(video) for video in media.videos]
        built = self.tokenise(media, _layouts(images), _layouts(videos), prompt=prompt)
        return self.assemble(built, images, videos)

    def tokenise(
        self,
        conversation: Conversation,
        images: list[Layout],
        videos: list[Layout],
        *,
        prompt: str | Sequence[int] | None = None,
        supervise: bool = False,
    ) -> Tokens:
        """The token ids of `encode`, or of `encode_prompt` where there is a prompt, from what the media take.

        Of the processor this alone uses the tokenizer, which refuses to be used by two threads at once.

        Raises:
            RowError: the row cannot be used, or placeholders and media differ in number.
        """
        counts = [image.tokens for image in images], [video.tokens for video in videos]
        times = [video.times for video in videos] if self.family.timestamps else None
        if prompt is not None:
            return self.prompt.build_prompt(prompt, conversation, *counts, times)
        return self.prompt.build(conversation, *counts, times, supervise=supervise)

    def assemble(self, built: Tokens, images: list[Patched], videos: list[Patched]) -> Encoded:
        """The sequence of token ids and the media that they have room for, in their order."""
        input_ids, kinds = torch.tensor(built.ids), torch.tensor(built.kinds)
        clips = _layouts(videos)
        positions, delta = self._positions(
            input_ids, kinds, _grids(_layouts(images)), _grids(clips), _seconds(clips)
        )
        return Encoded(
            input_ids=input_ids,
            labels=torch.tensor(built.labels),
            kinds=kinds,
            position_ids=positions,
            rope_delta=delta,
            images=images,
            videos=videos,
        )

    def patch(self, medium: Image | Video) -> Patched:
        """Open an image or clip and cut it into patches.

        Raises:
            MediaError: it cannot be used. SightlineError: the model refuses its shape.
        """
        return patch_medium(self.vision, medium, open_medium(self.vision, medium))

    def plan(self, medium: Image | Video) -> Layout:
        """What a medium takes in a prompt, from its header alone.

        Raises:
            MediaError: the header cannot be read. SightlineError: the model refuses its shape.
        """
        return plan_medium(self.vision, medium)

    def count(self, conversation: Conversation) -> TokenCount:
        """Tokens of the whole conversation, from the headers of its media alone."""
        images = [self.plan(image) for image in conversation.images]
        videos = [self.plan(video) for video in conversation.videos]
        supervise = any(message.role == "assistant" for message in conversation.messages)
        built = self.tokenise(conversation, images, videos, supervise=supervise)
        return TokenCount(len(built.ids), sum(1 for kind in built.kinds if kind))

    def count_vision(self, media: Conversation) -> int:
        """Tokens of its images and videos alone, from their headers.

        Raises:
            MediaError: a header cannot be read.
        """
        return sum(self.plan(medium).tokens for medium in media.parts() if isinstance(medium, (Image, Video)))


def _layouts(media: list[Patched]) -> list[Layout]:
    return [medium.layout for medium in media]


def _grids(media: list[Layout]) -> torch.Tensor | None:
    return torch.tensor([medium.grid for medium in media]) if media else None


def _seconds(media: list[Layout]) -> list[float] | None:
    return [medium.seconds_per_patch for medium in media] or None


def load_processor(
    folder: str | Path, *, max_pixels: int | None = None, min_pixels: int | None = None
) -> Processor:
    """Read all of a checkpoint folder but its weights.

    Raises:
        SightlineError: not a checkpoint of a supported family, or without tokenizer or chat template.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(folder)
    family = family_of(folder)
    vision = VisionSpec.from_folder(folder, family.model_type, max_pixels=max_pixels, min_pixels=min_pixels)
    _check_tokenizer(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SightlineError(
            f"cannot read configuration or tokenizer in {folder}: {first_line(error)}"
        ) from error
    _find_template(folder, tokenizer)
    processor = Processor(folder, family, config, tokenizer, vision)
    _check_template(processor)
    return processor


def _check_tokenizer(folder: Path) -> None:
    """What transformers says of a folder without a tokenizer names none of the files that it looks for."""
    path = folder / "tokenizer.json"
    if path.is_file():
        check_fetched(path)
    elif not (folder / "vocab.json").is_file():
        raise SightlineError(f"{folder} has no tokenizer.json; copy it from the original checkpoint")


def _check_template(processor: Processor) -> None:
    """Raises SightlineError where the chat template is no template at all: each request would fail of it."""
    from jinja2 import TemplateSyntaxError

    try:
        processor.prompt.render([Message("user", [Text("?")])], generate=True)
    except SightlineError as error:
        fault = error.__cause__
        if isinstance(fault, TemplateSyntaxError):
            raise SightlineError(
                f"the chat template in {processor.folder} is broken in line {fault.lineno}: {first_line(fault)}; "
                "copy chat_template.jinja from the original checkpoint"
            ) from fault


def _find_template(folder: Path, tokenizer: Any) -> None:
    """Old checkpoints keep the template beside the tokenizer, in a file the tokenizer does not read."""
    import json

    if tokenizer.chat_template:
        return
    path = folder / "chat_template.json"
    if path.exists():
        try:
            tokenizer.chat_template = json.loads(path.read_text(encoding="utf-8"))["chat_template"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SightlineError(
                f"{path} holds no chat template; copy it from the original checkpoint"
            ) from error
        return
    raise SightlineError(
        f"{folder} has no chat template; copy chat_template.jinja from the original checkpoint"
    )
