"""One part of a message's content: a text, an image or a video, with the limits a client sets for it.

Nothing is opened here. A client may have its pictures made smaller than the server would, never larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sightline.data.conversation import Image, Part, Text, Video
from sightline.data.vision_spec import VisionSpec
from sightline.server.errors import RequestError

# OpenAI's "low" is a picture of 512 x 512.
_LOW_DETAIL = 512 * 512
_DETAILS = ("low", "high", "auto", "original")
_MOST_FRAMES = 1024  # pictures that one clip may be given as
MOST_PARTS = 4096  # of all messages of a request
_IMAGES, _VIDEOS = ("image_url", "image", "input_image"), ("video_url", "video")
KINDS = ("text", "refusal", *_IMAGES, *_VIDEOS)


def check_count(contents: Iterable[Any], param: str) -> None:
    """Raises RequestError where the lists among `contents` hold more parts than are worth walking through."""
    if sum(len(content) for content in contents if isinstance(content, list)) > MOST_PARTS:
        raise RequestError(
            f"{param} may hold {MOST_PARTS:,} parts in all; join texts that follow one another", param=param
        )


@dataclass(frozen=True)
class PartReader:
    """Reads the parts of one request.

    Attributes:
        spec: the server's own limits.
        fetches: whether web addresses and files may be named; data: URLs always may.
        image, video: what the request says for all of its media.
    """

    spec: VisionSpec
    fetches: bool
    image: Mapping[str, Any]
    video: Mapping[str, Any]
    _places: dict[int, tuple[Part, str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        spec: VisionSpec,
        fetches: bool,
        processor: Mapping[str, Any] | None,
        loading: Mapping[str, Any] | None,
    ) -> PartReader:
        """With a request's `mm_processor_kwargs` and `media_io_kwargs`.

        Raises:
            RequestError: they are not understood.
        """
        common = _with_size(processor or {})
        kinds = {}
        for kind in ("image", "video"):
            own = (loading or {}).get(kind) or {}
            if not isinstance(own, Mapping):
                raise RequestError(
                    f"media_io_kwargs.{kind} must be an object", param=f"media_io_kwargs.{kind}"
                )
            kinds[kind] = {**common, **own}
        # Said for the whole request they are checked even where nothing is shown.
        _numbers(kinds["image"], "mm_processor_kwargs", "min_pixels", "max_pixels")
        _sampling(kinds["video"], "mm_processor_kwargs")
        return cls(spec, fetches, kinds["image"], kinds["video"])

    def read(self, part: Any, where: str) -> Part:
        """A part of a message's content.

        Raises:
            RequestError: it is not understood; `where` is its place.
        """
        if isinstance(part, str):
            return Text(part)
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "refusal") and isinstance(part.get(kind), str):
            return Text(part[kind])
        if kind in _IMAGES:
            name = "image_url" if kind == "input_image" else kind
            return self._noted(self._image(part, name, where), f"{where}.{name}")
        if kind in _VIDEOS:
            return self._noted(self._video(part, kind, where), f"{where}.{kind}")
        raise RequestError(f"{where} must be a part of type {', '.join(KINDS)} with its value", param=where)

    def place(self, medium: Part) -> str:
        """The client's field of a medium that this has read."""
        found = self._places.get(id(medium))
        return "messages" if found is None else found[1]

    def _noted(self, medium: Part, where: str) -> Part:
        # By identity: equal media may stand in several places. The medium is kept, so its id stays its own.
        self._places[id(medium)] = medium, where
        return medium

    def _image(self, part: Mapping[str, Any], kind: str, where: str) -> Image:
        value = part.get(kind)
        source = self._source(value, f"{where}.{kind}")
        limits = _numbers({**self.image, **part}, where, "min_pixels", "max_pixels")
        detail = value.get("detail") if isinstance(value, Mapping) else part.get("detail")
        if detail is not None and detail not in _DETAILS:
            raise RequestError(
                f"{where}.{kind}.detail must be one of {', '.join(_DETAILS)}", param=f"{where}.{kind}.detail"
            )
        if detail == "low" and limits["max_pixels"] is None:
            limits["max_pixels"] = _LOW_DETAIL
        return Image(source, **_within(limits, self.spec.max_pixels, self.spec.min_pixels, where))

    def _video(self, part: Mapping[str, Any], kind: str, where: str) -> Video:
        value = part.get(kind)
        place = f"{where}.{kind}"
        source: Any
        if kind == "video" and isinstance(value, list) and value:
            if len(value) > _MOST_FRAMES:
                raise RequestError(f"{place} may be given as {_MOST_FRAMES} pictures at most", param=place)
            source = tuple(self._source(one, place) for one in value)
        else:
            source = self._source(value, place)
        options = {**self.video, **part}
        for own, other in (("fps", "num_frames"), ("num_frames", "fps")):
            if part.get(own) is not None and part.get(other) is None:
                options.pop(other, None)  # what the request says for all of its clips
        limits = _numbers(options, where, "min_pixels", "max_pixels")
        limits = _within(limits, self.spec.frame_limit, None, where)
        rate, frames = _sampling(options, where)
        if isinstance(source, tuple) and rate == math.inf:
            rate = None  # of given pictures the rate says when they were taken
        most = None if frames is None else min(frames, self.spec.video_max_frames)
        return Video(source, fps=rate, max_frames=most, **limits)

    def _source(self, value: Any, where: str) -> str:
        url = value.get("url") if isinstance(value, Mapping) else value
        scheme = url[:8].lower() if isinstance(url, str) else ""
        if isinstance(url, str) and scheme.startswith("data:"):
            return url
        if self.fetches:
            if isinstance(url, str) and scheme.startswith(("http://", "https://", "file://")):
                return url
            raise RequestError(f"{where} must be a data:, http(s): or file: URL", param=where)
        raise RequestError(
            f"{where} must be a data: URL (data:image/png;base64,...); this server opens no files and "
            "no addresses",
            param=where,
        )


