"""The pages about metrics and about other servers say what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sightline import LLM
from sightline.cli import app
from sightline.server.metrics.endpoint import make_registry
from sightline.server.metrics.mindie import MindieCollector
from sightline.server.mindie import management, routes
from sightline.server.service import Service

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def service(tiny_folder: Path) -> Service:
    return Service(LLM(tiny_folder, dtype="fp32", device="cpu", num_speculative_tokens=1), ["tiny"])


def spans(page: str) -> list[str]:
    """What stands between backquotes, outside of blocks."""
    text = re.sub(r"^```.*?^```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`]+)`", text)


def test_every_exported_metric_is_explained(service: Service) -> None:
    registry = make_registry(service)
    registry.register(MindieCollector(service.llm, "tiny"))
    named = spans("metrics.md")
    stems = {"vllm:spec_decode_num_", "sightline:encoder_cache_", "sightline:image_cache_"}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        if family.name.startswith(("process_", "python_")):
            continue
        written = f"{family.name}_total" if family.type == "counter" else family.name
        short = any(
            written.startswith(stem) and f"...{written.removeprefix(stem[:-1])}" in named for stem in stems
        )
        short = short or any(written.endswith(one.removeprefix("...")) for one in named if one[:3] == "...")
        assert written in named or short, written


def test_no_metric_is_explained_that_is_not_there(service: Service) -> None:
    text = generate_latest(make_registry(service)).decode()
    for name in spans("metrics.md"):
        # The adapters' gauge is there only while some are loaded.
        if re.fullmatch(r"(vllm|sightline):\w+", name) and name != "vllm:lora_requests_info":
            assert re.search(rf"^# TYPE {name.removesuffix('_total')}", text, flags=re.M), name


def test_the_routes_that_mindies_page_promises_are_there(service: Service) -> None:
    there = {"/health", "/health/timed", "/health/timed-N", "/v2/health/live", "/v2/health/ready", "/metrics"}
    there |= {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{m}"}  # others' own tests
    routers = [routes.router(service), management.router(service, stop=print, is_stopping=lambda: False)]
    paths = {
        route.path.replace("{model}", "{m}")
        for router in routers
        for route in _flat(router.routes)
        if isinstance(route, APIRoute)
    }
    text = (DOCS / "from-mindie.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if re.match(r"\| (business|management) \|", line)]
    assert len(rows) == 2
    promised = {
        path for row in rows for span in re.findall(r"`([^`]+)`", row[2]) for path in [span.split()[-1]]
    }
    assert promised - there <= paths
    assert paths - promised == set()
    missing = {path for row in rows for path in re.findall(r"`(/[^`]*)`", row[3])}
    assert missing
    assert not missing & paths


def _flat(found: list[object]) -> list[object]:
    """Routes, those of routers inside of routers included."""
    flat: list[object] = []
    for route in found:
        inner = getattr(route, "original_router", None)
        flat += [route] if inner is None else _flat(list(inner.routes))
    return flat


@pytest.mark.parametrize("page", ["from-mindie", "from-vllm"])
def test_both_languages_name_the_same_things(page: str) -> None:
    english, chinese = set(spans(f"{page}.md")), set(spans(f"{page}.zh.md"))

    def names(found: set[str]) -> set[str]:
        words = {word for span in found for word in re.findall(r"[A-Za-z0-9_./{}*:-]+", span)}
        return {word for word in words if re.match(r"--\w|/\w|\w+[_A-Z:]", word)}

    differing = names(english) ^ names(chinese)
    assert differing <= {"FOLDER", "MODEL", "SITE"}, sorted(differing)


@pytest.mark.parametrize("page", ["from-mindie.md", "from-mindie.zh.md", "metrics.md"])
def test_named_options_exist(page: str) -> None:
    known = {word for part in app.load("serve").params for word in (*part.opts, *part.secondary_opts)}
    named = {word for span in spans(page) for word in re.findall(r"--[a-z][a-z-]*", span)}
    assert named
    assert named <= known
