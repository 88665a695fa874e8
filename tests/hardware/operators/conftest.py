"""Operators on CPU tensors as if they lay on an NPU or a CUDA device, and a cache of their own for each test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from npu_dense_operators import DenseTorchNpu

from sightline.hardware.operators import dense_attention, forms
from sightline.hardware.operators.dense_attention import forward, varlen

On = Callable[[str], None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[On]:
    """Calls it with "npu" or "cuda": the operators then take CPU tensors for those of that device."""

    def on(kind: str) -> None:
        for module in (forms, forward, varlen):
            monkeypatch.setattr(module, "kind_of", lambda tensor: kind)

    _forget()
    yield on
    _forget()


def _forget() -> None:
    forms._chosen.cache_clear()
    varlen._chosen.cache_clear()
    dense_attention.forget()


@pytest.fixture
def torch_npu(monkeypatch: pytest.MonkeyPatch, pretend: On) -> DenseTorchNpu:
    """The stand-in at torch_npu's place, with tensors that count as the NPU's."""
    module = DenseTorchNpu()
    monkeypatch.setitem(sys.modules, "torch_npu", module)  # type: ignore[arg-type]
    pretend("npu")
    return module


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, pretend: On) -> list[str]:
    """Tensors count as CUDA's; torch.compile traces whole functions, but generates no code. The names it was given."""
    names: list[str] = []
    real = torch.compile

    def compile(function: Callable[..., torch.Tensor], **options: bool) -> Callable[..., torch.Tensor]:
        names.append(function.__name__)
        return partial(real, backend="eager", fullgraph=True)(function, **options)

    monkeypatch.setattr(torch, "compile", compile)
    pretend("cuda")
    return names


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache folder of this test, with nothing remembered from others."""
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    dense_attention.forget()
    yield tmp_path / "cache"
    dense_attention.forget()
