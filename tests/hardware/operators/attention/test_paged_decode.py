"""The arithmetic of the Triton decode kernel, in Triton's interpreter."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def test_the_kernel_agrees_with_the_plain_form() -> None:
    pytest.importorskip("triton")
    tests = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, str(tests / "interpreted_decode.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "agreed\n", result.stderr[-3000:]


def test_it_launches_where_its_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton takes the thread's current device, which is the first card also for layers on the second."""
    pytest.importorskip("triton")
    module = importlib.import_module("sightline.hardware.operators.attention.paged_decode")
    current: list[torch.device] = []
    launches: list[torch.device] = []

    @contextlib.contextmanager
    def switched(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **constants: launches.append(current[-1])

    monkeypatch.setattr(torch.cuda, "device", switched)
    monkeypatch.setattr(module, "_processors", lambda device: 100)
    monkeypatch.setattr(module, "_attend_part", Kernel())
    monkeypatch.setattr(module, "_join_parts", Kernel())
    second = torch.device("cuda:1")
    with FakeTensorMode():
        query = torch.empty(1, 4, 64, device=second)
        keys = torch.empty(30, 16, 2, 64, device=second)
        tables = torch.empty(1, 30, dtype=torch.int32, device=second)
        lengths = torch.empty(1, dtype=torch.int32, device=second)
        module.paged_decode(query, keys, keys, tables, lengths, 0.3)
    assert launches == [second, second]
