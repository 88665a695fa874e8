"""The denoising loop: from noise to latents, a step at a time, each with its number and branch by name.

diffusers' `WanPipeline` does the same in its `__call__`; here the loop is apart so that guidance can be spread over
groups of cards, a plan has its clock, and a search sees what every step computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Clock = Callable[[int, str], AbstractContextManager[Any]]
Gather = Callable[[dict[str, "Tensor"]], dict[str, "Tensor"]]


@dataclass(frozen=True)
class Step:
    """A step that is done.

    Attributes:
        index, steps: its number from 0, and how many there are.
        timestep, sigma: of its start; the sigma is the share of noise.
        latents: after it, [1, C, F, H, W] in float32.
        velocities: what the model gave, by branch, [1, C, F, H, W] in its dtype.
        seconds: since the step before ended; on an accelerator the work may still be running.
    """

    index: int
    steps: int
    timestep: float
    sigma: float
    latents: Tensor
    velocities: Mapping[str, Tensor]
    seconds: float


def no_clock(step: int, branch: str) -> AbstractContextManager[Any]:
    """For a model without a step cache."""
    return nullcontext()


def denoise(
    model: Any,
    solver: Any,
    latents: Tensor,
    texts: Mapping[str, Tensor],
    *,
    guidance: float,
    clock: Clock = no_clock,
    gather: Gather | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Run every step of the solver.

    Args:
        model: diffusers' Wan transformer.
        solver: with its steps set (`video.solvers`).
        latents: noise, [1, C, F, H, W] in float32.
        texts: by branch, [1, L, D] in the model's dtype; only the branches that this process computes.
        guidance: the guided velocity is `uncond + guidance * (cond - uncond)`, in float32.
        clock: stands around each call of the model with the step's number and the branch.
        gather: makes the velocities of all branches of those of this process.

    Returns:
        The latents after the last step, [1, C, F, H, W] in float32.
    """
    dtype = next(iter(texts.values())).dtype
    # Read once: on an accelerator each number read waits for the device.
    moments, sigmas = solver.timesteps.tolist(), solver.sigmas.tolist()
    before = time.perf_counter()
    for index, moment in enumerate(solver.timesteps):
        # One tensor for both branches: a step cache sees by that that their first attention is the same.
        given, when = latents.to(dtype), moment.expand(latents.shape[0])
        velocities = {}
        for branch, text in texts.items():
            with clock(index, branch):
                velocities[branch] = model(
                    hidden_states=given, timestep=when, encoder_hidden_states=text, return_dict=False
                )[0]
        if gather is not None:
            velocities = gather(velocities)
        latents = solver.step(guided(velocities, guidance), moment, latents, return_dict=False)[0]
        if on_step is not None:
            now = time.perf_counter()
            on_step(
                Step(index, len(moments), moments[index], sigmas[index], latents, velocities, now - before)
            )
            before = now
    return latents


def guided(velocities: Mapping[str, Tensor], guidance: float) -> Tensor:
    """One velocity of those of the branches, in float32."""
    cond = velocities["cond"].float()
    if "uncond" not in velocities:
        return cond
    uncond = velocities["uncond"].float()
    return uncond + guidance * (cond - uncond)
