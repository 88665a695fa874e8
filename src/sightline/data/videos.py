"""Video files through PyAV: size and length from the header, sampled frames with their own times.

The number of frames follows the published definition of qwen-vl-utils (`smart_nframes`): length in seconds
times the wanted rate, between `min_frames` and `max_frames`, never more than the clip has, and even, because
a temporal patch holds two. They are spread evenly from the first frame to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightline.data.conversation import Source, Video
from sightline.data.images import image_size, open_image, verify_image
from sightline.data.media import DEFAULT, Budget, MediaError, describe, opened, sniff
from sightline.data.structure import is_complete
from sightline.data.video_container import VideoHeader, bytes_of, container_of, cut_off, decoded, header_of

if TYPE_CHECKING:
    import PIL.Image

    Transform = Callable[[PIL.Image.Image], PIL.Image.Image]

FPS = 2.0
MIN_FRAMES = 4
MAX_FRAMES = 768
_EVEN = 2  # frames of a temporal patch
# A clip may decode to a few frames fewer than its header says; below this share of them it was cut off.
_ENOUGH = 0.9


@dataclass
class Frames:
    """Sampled frames: RGB pictures of one size, and the time of each in seconds from the first of the clip.

    `sampled_fps` is the rate they stand for: `temporal_patch_size / sampled_fps` is `second_per_grid_ts`.
    """

    images: list[PIL.Image.Image]
    timestamps: list[float]
    sampled_fps: float
    source_fps: float
    total_frames: int


@dataclass(frozen=True)
class VideoPlan:
    """What `load_video` will give, known from the header: the size in pixels and the time of each frame.

    The times are exact for clips of constant frame rate. `decoded` is how many frames have to be decoded for it.
    """

    width: int
    height: int
    timestamps: list[float]
    sampled_fps: float
    decoded: int


def sample_count(
    header: VideoHeader, *, fps: float = FPS, max_frames: int = MAX_FRAMES, min_frames: int = MIN_FRAMES
) -> int:
    """How many frames `load_video` takes of a clip: even and at least 2 (a single frame is taken twice)."""
    most = max(_EVEN, max_frames // _EVEN * _EVEN)
    least = -(-min_frames // _EVEN) * _EVEN
    wanted = min(max(header.frames / header.fps * fps, least), most, header.frames)
    return max(_EVEN, int(wanted) // _EVEN * _EVEN)


def sample_indices(total: int, count: int) -> list[int]:
    """`count` frame numbers spread evenly over `total` frames, the first and the last among them."""
    import numpy as np

    return [int(index) for index in np.rint(np.linspace(0, total - 1, count))]


def video_header(source: Source | tuple[Source, ...] | Video, budget: Budget = DEFAULT) -> VideoHeader:
    """What the container says about its first video stream; no frame is decoded.

    Where the container does not count its frames (mkv, webm, wmv), its packets are counted. For a list of
    frames, the first one's size and `Video.fps` (2 if unset).

    Raises:
        MediaError: missing, not a video we read, without a picture, or over the budget.
    """
    clip = source if isinstance(source, Video) else Video(source)
    if isinstance(clip.source, tuple):
        width, height = image_size(clip.source[0], budget)
        rate = clip.fps or FPS
        return VideoHeader(width, height, rate, len(clip.source), len(clip.source) / rate)
    with container_of(clip.source, budget) as file:
        return header_of(clip.source, file, budget)


def verify_video(
    source: Source | tuple[Source, ...] | Video, budget: Budget = DEFAULT, *, decode: bool = False
) -> VideoHeader:
    """As `video_header`, and find out from the structure, or by decoding, whether the file was cut off.

    Raises:
        MediaError: as `video_header`, or truncated or damaged.
    """
    clip = source if isinstance(source, Video) else Video(source)
    if isinstance(clip.source, tuple):
        return _verify_frames(clip.source, clip, budget, decode)
    header = video_header(clip, budget)
    with opened(bytes_of(clip.source), budget) as file:
        format = sniff(file.read(64)) or ""
        if not is_complete(file, format, file.seek(0, 2)):
            raise cut_off(clip.source)
    if decode:
        with container_of(clip.source, budget) as file:
            frames = sum(1 for _ in decoded(clip.source, file, header, budget))
        if frames < header.frames * _ENOUGH:
            raise cut_off(clip.source)
    return header


def plan_video(
    video: Video | Source,
    *,
    fps: float = FPS,
    max_frames: int = MAX_FRAMES,
    min_frames: int = MIN_FRAMES,
    budget: Budget = DEFAULT,
) -> VideoPlan:
    """How `load_video`, called with the same arguments, will sample a clip; no frame is decoded.

    Raises:
        MediaError: as `video_header`.
    """
    clip = video if isinstance(video, Video) else Video(video)
    most = min(clip.max_frames or max_frames, budget.max_frames)
    if isinstance(clip.source, tuple):
        width, height = image_size(clip.source[0], budget)
        rate = clip.fps or fps
        indices, sampled = _picture_indices(len(clip.source), rate, most)
        return VideoPlan(width, height, [index / rate for index in indices], sampled, len(indices))
    header = video_header(clip, budget)
    count = sample_count(header, fps=clip.fps or fps, max_frames=most, min_frames=min_frames)
    times = [index / header.fps for index in sample_indices(header.frames, count)]
    return VideoPlan(header.width, header.height, times, count / header.frames * header.fps, header.frames)


def load_video(
    video: Video | Source,
    *,
    fps: float = FPS,
    max_frames: int = MAX_FRAMES,
    min_frames: int = MIN_FRAMES,
    budget: Budget = DEFAULT,
    transform: Transform | None = None,
) -> Frames:
    """Sample a clip. `video.fps` and `video.max_frames` go before the arguments.

    One pass over the file; only the sampled frames are kept. `transform` is applied to each kept frame as it
    is decoded (scaling down there keeps memory small).

    Raises:
        MediaError: as `video_header`; truncated or damaged; or the kept frames exceed the budget.
    """
    clip = video if isinstance(video, Video) else Video(video)
    max_frames = min(clip.max_frames or max_frames, budget.max_frames)
    if isinstance(clip.source, tuple):
        return _load_pictures(clip.source, clip.fps or fps, max_frames, budget, transform)
    with container_of(clip.source, budget) as file:
        header = header_of(clip.source, file, budget)
        count = sample_count(header, fps=clip.fps or fps, max_frames=max_frames, min_frames=min_frames)
        if transform is None:
            _check_kept(clip.source, count, header, budget)
        indices = sample_indices(header.frames, count)
        frames = decoded(clip.source, file, header, budget)
        kept = _keep(clip.source, frames, header, indices, transform)
    images, times = [], []
    for index in indices:
        picture, time = kept[index]
        images.append(picture)
        times.append(time)
    return Frames(images, times, count / header.frames * header.fps, header.fps, header.frames)


def _keep(
    source: Source,
    frames: Iterator[tuple[Any, float]],
    header: VideoHeader,
    indices: list[int],
    transform: Transform | None,
) -> dict[int, tuple[PIL.Image.Image, float]]:
    """Frame number -> (picture, seconds). A few frames short of the header, the last one stands in."""
    wanted, last_wanted = set(indices), indices[-1]
    kept: dict[int, tuple[PIL.Image.Image, float]] = {}
    tail = max(int(header.frames * _ENOUGH), 1) - 1
    number, last, last_time = -1, None, 0.0
    for number, (frame, time) in enumerate(frames):
        if number in wanted:
            kept[number] = (_picture(frame, transform), time)
        if number >= tail:
            last, last_time = frame, time
        if number >= last_wanted:
            break
    if last is None:
        raise cut_off(source)
    missing = [index for index in indices if index not in kept]
    if missing:
        stand_in = _picture(last, transform)
        kept.update(dict.fromkeys(missing, (stand_in, last_time)))
    return kept


def _picture(frame: Any, transform: Transform | None) -> PIL.Image.Image:
    picture: PIL.Image.Image = frame.to_image()
    turn = getattr(frame, "rotation", 0) % 360
    if turn:
        picture = picture.rotate(turn, expand=True)  # both count degrees anticlockwise
    return transform(picture) if transform is not None else picture


def _check_kept(source: Source, count: int, header: VideoHeader, budget: Budget) -> None:
    pixels = count * header.width * header.height
    if pixels > budget.max_kept_pixels:
        raise MediaError(
            f"{describe(source)} would keep {count} frames of {header.width}x{header.height} in memory; "
            "lower fps or max_frames",
            "too-large",
        )


def _load_pictures(
    sources: tuple[Source, ...],
    fps: float,
    max_frames: int,
    budget: Budget,
    transform: Transform | None,
) -> Frames:
    """A clip given as pictures taken `fps` times a second; thinned out evenly where there are too many."""
    indices, rate = _picture_indices(len(sources), fps, max_frames)
    images: list[PIL.Image.Image] = []
    size: tuple[int, int] | None = None
    for index in indices:
        picture = open_image(sources[index], budget)
        size = size or picture.size
        if picture.size != size:
            raise _uneven(sources[index], picture.size, size)
        images.append(transform(picture) if transform is not None else picture)
    return Frames(images, [index / fps for index in indices], rate, fps, len(sources))


def _picture_indices(total: int, fps: float, max_frames: int) -> tuple[list[int], float]:
    """Which of the given pictures, and the rate they stand for."""
    count = min(-(-total // _EVEN) * _EVEN, max(_EVEN, max_frames // _EVEN * _EVEN))
    if count <= total:
        return sample_indices(total, count), fps * count / total
    return [*range(total), total - 1], fps  # an odd clip repeats its last frame


def _uneven(source: Source, size: tuple[int, int], first: tuple[int, int]) -> MediaError:
    return MediaError(
        f"{describe(source)} is {size[0]}x{size[1]} but the first frame of its video {first[0]}x{first[1]}; "
        "give frames of one size",
    )


def _verify_frames(sources: tuple[Source, ...], clip: Video, budget: Budget, decode: bool) -> VideoHeader:
    header = video_header(clip, budget)
    for source in sources:
        size = verify_image(source, budget, decode=decode)
        if size != (header.width, header.height):
            raise _uneven(source, size, (header.width, header.height))
    return header
