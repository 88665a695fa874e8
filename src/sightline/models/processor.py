"""What turns a conversation into a model's inputs: everything of a checkpoint but its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sightline.data.conversation import Conversation, Video
from sightline.data.vision import (
    Grid,
    image_grid,
    patch_image,
    patch_video,
    resize_frame,
    tokens,
    video_grid,
    video_size_for,
)
from sightline.data.vision_spec import VisionSpec
from sightline.errors import SightlineError, first_line
from sightline.models.families import Family, family_of
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
        pixel_values, pixel_values_videos: float32 [patches, values] or None.
        image_grid_thw, video_grid_thw: int64 [media, 3] or None.
        second_per_grid_ts: seconds between the temporal patches of each video.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    kinds: torch.Tensor
    position_ids: torch.Tensor
    rope_delta: int
    pixel_values: torch.Tensor | None = None
    image_grid_thw: torch.Tensor | None = None
    pixel_values_videos: torch.Tensor | None = None
    video_grid_thw: torch.Tensor | None = None
    second_per_grid_ts: list[float] | None = None

    @property
    def vision_tokens(self) -> int:
        return int((self.kinds > 0).sum())


@dataclass
class _Clip:
    """A video as the prompt needs it: its grid, seconds of each temporal patch, and the step between them."""

    grid: Grid
    times: list[float]
    seconds_per_patch: float
    patches: Any = None


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
        images = [self._patch_image(image) for image in conversation.images]
        clips = [self._open_clip(video) for video in conversation.videos]
        built = self._build(conversation, [grid for _, grid in images], clips, supervise)
        return self._encoded(built, images, clips)

    def encode_prompt(self, prompt: str | Sequence[int], media: Conversation) -> Encoded:
        """Build a sequence from a prompt that the chat template was applied to: a text, or token ids.

        It holds one placeholder for each of the images and videos of `media`, whose texts are not looked at.

        Raises:
            RowError: placeholders and media differ in number; MediaError: a medium cannot be used.
        """
        images = [self._patch_image(image) for image in media.images]
        clips = [self._open_clip(video) for video in media.videos]
        built = self.prompt.build_prompt(
            prompt,
            media,
            [tokens(self.vision, grid) for _, grid in images],
            [tokens(self.vision, clip.grid) for clip in clips],
            [clip.times for clip in clips] if self.family.timestamps else None,
        )
        return self._encoded(built, images, clips)

    def count(self, conversation: Conversation) -> TokenCount:
        """Tokens of the whole conversation, from the headers of its media alone."""
        grids, clips = self._plan_media(conversation)
        supervise = any(message.role == "assistant" for message in conversation.messages)
        built = self._build(conversation, grids, clips, supervise)
        return TokenCount(len(built.ids), sum(1 for kind in built.kinds if kind))

    def count_vision(self, media: Conversation) -> int:
        """Tokens of its images and videos alone, from their headers.

        Raises:
            MediaError: a header cannot be read.
        """
        grids, clips = self._plan_media(media)
        return sum(tokens(self.vision, grid) for grid in [*grids, *(clip.grid for clip in clips)])

    def _plan_media(self, media: Conversation) -> tuple[list[Grid], list[_Clip]]:
        from sightline.data.images import image_size

        grids = [image_grid(self.vision, *image_size(image.source), image) for image in media.images]
        return grids, [self._plan_clip(video) for video in media.videos]

    def _build(
        self, conversation: Conversation, grids: list[Grid], clips: list[_Clip], supervise: bool
    ) -> Tokens:
        return self.prompt.build(
            conversation,
            [tokens(self.vision, grid) for grid in grids],
            [tokens(self.vision, clip.grid) for clip in clips],
            [clip.times for clip in clips] if self.family.timestamps else None,
            supervise=supervise,
        )

    def _encoded(self, built: Tokens, images: list[tuple[Any, Grid]], clips: list[_Clip]) -> Encoded:
        input_ids, kinds = torch.tensor(built.ids), torch.tensor(built.kinds)
        image_grids = torch.tensor([grid for _, grid in images]) if images else None
        video_grids = torch.tensor([clip.grid for clip in clips]) if clips else None
        seconds = [clip.seconds_per_patch for clip in clips] or None
        positions, delta = self._positions(input_ids, kinds, image_grids, video_grids, seconds)
        return Encoded(
            input_ids=input_ids,
            labels=torch.tensor(built.labels),
            kinds=kinds,
            position_ids=positions,
            rope_delta=delta,
            pixel_values=_joined([patches for patches, _ in images]),
            image_grid_thw=image_grids,
            pixel_values_videos=_joined([clip.patches for clip in clips]),
            video_grid_thw=video_grids,
            second_per_grid_ts=seconds,
        )

    def _patch_image(self, image: Any) -> tuple[Any, Grid]:
        from sightline.data.images import open_image

        return patch_image(self.vision, open_image(image.source), image)

    def _open_clip(self, video: Video) -> _Clip:
        from sightline.data.videos import load_video, plan_video

        plan = plan_video(video, **self._sampling)
        size = video_size_for(self.vision, len(plan.timestamps), plan.width, plan.height, video)
        # Resized as they are decoded: the whole clip at full size may take gigabytes.
        shrink = partial(resize_frame, self.vision, height=size[0], width=size[1])
        frames = load_video(video, **self._sampling, transform=shrink)
        patches, grid = patch_video(self.vision, frames.images, size=size)
        return self._clip(grid, frames.timestamps, frames.sampled_fps, patches)

    def _plan_clip(self, video: Video) -> _Clip:
        from sightline.data.videos import plan_video

        plan = plan_video(video, **self._sampling)
        grid = video_grid(self.vision, len(plan.timestamps), plan.width, plan.height, video)
        return self._clip(grid, plan.timestamps, plan.sampled_fps)

    @property
    def _sampling(self) -> dict[str, Any]:
        vision = self.vision
        return {
            "fps": vision.video_fps,
            "min_frames": vision.video_min_frames,
            "max_frames": vision.video_max_frames,
        }

    def _clip(self, grid: Grid, timestamps: list[float], fps: float, patches: Any = None) -> _Clip:
        group = self.vision.temporal_patch_size
        padded = timestamps + [timestamps[-1]] * (-len(timestamps) % group)
        # A temporal patch is announced by the middle between its first and its last frame.
        times = [(padded[i] + padded[i + group - 1]) / 2 for i in range(0, len(padded), group)]
        return _Clip(grid, times, group / fps, patches)


def _joined(arrays: list[Any]) -> torch.Tensor | None:
    """float32 [patches of all media, values]"""
    if not arrays:
        return None
    return torch.cat([torch.from_numpy(array) for array in arrays])


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
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SightlineError(
            f"cannot read configuration or tokenizer in {folder}: {first_line(error)}"
        ) from error
    _find_template(folder, tokenizer)
    return Processor(folder, family, config, tokenizer, vision)


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
