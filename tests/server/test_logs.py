"""Where the log of a server goes."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from sightline.server.logs import set_up_logs
from sightline.server.settings import ServeSettings


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Every logger as it was before."""
    root, ours = logging.getLogger(), logging.getLogger("sightline")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_lines_go_to_what_stderr_is_when_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    set_up_logs(ServeSettings(model="m", log_level="info"))
    logging.getLogger("sightline.server").info("one")
    monkeypatch.setattr(sys, "stderr", second)
    told = first.getvalue()
    first.close()
    logging.getLogger("sightline.server").info("two")
    logging.getLogger("sightline.server").debug("not asked for")
    logging.getLogger("a.library").info("nor this")
    logging.getLogger("a.library").warning("three")
    assert told.endswith(" INFO sightline.server: one\n")
    assert [line.split(" ", 1)[1] for line in second.getvalue().splitlines()] == [
        "INFO sightline.server: two",
        "WARNING a.library: three",
    ]
