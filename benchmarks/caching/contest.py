"""Every contestant in every round, one at a time: a round is a prompt with its seed, so drift hits all alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caching.contestants import Contestant
from caching.job import Answer, Job
from caching.process import Worker
from sightline.errors import SightlineError
from sightline.progress import note
from sightline.video.fidelity import Fidelity, compare
from sightline.video.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.video.pipeline import VideoPipeline


@dataclass
class Result:
    """What a contestant came to.

    Attributes:
        seconds, fidelity: by round, against diffusers' exact run of the same noise.
        operations: of the first round, counted in a run of its own.
        told: what its engine told of the last run.
        error: why there is nothing; empty where there is something.
    """

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)
    fidelity: list[Fidelity] = field(default_factory=list)
    operations: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def worst(self) -> Fidelity:
        """Of the prompt where PSNR is lowest."""
        return min(self.fidelity, key=lambda found: found.psnr)

    @property
    def psnr_median(self) -> float:
        return statistics.median(found.psnr for found in self.fidelity)


class Contest:
    """The rounds.

    Args:
        workers: by engine.
        pipeline: encodes prompts and decodes latents, both outside of what is timed.
        folder: for tensors on their way.
    """

    def __init__(self, workers: Mapping[str, Worker], pipeline: VideoPipeline, folder: Path) -> None:
        self.workers, self.pipeline, self.folder = workers, pipeline, folder
        self._inputs: dict[tuple[str, int], Path] = {}

    def run(
        self, contestants: Sequence[Contestant], requests: Sequence[Request], reference: Contestant
    ) -> list[Result]:
        """Warm every contestant up, then measure all of them in each round.

        Raises:
            SightlineError: the reference fails.
        """
        results = {one.name: Result(one) for one in contestants}
        order = [one for one in contestants if one != reference]
        # Notes, not a bar: a bar is drawn by a thread that would take time from what is measured.
        note(f"warming up {len(contestants)} settings and counting their operations")
        for engine in self.workers:
            # What a process does once, such as choosing kernels, is no one's.
            self.ask(Contestant("exact", "", "peer", engine, "exact"), requests[0])
        for one in (reference, *order):
            self._warm(results[one.name], requests[0])
            if results[one.name].error:
                note(f"{one.name} failed: {results[one.name].error}")
        for number, request in enumerate(requests):
            note(f"round {number + 1} of {len(requests)}: {request.prompt!r}, seed {request.seed}")
            exact = self._measure(results[reference.name], request)
            if exact is None:
                raise SightlineError(f"{reference.name} failed: {results[reference.name].error}")
            frames = self.pipeline.decode(exact)
            results[reference.name].fidelity.append(compare(frames, frames))
            # Another one first each time: what the machine does meanwhile falls on no one in particular.
            shift = number * len(order) // len(requests)
            for one in order[shift:] + order[:shift]:
                latents = self._measure(results[one.name], request)
                if latents is not None:
                    results[one.name].fidelity.append(self._against(latents, frames))
        return list(results.values())

    def ask(self, one: Contestant, request: Request, *, count: bool = False) -> Answer:
        """One run of one contestant."""
        job = Job(
            method=one.method,
            knobs=one.knobs,
            inputs=str(self._given(request)),
            output=str(self.folder / "latents.safetensors"),
            steps=one.steps or request.steps,
            guidance=request.guidance,
            shift=request.shift,
            width=request.width,
            height=request.height,
            frames=request.frames,
            count=count,
        )
        return self.workers[one.engine].run(job)

    def _warm(self, result: Result, request: Request) -> None:
        """The first run of a setting pays for what later ones have; here the operations are counted instead."""
        answer = self.ask(result.contestant, request, count=True)
        result.operations, result.error = answer.operations or 0.0, answer.error

    def _measure(self, result: Result, request: Request) -> Tensor | None:
        from safetensors.torch import load_file

        if result.error:
            return None
        answer = self.ask(result.contestant, request)
        if answer.error:
            result.error = answer.error
            return None
        result.seconds.append(answer.seconds)
        result.told = answer.told
        return load_file(self.folder / "latents.safetensors")["latents"]

    def _against(self, latents: Tensor, frames: Tensor) -> Fidelity:
        """Broken numbers are as far away as can be."""
        decoded = self.pipeline.decode(latents).nan_to_num(0.5)
        return compare(decoded, frames)

    def _given(self, request: Request) -> Path:
        """What a generation begins with, as a file; the same for all."""
        import torch
        from safetensors.torch import save_file

        key = (request.prompt, request.seed)
        if key not in self._inputs:
            path = self.folder / f"inputs-{len(self._inputs)}.safetensors"
            tensors = {
                name: text.float().contiguous() for name, text in self.pipeline.encode(request).items()
            }
            tensors |= {"noise": self.pipeline.noise(request).cpu(), "seed": torch.tensor(request.seed)}
            save_file(tensors, path)
            self._inputs[key] = path
        return self._inputs[key]


def agreement(results: Sequence[Result], name: str) -> float:
    """PSNR at the worst of one that should be exact; infinite where every frame is equal."""
    found = next(result for result in results if result.contestant.name == name)
    if found.error:
        raise SightlineError(f"{name} failed: {found.error}")
    return min(one.psnr for one in found.fidelity) if found.fidelity else math.inf
