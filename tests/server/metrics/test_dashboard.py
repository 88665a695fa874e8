"""examples/grafana.json asks for nothing that is not exported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sightline import LLM
from sightline.server.metrics.endpoint import make_registry
from sightline.server.service import Service

FILE = Path(__file__).parents[3] / "examples" / "grafana.json"
_NAME = re.compile(r"\b(?:vllm|sightline):\w+|\bprocess_\w+")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return loaded


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_every_metric_it_shows_is_exported(dashboard: dict[str, Any], tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu")
    text = generate_latest(make_registry(Service(llm, ["tiny"]))).decode()
    llm.close()
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    shown = expressions(dashboard)
    assert len(shown) > 40
    for expression in shown:
        names = _NAME.findall(expression)
        assert names, expression
        for name in names:
            assert name in samples, name
            for label in re.findall(r"by \((\w+)\)", expression):
                assert label in samples[name], (name, label)
        # A rate of a gauge, or a counter without its rate, would be drawn without a complaint.
        for name in names:
            counts = name.endswith(("_total", "_bucket", "_sum", "_count"))
            assert counts == (f"rate({name}{{" in expression), expression


def test_expressions_are_balanced_and_choose_the_server(dashboard: dict[str, Any]) -> None:
    for expression in expressions(dashboard):
        for left, right in ("()", "{}", "[]"):
            assert expression.count(left) == expression.count(right)
        selectors = re.findall(r"\{(.*?)\}", expression)
        assert selectors
        assert all('instance=~"$instance"' in selector for selector in selectors), expression
        assert "[" not in expression or "[$__rate_interval]" in expression


def test_panels_have_what_grafana_needs(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["id"] is None
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "model", "instance"]
    assert variables["datasource"]["type"] == "datasource"
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
