"""How a form is chosen: tried first, replaced by the definition with a warning, and left out of compiled models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from npu_dense_operators import DenseTorchNpu

from sightline.hardware.operators import forms
from sightline.hardware.operators.norms import rms_norm
from sightline.hardware.operators.rotary import rotary_position_embedding


def test_a_wrong_operator_is_not_used_and_a_warning_says_so(
    torch_npu: DenseTorchNpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch_npu, "npu_rms_norm", lambda x, gamma, epsilon: (x * gamma, None))
    x, weight = torch.randn(4, 48), torch.randn(48)
    assert torch.equal(rms_norm(x, weight), rms_norm(x, weight, fused=False))
    assert "rms_norm on cpu runs unfused" in caplog.text


def test_an_operator_that_is_missing_is_not_used(
    torch_npu: DenseTorchNpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(DenseTorchNpu, "npu_rms_norm")
    x = torch.randn(4, 48)
    assert torch.equal(rms_norm(x), rms_norm(x, fused=False))
    assert "runs unfused" in caplog.text


def test_a_form_is_tried_once_for_each_dtype_and_options(torch_npu: DenseTorchNpu) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for _ in range(3):
            rms_norm(torch.randn(4, 48, dtype=dtype))
    assert len(torch_npu.calls) == 2 * (1 + 3)
    rms_norm(torch.randn(4, 48), eps=1e-5)
    assert torch_npu.calls[-2:] == [("rms_norm", 1e-5)] * 2


def test_a_form_is_tried_in_the_dtypes_of_the_call(
    torch_npu: DenseTorchNpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As Wan calls it: tokens in bfloat16, angles in float32, in which the operator then computes."""
    real = torch_npu.npu_rotary_mul

    def wrong_in_float32(x: torch.Tensor, *others: Any) -> torch.Tensor:
        return real(x, *others) + (1 if x.dtype == torch.float32 else 0)

    monkeypatch.setattr(torch_npu, "npu_rotary_mul", wrong_in_float32)
    x, angles = torch.randn(1, 6, 2, 16).bfloat16(), torch.randn(1, 6, 1, 16)
    narrow = rotary_position_embedding(x, angles.cos().bfloat16(), angles.sin().bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert caplog.text == ""
    given = rotary_position_embedding(x, angles.cos(), angles.sin())
    assert torch.equal(given, rotary_position_embedding(x, angles.cos(), angles.sin(), fused=False))
    assert "rotary_position_embedding on cpu runs unfused" in caplog.text


def test_a_compiler_that_fails_leaves_the_definition(
    pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile(function: Any, **options: Any) -> Any:
        def failing(*tensors: Any, **named: Any) -> Any:
            raise RuntimeError("no compiler")

        return failing

    monkeypatch.setattr(torch, "compile", compile)
    pretend("cuda")
    x = torch.randn(4, 48)
    assert torch.equal(rms_norm(x), rms_norm(x, fused=False))
    assert "runs unfused" in caplog.text


def test_other_devices_compute_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError(arguments)

    monkeypatch.setattr(forms, "_chosen", never)
    rms_norm(torch.randn(4, 48))
    rms_norm(torch.randn(4, 48), fused=False)


def test_a_compiled_model_takes_the_definition_into_its_graph(
    torch_npu: DenseTorchNpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.compile(lambda x: rms_norm(x) + 1, backend="eager", fullgraph=True)
    x = torch.randn(4, 48)
    torch.testing.assert_close(model(x), rms_norm(x, fused=False) + 1)
    assert torch_npu.calls == []


def test_torch_counts_recompilations_for_each_set_of_options_alone(compiled: list[str]) -> None:
    """More sets of options than torch compiles one function for."""
    x = torch.randn(4, 48)
    for number in range(12):
        eps = 10.0**-number
        torch.testing.assert_close(rms_norm(x, eps=eps), rms_norm(x, eps=eps, fused=False))
