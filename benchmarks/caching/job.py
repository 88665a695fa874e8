"""What a worker is asked and answers, as lines of JSON; peers read this too, so it needs nothing of ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """One denoising.

    Attributes:
        method: of the engine, as it names them; `exact` computes every step.
        knobs: of the method.
        inputs: a safetensors file with `noise` [1, C, F, H, W], `cond` and `uncond` [1, L, D], float32.
        output: where the latents go, a safetensors file with `latents`.
        steps, guidance, shift, width, height, frames: as `Request` has them.
        count: count operations, which makes the time worthless.
    """

    method: str
    inputs: str
    output: str
    steps: int
    guidance: float
    shift: float
    width: int
    height: int
    frames: int
    knobs: dict[str, Any] = field(default_factory=dict)
    count: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """What came of a job.

    Attributes:
        seconds: of the loop over the steps.
        operations: floating-point operations of its matrix products and convolutions, where they were counted.
        told: what else the engine has to tell, a calibration for instance.
        error: why there is no result; empty where there is one.
    """

    seconds: float = 0.0
    operations: float | None = None
    told: dict[str, Any] = field(default_factory=dict)
    error: str = ""
