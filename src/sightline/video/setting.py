"""What a plan was found and measured on, and whether a generation is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sightline.errors import SightlineError, UsageError

_NUMBERS = ("steps", "width", "height", "frames")
_REALS = ("shift", "guidance")


@dataclass(frozen=True)
class Setting:
    """One way to generate. A field that is None (an absent version) is not known and fits everything.

    Attributes:
        steps: denoising steps.
        model: its name, for people; `weights` is what counts.
        weights: `sightline.video.fingerprint.fingerprint` of the transformer.
        scheduler, shift: the scheduler as `Request` names it, and its flow shift.
        width, height, frames: of the video, in pixels and pictures.
        guidance: the scale; 1 or less means that there is no `uncond` branch.
        dtype, device: as torch names the one (`bfloat16`), as the maker names the other (`NVIDIA H200`, `cpu`).
        versions: of the libraries whose kernels were timed, by name.

    Raises:
        UsageError: a value of the wrong type or out of range.
    """

    steps: int
    model: str | None = None
    weights: str | None = None
    scheduler: str | None = None
    shift: float | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    guidance: float | None = None
    dtype: str | None = None
    device: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps is None:
            raise UsageError("steps is missing; give the number of denoising steps")
        for name, value in _given(self):
            if name == "versions":
                good, form = _is_texts(value), "an object of texts by library"
            elif name in _NUMBERS:
                good, form = type(value) is int and value > 0, "a whole number above 0"
            elif name in _REALS:
                good, form = (
                    type(value) in (int, float) and 0 <= value < float("inf"),
                    "a number of 0 or more",
                )
            else:
                good, form = isinstance(value, str) and bool(value), "a text"
            if not good:
                raise UsageError(f"{name} must be {form}, not {value!r}")

    def differences(self, other: Setting) -> list[str]:
        """The fields that both know and that differ, as `steps (50, here 30)`, the number of steps first."""
        mine = dict(_given(self))
        theirs = dict(_given(other))
        pairs = [(name, mine[name], theirs[name]) for name in mine if name in theirs and name != "versions"]
        for library in sorted(set(self.versions) & set(other.versions)):
            pairs.append((f"version of {library}", self.versions[library], other.versions[library]))
        return [f"{name} ({old}, here {new})" for name, old, new in pairs if not _alike(name, old, new)]

    def require(self, other: Setting, *, whose: str = "the plan", anyway: bool = False) -> list[str]:
        """Refuse a generation that is not what this was measured on.

        Args:
            anyway: let everything pass that can be executed; the number of steps cannot differ.

        Returns:
            What differs, for a warning; empty if nothing does.

        Raises:
            SightlineError: the fields that differ.
        """
        differences = self.differences(other)
        if self.steps != other.steps:
            raise SightlineError(
                f"{whose} is for another generation: {'; '.join(differences)}; it says what each of "
                f"{self.steps} steps does, so generate with {self.steps} steps or search a plan for {other.steps}"
            )
        if differences and not anyway:
            raise SightlineError(
                f"{whose} is for another generation: {'; '.join(differences)}; search a plan for this one, or "
                f"use it --plan-anyway and mistrust its figures"
            )
        return differences


def _given(setting: Setting) -> list[tuple[str, Any]]:
    values = [(each.name, getattr(setting, each.name)) for each in fields(setting)]
    return [(name, value) for name, value in values if value is not None]


def _is_texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(part, str) for pair in value.items() for part in pair
    )


def _alike(name: str, old: Any, new: Any) -> bool:
    """A library's second number changes what it computes; what follows mends."""
    if name.startswith("version of "):
        return str(old).split(".")[:2] == str(new).split(".")[:2]
    return bool(old == new)
