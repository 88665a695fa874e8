"""docs/step-cache.md shows what exists."""

from __future__ import annotations

import ast
import importlib
import json
import re
from dataclasses import fields
from pathlib import Path

from sightline.video.fidelity import Fidelity
from sightline.video.plan import Plan

PAGE = (Path(__file__).parents[2] / "docs" / "step-cache.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


def test_the_plan_it_shows_is_one() -> None:
    part, shown = blocks("json")
    assert json.loads(f"{{{part}}}").keys() <= {each.name for each in fields(Plan)}
    plan = Plan.from_json(json.loads(shown))
    assert (plan.steps, plan.blocks()) == (10, 29)


def test_the_code_it_shows_is_python_and_its_names_exist() -> None:
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sightline"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, each.name) for each in node.names)


def test_every_measure_is_explained() -> None:
    section = PAGE.partition("## Fidelity")[2]
    assert {each.name for each in fields(Fidelity)} <= set(re.findall(r"`(\w+)`", section))
