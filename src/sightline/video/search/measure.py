"""Runs that are measured once: the exact generations, the probes and the trials of plans, each a record on the disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sightline.errors import SightlineError
from sightline.video.fidelity import compare, relative_error
from sightline.video.plan import Plan
from sightline.video.search.goal import Trial
from sightline.video.search.record import ProbeRecord
from sightline.video.search.state import State
from sightline.video.setting import Setting

if TYPE_CHECKING:
    from torch import Tensor

ALTERNATE = 6  # trials of a prompt between two timings of its exact run
BROKEN = 1e9  # a latent error that is not finite
_KEPT = 4  # decoded references in memory


@dataclass(frozen=True)
class Subject:
    """A prompt and a seed."""

    prompt: str
    seed: int

    def key(self) -> list[Any]:
        return [self.prompt, self.seed]


@dataclass(frozen=True)
class Generation:
    """Final latents, [1, C, F, H, W] in host memory, and the seconds of text and denoising."""

    latents: Tensor
    text: float
    denoise: float


class Runner(Protocol):
    """What generates."""

    def setting(self) -> Setting:
        """Of every generation but those of fewer steps."""

    def run(self, plan: Plan | None, subject: Subject) -> Generation:
        """One generation; exact without a plan. A plan of fewer steps than the setting's is generated with those."""

    def probe(self, subject: Subject, steps: int) -> ProbeRecord:
        """One generation of so many steps that skips nothing, looked at."""

    def decode(self, latents: Tensor) -> tuple[Tensor, float]:
        """Frames [F, 3, H, W] in [0, 1] and the seconds that took."""


class Measure:
    """What a runner gives, once.

    Args:
        on_run: told before each generation, for a progress bar.
    """

    def __init__(self, runner: Runner, state: State, on_run: Callable[[], None] = lambda: None) -> None:
        self.runner, self.state, self.on_run = runner, state, on_run
        self.setting = runner.setting()
        self.spent = 0.0  # seconds of all generations so far, recorded ones too
        self._frames: OrderedDict[Subject, Tensor] = OrderedDict()
        self._ordinals: dict[Subject, int] = {}
        self._latents: dict[Subject, Tensor] = {}

    def exact(self, subject: Subject) -> Mapping[str, float]:
        """Seconds of the reference: `text`, `denoise`, `decode`."""
        record = self.state.get("exact", subject.key())
        if record is None or self.state.get_arrays("latents", subject.key()) is None:
            self.on_run()
            made = self.runner.run(None, subject)
            frames, decode = self.runner.decode(made.latents)
            self._keep(subject, frames)
            if not bool(made.latents.isfinite().all()):
                raise SightlineError(
                    f"the exact generation of {subject.prompt!r} is not finite; generate it without a plan and look at "
                    f"it, and use --dtype fp32 if it is broken"
                )
            self.state.put_arrays("latents", subject.key(), {"latents": made.latents.numpy()})
            record = {"text": made.text, "denoise": made.denoise, "decode": decode}
            self.state.put("exact", subject.key(), record)
        self.spent += sum(record.values())
        return record

    def latents(self, subject: Subject) -> Tensor:
        """The reference's, of `exact`."""
        import torch

        if subject not in self._latents:
            arrays = self.state.get_arrays("latents", subject.key())
            if arrays is None:
                self.exact(subject)
                arrays = self.state.get_arrays("latents", subject.key())
            assert arrays is not None
            self._latents[subject] = torch.from_numpy(arrays["latents"])
        return self._latents[subject]

    def frames(self, subject: Subject) -> Tensor:
        """The reference's frames; the last few stay in memory."""
        if subject not in self._frames:
            self._keep(subject, self.runner.decode(self.latents(subject))[0])
        self._frames.move_to_end(subject)
        return self._frames[subject]

    def probe(self, subject: Subject, steps: int) -> ProbeRecord:
        key = [*subject.key(), steps]
        arrays = self.state.get_arrays("probe", key)
        if arrays is None:
            self.on_run()
            record = self.runner.probe(subject, steps)
            self.state.put_arrays("probe", key, record.arrays())
            return record
        return ProbeRecord.from_arrays(arrays)

    def trial(self, plan: Plan, subject: Subject, *, decode: bool = True) -> Trial:
        """A plan's generation, timed beside an exact one.

        Args:
            decode: measure the frames as well, now or when it is asked for again; the latents wait on the disk.
        """
        ordinal = self._ordinals.get(subject, 0)
        self._ordinals[subject] = ordinal + 1
        key = [identity_of(plan), *subject.key()]
        record = self.state.get("run", key)
        if record is None:
            record = self._run(plan, subject, key, self._timing(subject, ordinal // ALTERNATE))
        if decode and not record["fidelity"]:
            record = record | {"fidelity": self._decoded(subject, key)}
            self.state.put("run", key, record)
            self.state.drop_arrays("run", key)
        self.spent += record["total"]
        # What is not asked for is not told, though another candidate with the same plan may have had it measured.
        return Trial(**record) if decode else Trial(**record | {"fidelity": {}})

    def video(self, plan: Plan, subject: Subject) -> Tensor:
        """Frames of a plan, generated again, to be shown."""
        self.on_run()
        return self.runner.decode(self.runner.run(plan, subject).latents)[0]

    def _timing(self, subject: Subject, group: int) -> float:
        """Seconds of the exact denoising loop about now: a drifting machine must not decide."""
        key = [*subject.key(), group]
        record = self.state.get("timing", key)
        if record is None:
            self.on_run()
            record = {"denoise": self.runner.run(None, subject).denoise}
            self.state.put("timing", key, record)
        return float(record["denoise"])

    def _run(self, plan: Plan, subject: Subject, key: Any, exact_seconds: float) -> dict[str, Any]:
        reference = self.exact(subject)
        self.on_run()
        made = self.runner.run(plan, subject)
        around = made.text + reference["decode"]
        error = relative_error(made.latents, self.latents(subject))
        record = {
            "seconds": made.denoise,
            "exact_seconds": exact_seconds,
            "total": made.denoise + around,
            "exact_total": exact_seconds + around,
            # What is broken sorts last.
            "latent_error": error if np.isfinite(error) else BROKEN,
            "fidelity": {},
        }
        self.state.put_arrays("run", key, {"latents": made.latents.nan_to_num().numpy()})
        self.state.put("run", key, record)
        return record

    def _decoded(self, subject: Subject, key: Any) -> dict[str, float]:
        import torch

        arrays = self.state.get_arrays("run", key)
        if arrays is None:
            raise SightlineError(
                f"{self.state.folder} lacks the latents of a run that is not measured yet; remove the folder and "
                f"search again"
            )
        frames, _ = self.runner.decode(torch.from_numpy(arrays["latents"]))
        return compare(frames, self.frames(subject)).numbers()

    def _keep(self, subject: Subject, frames: Tensor) -> None:
        self._frames[subject] = frames
        while len(self._frames) > _KEPT:
            self._frames.popitem(last=False)


def identity_of(plan: Plan) -> dict[str, Any]:
    """What decides a plan's generation."""
    data = plan.to_json()
    return {name: data.get(name) for name in ("actions", "fits", "order", "times")} | {"steps": plan.steps}