def _within(
    limits: dict[str, int | None], most: int | None, least: int | None, where: str
) -> dict[str, int | None]:
    """A client's limits under the server's."""
    own_most, own_least = limits["max_pixels"], limits["min_pixels"]
    if own_most is not None and own_least is not None and own_least > own_most:
        raise RequestError(
            f"{where}.min_pixels is {own_least}, above max_pixels {own_most}", param=f"{where}.min_pixels"
        )
    if most is not None:
        own_most = None if own_most is None else min(own_most, most)
        own_least = None if own_least is None else min(own_least, own_most or most)
    return {"min_pixels": own_least, "max_pixels": own_most}


def _with_size(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5 writes the limits as `size`."""
    size = options.get("size")
    if not isinstance(size, Mapping):
        return options
    names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    return {**{ours: size[theirs] for ours, theirs in names.items() if theirs in size}, **options}


def _sampling(options: Mapping[str, Any], where: str) -> tuple[float | None, int | None]:
    """Frames a second, and most frames. `num_frames` takes so many, whatever the clip's length."""
    rate = options.get("fps")
    if isinstance(rate, list) and len(rate) == 1:
        rate = rate[0]
    if rate is not None and (
        isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1000
    ):
        raise RequestError(f"{where}.fps must be a number above 0 and at most 1000", param=f"{where}.fps")
    numbers = _numbers(options, where, "max_frames", "num_frames")
    if numbers["num_frames"] is None:
        return None if rate is None else float(rate), numbers["max_frames"]
    if rate is not None:
        raise RequestError(
            f"{where} has both fps and num_frames for a video; keep one of the two",
            param=f"{where}.num_frames",
        )
    return math.inf, numbers["num_frames"]


def _numbers(options: Mapping[str, Any], where: str, *names: str) -> dict[str, int | None]:
    found = {name: options.get(name) for name in names}
    for name, value in found.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise RequestError(f"{where}.{name} must be a whole number from 1", param=f"{where}.{name}")
    return found
