"""The solvers of the flow's differential equation, diffusers' own, made for one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch

    from sightline.video.request import Request


# What a model may say of its own solver. Not how its noise levels are spread: they are those of the request; nor that
# it draws noise in its steps, which no seed would decide.
_OWN = (
    "solver_order",
    "solver_type",
    "predict_x0",
    "disable_corrector",
    "lower_order_final",
    "euler_at_final",
)


def make_solver(request: Request, model_scheduler: Any, device: torch.device) -> Any:
    """A fresh scheduler with its steps set; it keeps history, so it serves one generation.

    Args:
        model_scheduler: the one that came with the model; what it says of its own solver (order, corrector) holds
            where the same solver is asked for.

    Raises:
        SightlineError: the model is no flow model, or the steps cannot be told apart.
    """
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    given = dict(model_scheduler.config)
    if given.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise SightlineError(
            f"the model's scheduler predicts {given['prediction_type']}, and Wan's transformers predict a flow; "
            f"set prediction_type to flow_prediction in scheduler/scheduler_config.json"
        )
    trained = {"num_train_timesteps": int(given.get("num_train_timesteps", 1000))}
    solver: Any
    if request.scheduler == "euler":
        solver = FlowMatchEulerDiscreteScheduler(**trained, shift=request.shift)
    else:
        kind = UniPCMultistepScheduler if request.scheduler == "unipc" else DPMSolverMultistepScheduler
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": request.shift}
        own = {name: given[name] for name in _OWN if name in given and isinstance(model_scheduler, kind)}
        solver = kind.from_config(trained | own | flow)
    solver.set_timesteps(request.steps, device=device)
    if len(solver.timesteps) != request.steps:
        raise SightlineError(
            f"{request.scheduler} makes {len(solver.timesteps)} steps of {request.steps}; ask for fewer"
        )
    solver.set_begin_index(0)
    return solver
