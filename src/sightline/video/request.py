"""What one generation is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from sightline.errors import UsageError

SCHEDULERS = ("unipc", "dpm++", "euler")
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """One video: everything that, with the model, decides what is in it.

    Attributes:
        prompt, negative_prompt: what to show, and what to keep away from (only with guidance).
        seed: of the noise that it begins with.
        width, height: pixels.
        frames: pictures; one more than a multiple of the model's step in time (4n + 1).
        steps: denoising steps.
        guidance: scale of the difference between the branches with and without the prompt; at 1 or less there is
            only the one with it.
        shift: flow shift, which moves steps towards the noise; larger for larger pictures.
        scheduler: `unipc`, `dpm++` or `euler`.
        fps: pictures a second in the file.

    Raises:
        UsageError: a value of the wrong type or out of range, by name.
    """

    prompt: str
    width: int
    height: int
    frames: int
    steps: int
    guidance: float
    shift: float
    negative_prompt: str = ""
    seed: int = 0
    scheduler: str = "unipc"
    fps: int = 16

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name} must be a text, not {getattr(self, name)!r}")
        if not self.prompt.strip():
            raise UsageError("the prompt is empty; say what the video shall show")
        for name, least, most in (
            ("width", 1, 16384),
            ("height", 1, 16384),
            ("frames", 1, 100_000),
            ("steps", 1, 1000),
            ("fps", 1, 1000),
            ("seed", 0, _LARGEST_SEED),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
        for name, over in (("guidance", -1e-9), ("shift", 0.0)):
            scale = getattr(self, name)
            if type(scale) not in (int, float) or not over < scale <= 1000:
                words = "0 to 1000" if over < 0 else "above 0 to 1000"
                raise UsageError(f"{name} must be a number from {words}, not {scale!r}")
        if self.scheduler not in SCHEDULERS:
            raise UsageError(f"scheduler must be {', '.join(SCHEDULERS)}, not {self.scheduler!r}")

    @property
    def branches(self) -> tuple[str, ...]:
        """`cond`, and with guidance `uncond`."""
        return ("cond", "uncond") if self.guidance > 1 else ("cond",)

    def check(self, multiple: int, temporal: int, positions: int = 1024) -> None:
        """Refuse a size that the model does not have.

        Args:
            multiple: what both sides are multiples of.
            temporal: pictures in one step of the latents in time.
            positions: that the model tells apart in each direction; 1024 in every Wan.

        Raises:
            UsageError: the nearest sizes that it has.
        """
        for name in ("width", "height"):
            value = getattr(self, name)
            if value % multiple:
                raise UsageError(
                    f"{name} must be a multiple of {multiple} for this model, not {value}; take "
                    f"{_around(value, multiple, 0)}"
                )
        if self.frames % temporal != 1 % temporal:
            raise UsageError(
                f"frames must be {temporal}n + 1 for this model, not {self.frames}; take "
                f"{_around(self.frames, temporal, 1)}"
            )
        most = {"width": multiple * positions, "height": multiple * positions}
        for name, limit in (most | {"frames": temporal * (positions - 1) + 1}).items():
            if getattr(self, name) > limit:
                raise UsageError(f"{name} must be at most {limit} for this model, not {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Request:
        """The request that `to_json` wrote.

        Raises:
            UsageError: a field is missing, unknown or wrong.
        """
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UsageError(
                f"request has no field {unknown[0]!r}; the fields are {', '.join(sorted(known))}"
            )
        try:
            return cls(**data)
        except TypeError as error:
            missing = sorted(known - set(data) - {"negative_prompt", "seed", "scheduler", "fps"})
            raise UsageError(f"request lacks {', '.join(missing)}") from error


def _around(value: int, multiple: int, rest: int) -> str:
    below = (value - rest) // multiple * multiple + rest
    return f"{below} or {below + multiple}" if below > 0 else f"{below + multiple}"
