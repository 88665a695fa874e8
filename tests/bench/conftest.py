"""Servers that follow a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted import Answer, Scripted


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """`scripted(script)` starts a server; each one ends with the test."""
    started: list[Scripted] = []

    def start(script: Callable[[dict[str, Any]], Answer] | Answer, **options: Any) -> Scripted:
        server = Scripted((lambda body: script) if isinstance(script, Answer) else script, **options)
        started.append(server.__enter__())
        return server

    yield start
    for server in started:
        server.__exit__()
