"""Activations by name and SwiGLU against their formulas in float64, and their forms for NPUs."""

from __future__ import annotations

import math

import pytest
import torch
from npu_dense_operators import DenseTorchNpu

from sightline.errors import UsageError
from sightline.hardware.operators.activations import activation, get_activation_layer, swiglu

FORMULAS = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu-tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "gelu-fast": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "relu": lambda x: x.clamp_min(0),
}
# In bf16 gelu-fast rounds its factor too, SwiGLU its gate.
DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 1.6e-2)]


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_each_name_is_its_formula(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    x = (3 * torch.randn(4, 100)).to(dtype)
    expected = FORMULAS[kind](x.double())
    for given in (activation(x, kind), get_activation_layer(kind)(x), activation(x, kind, fused=False)):
        assert given.dtype == dtype
        torch.testing.assert_close(given.double(), expected, rtol=tolerance, atol=tolerance)


def test_the_names_differ_in_what_they_compute() -> None:
    x = torch.linspace(-3, 3, 100)
    results = [activation(x, kind) for kind in FORMULAS if kind != "swish"]
    for place, one in enumerate(results):
        assert not any(torch.allclose(one, other, atol=1e-5) for other in results[:place])


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_swiglu_gates_with_the_first_half(dtype: torch.dtype, tolerance: float, dim: int) -> None:
    x = torch.randn(4, 6, 8).to(dtype)
    gate, up = x.double().chunk(2, dim)
    given = swiglu(x, dim)
    assert given.dtype == dtype
    torch.testing.assert_close(
        given.double(), gate * torch.sigmoid(gate) * up, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_the_npu_has_operators_for_them(
    torch_npu: DenseTorchNpu, dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.randn(4, 100).to(dtype)
    for kind in FORMULAS:
        expected = activation(x, kind, fused=False)
        torch.testing.assert_close(activation(x, kind), expected, rtol=tolerance, atol=tolerance)
    assert set(torch_npu.calls) == {("gelu", "none"), ("gelu", "tanh"), ("fast_gelu", None)}
    torch_npu.calls.clear()
    torch.testing.assert_close(swiglu(x, 1), swiglu(x, 1, fused=False), rtol=tolerance, atol=tolerance)
    assert set(torch_npu.calls) == {("swiglu", -1)}


def test_the_fused_forms_trace_as_one_graph(compiled: list[str]) -> None:
    x = torch.randn(4, 100)
    for kind in FORMULAS:
        torch.testing.assert_close(activation(x, kind), activation(x, kind, fused=False))
    torch.testing.assert_close(swiglu(x), swiglu(x, fused=False))
    assert compiled == ["_plain", "_plain_swiglu"], "torch has one kernel for each other activation"


def test_what_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="not one of gelu, gelu-fast, gelu-tanh, mish, relu, silu, swish"):
        get_activation_layer("tanh")
    with pytest.raises(UsageError, match="even dimension"):
        swiglu(torch.zeros(4, 7))
    with pytest.raises(UsageError, match="not dimension 2"):
        swiglu(torch.zeros(4, 8), dim=2)
