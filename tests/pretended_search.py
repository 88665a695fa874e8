"""A model that is a formula, with a clock that is one too, for searches in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from sightline.video.plan import Plan
from sightline.video.search.measure import Generation, Subject
from sightline.video.search.products import Products
from sightline.video.search.record import LONGEST, WINDOW, ProbeRecord
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action

BRANCHES = ("cond", "uncond")
SIZE, BLOCKS, GUIDANCE = 24, 4, 3.0
CALL, REST = 1.0, 0.05  # seconds of a call, and of a step beside


class Killed(BaseException):
    """As by the system: nothing may catch it."""


@dataclass
class PretendedRunner:
    """Euler's method through a velocity that turns fast in the middle; what is skipped is skipped as a plan says.

    Attributes:
        dies: after how many generations, and then Killed.
        tempo: seconds are times this, which may change from run to run.
    """

    steps: int = 12
    dies: int | None = None
    tempo: float = 1.0
    runs: list[str] = field(default_factory=list)

    def setting(self) -> Setting:
        return Setting(steps=self.steps, model="pretended", guidance=GUIDANCE, width=16, height=16)

    def sigmas(self, steps: int) -> np.ndarray:
        return np.linspace(1, 0, steps + 1)

    def velocity(self, branch: str, x: torch.Tensor, sigma: float, subject: Subject) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(subject.prompt))
        way, turn = torch.randn(2, SIZE, generator=generator, dtype=torch.float64)
        bend = np.tanh(12 * (0.5 - sigma)) + 0.3 * np.sin(5 * sigma)
        pull = 0.1 if branch == "cond" else 0.05 * np.cos(3 * sigma)
        return 0.2 * way + bend * turn + pull * way.roll(1) + 0.15 * torch.sin(2 * x + 4 * sigma * turn)

    def run(self, plan: Plan | None, subject: Subject) -> Generation:
        if self.dies is not None and len(self.runs) >= self.dies:
            raise Killed
        self.runs.append("exact" if plan is None else plan.name)
        steps = self.steps if plan is None else plan.steps
        latents, seconds = self.loop(plan, subject, steps)
        return Generation(latents.float().view(1, 2, 3, 2, 2), 0.5, seconds * self.tempo)

    def loop(
        self, plan: Plan | None, subject: Subject, steps: int, see: object = None
    ) -> tuple[torch.Tensor, float]:
        generator = torch.Generator().manual_seed(subject.seed)
        x = torch.randn(SIZE, generator=generator, dtype=torch.float64)
        sigmas, seconds = self.sigmas(steps), 0.0
        known: dict[tuple[str, int], torch.Tensor] = {}
        tables = {branch: plan.directives(branch) if plan else {} for branch in BRANCHES}
        for step in range(steps):
            given = {}
            for branch in BRANCHES:
                rows = tables[branch].get(OUTPUT)
                directive = rows[step] if rows else None
                if directive is None or directive.action is Action.COMPUTE:
                    given[branch] = known[branch, step] = self.velocity(branch, x, sigmas[step], subject)
                    inside = [
                        rows[step].action
                        for rows in tables[branch].values()
                        if rows is not tables[branch].get(OUTPUT)
                    ]
                    seconds += CALL * (0.5 if Action.REUSE in inside else 1.0)
                elif directive.terms:
                    given[branch] = sum(
                        term.weight * known[term.branch, term.step] for term in directive.terms
                    )
                else:
                    newest = known[branch, directive.sources[-1]]
                    given[branch] = newest + sum(
                        weight * (known[branch, source] - newest)
                        for weight, source in zip(directive.weights, directive.sources, strict=False)
                    )
            guided = given["uncond"] + GUIDANCE * (given["cond"] - given["uncond"])
            x = x + (sigmas[step + 1] - sigmas[step]) * guided
            seconds += REST
            if callable(see):
                see(step, given)
        return x, seconds

    def probe(self, subject: Subject, steps: int) -> ProbeRecord:
        products = Products(steps, len(BRANCHES), WINDOW)
        final, _ = self.loop(
            None,
            subject,
            steps,
            lambda step, given: products.add(step, [given[each].numpy() for each in BRANCHES]),
        )
        moved = np.full((2, LONGEST, steps, BLOCKS, BLOCKS), np.nan)
        attended = np.full((2, LONGEST, steps, BLOCKS), np.nan)
        for gap in range(1, LONGEST + 1):
            moved[:, gap - 1, gap:] = gap**2 * np.eye(BLOCKS)
            attended[:, gap - 1, gap:] = float(gap)
        return ProbeRecord(
            outputs=products.table,
            blocks=moved,
            attention=attended,
            sigmas=self.sigmas(steps),
            final=np.array([float(final.square().mean())]),
            call_seconds=np.full(2, CALL),
            rest_seconds=np.array([REST * steps]),
            block_seconds=np.full(BLOCKS, 0.5 / BLOCKS),
            attention_seconds=np.full(BLOCKS, 0.2 / BLOCKS),
        )

    def decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, float]:
        frames = (
            torch.sigmoid(latents.reshape(4, 1, 6, 1)).expand(4, 3, 6, 16).repeat_interleave(3, 2)[:, :, :16]
        )
        return frames.contiguous(), 0.25
