"""Runs that are looked at together: one that is the reference, and what the others differ from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sightline.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.video.fidelity import Fidelity


@dataclass(frozen=True, eq=False)
class Shown:
    """A video and what is told of it.

    Attributes:
        name: of the run, as "every 2 from 20".
        frames: [F, 3, H, W] in [0, 1].
        seconds: what it took; None where nobody knows.
        settings: what it was made with, by name.
        note: a sentence that belongs beside it.
    """

    name: str
    frames: Tensor
    seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Line:
    """What a table tells of one run against its reference, without the frames.

    Attributes:
        title: of the comparison, the prompt.
        run: its name.
        faster: how many times as fast as the reference; None where a time is not known.
    """

    title: str
    run: str
    fidelity: Fidelity
    seconds: float | None = None
    faster: float | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs of one prompt and seed.

    Attributes:
        reference: the exact run, or whatever the others are held against.
        title: tells it from other comparisons of a sheet; the prompt.
        fps: frames a second, for showing them.

    Raises:
        UsageError: frames of another number or size than the reference's, or no frames.
    """

    reference: Shown
    others: tuple[Shown, ...]
    title: str = ""
    fps: int = 16

    def __post_init__(self) -> None:
        if self.fps < 1:
            raise UsageError(f"fps must be 1 or more, not {self.fps}")
        for one in self.runs:
            if one.frames.ndim != 4 or one.frames.shape[1] != 3 or not len(one.frames):
                shape = tuple(one.frames.shape)
                raise UsageError(f"frames of {one.name} must be [frames, 3, height, width], not {shape}")
        for other in self.others:
            check_alike(self.reference, other)

    @property
    def runs(self) -> tuple[Shown, ...]:
        return (self.reference, *self.others)

    @cached_property
    def fidelity(self) -> tuple[Fidelity, ...]:
        """Of each other run against the reference.

        Raises:
            SightlineError: a side is shorter than 16 pixels.
        """
        from sightline.video.fidelity import compare

        return tuple(compare(other.frames, self.reference.frames) for other in self.others)

    @cached_property
    def psnr(self) -> tuple[list[float], ...]:
        """dB of each frame of each other run, at most 100."""
        from sightline.video.fidelity import MOST_PSNR, psnr

        return tuple(
            psnr(other.frames, self.reference.frames).clamp(max=MOST_PSNR).tolist() for other in self.others
        )

    def lines(self) -> list[Line]:
        """What tables tell of it."""
        return [
            Line(self.title, other.name, found, other.seconds, self.faster(other))
            for other, found in zip(self.others, self.fidelity, strict=True)
        ]

    def faster(self, other: Shown) -> float | None:
        """How many times as fast as the reference it was; None where a time is not known."""
        mine, its = self.reference.seconds, other.seconds
        return mine / its if mine and its else None


def check_alike(reference: Shown, other: Shown) -> None:
    """Raises UsageError where two runs cannot be laid over one another, with both numbers."""
    (count, _, height, width), (frames, _, rows, columns) = reference.frames.shape, other.frames.shape
    if count != frames:
        raise UsageError(
            f"{reference.name} has {count} frames and {other.name} {frames}; compare runs of as many frames"
        )
    if (height, width) != (rows, columns):
        raise UsageError(
            f"{reference.name} is {width}x{height} and {other.name} {columns}x{rows}; compare runs of one size"
        )


def difference(frames: Tensor, reference: Tensor, amplify: float) -> Tensor:
    """What differs, as a picture: the absolute difference of each channel times `amplify`, black where equal.

    Both [F, C, H, W] in [0, 1], as the result.
    """
    return ((frames.float() - reference.float()).abs() * amplify).clamp(0, 1)


def chosen_frames(count: int, columns: int, worst: int | None = None) -> list[int]:
    """At most `columns` of `count` frames, evenly from the first to the last; the worst takes the nearest's place."""
    columns = max(1, min(columns, count))
    chosen = [round(index * (count - 1) / max(1, columns - 1)) for index in range(columns)]
    if worst is not None and worst not in chosen:
        chosen[min(range(columns), key=lambda index: abs(chosen[index] - worst))] = worst
    return chosen
