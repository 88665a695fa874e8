"""Plans of all sites at random, against an interpreter that keeps everything and looks the rule up anew each time."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_wan import BRANCHES, by_hand, denoise, make_model

from sightline.video.attach import attached
from sightline.video.cache import StepCache
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action, Kind, Site

STEPS, LAYERS = 5, 3


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(LAYERS)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    actions: dict[str, dict[Site, tuple[Action, ...]]] = {}
    for branch in BRANCHES:
        sites = [OUTPUT] if draw(st.booleans()) else []
        for kind in (Kind.BLOCKS, Kind.ATTENTION):
            if draw(st.booleans()):
                start = draw(st.integers(0, LAYERS - 1))
                sites.append(Site(kind, start, draw(st.integers(start + 1, LAYERS))))
        # Computing is likelier, or most that is inside something would never be reached.
        letters = st.sampled_from("CCCCRE")
        actions[branch] = {
            site: tuple(Action("C" if step < 2 else draw(letters)) for step in range(STEPS)) for site in sites
        }
    return Plan(Setting(steps=STEPS), actions, order=draw(st.integers(1, 3)))


class Interpreter:
    """Runs a plan on a model by the words of its definition."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.kept: dict[tuple[str, str, int], list[tuple[int, torch.Tensor]]] = {}
        self.now = (0, "cond")

    def action(self, kind: Kind, block: int) -> Action:
        step, branch = self.now
        for site, row in self.plan.actions[branch].items():
            if site.kind is kind and (kind is Kind.OUTPUT or site.start <= block < site.stop):
                return row[step]
        return Action.COMPUTE

    def value(self, kind: Kind, block: int, compute: Any) -> torch.Tensor:
        step, branch = self.now
        kept = self.kept.setdefault((branch, kind.value, block), [])
        action = self.action(kind, block)
        if action is Action.COMPUTE:
            kept.append((step, compute()))
            return kept[-1][1]
        sources = kept[-1:] if action is Action.REUSE else kept[-(self.plan.order + 1) :]
        total = torch.zeros_like(kept[-1][1])
        for at, value in sources:
            weight = 1.0
            for other, _ in sources:
                if other != at:
                    weight *= (step - other) / (at - other)
            total = total + weight * value
        return total

    def __call__(self, x: Any, time: Any, text: Any, return_dict: bool) -> Any:
        return (self.value(Kind.OUTPUT, 0, lambda: by_hand(self.model, x, time, text, self.loop)),)

    def loop(self, hidden: torch.Tensor, *arguments: Any) -> torch.Tensor:
        ranges = {site.start: site for site in self.plan.actions[self.now[1]] if site.kind is Kind.BLOCKS}
        number = 0
        while number < LAYERS:
            site = ranges.get(number, Site(Kind.BLOCKS, number, number + 1))
            if number in ranges:
                into = hidden
                change = self.value(
                    Kind.BLOCKS,
                    number,
                    lambda site=site, into=into: self.through(site, into, arguments) - into,
                )
                hidden = into + change
            else:
                hidden = self.through(site, hidden, arguments)
            number = site.stop
        return hidden

    def through(self, site: Site, hidden: torch.Tensor, arguments: Any) -> torch.Tensor:
        for number in range(site.start, site.stop):
            block = self.model.blocks[number]
            own = type(block.attn1).forward

            def attend(*given: Any, number: int = number, own: Any = own, block: Any = block) -> torch.Tensor:
                return self.value(Kind.ATTENTION, number, lambda: own(block.attn1, *given))

            block.attn1.forward = attend
            hidden = block(hidden, *arguments)
            del block.attn1.forward
        return hidden

    def clock(self, step: int, branch: str) -> Any:
        self.now = (step, branch)
        return nullcontext()


@given(plan=plans())
@settings(deadline=None, max_examples=40)
def test_every_plan_does_what_its_letters_say(model: Any, plan: Plan) -> None:
    interpreter = Interpreter(model, plan)
    expected = denoise(interpreter, STEPS, interpreter.clock)
    cache = StepCache(plan)
    with attached(model, cache):
        found = denoise(model, STEPS, cache.step)
        assert cache.held_bytes() == 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
