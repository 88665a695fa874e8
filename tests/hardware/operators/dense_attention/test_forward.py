"""attention_forward: its numbers against float64, its arguments, and which kernel it takes when."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from npu_dense_operators import DenseTorchNpu

from sightline.errors import SightlineError, UsageError
from sightline.hardware.operators.dense_attention import (
    attention_forward,
    choice,
    forget,
    measurements,
    reference,
    torch_forms,
)
from sightline.hardware.operators.dense_attention.measure import Measurement, Trial

CPU = torch.device("cpu")
# The stated tolerances: float32 kernels differ in the order of sums, bf16 ones round scores and weights too.
DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 2.5e-2)]
ON_CPU = ("sdpa", "sdpa_copied", "chunked", "reference")


def drawn(
    dtype: torch.dtype = torch.float32, *, kv_heads: int = 4, queries: int = 70, keys: int = 33
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, S, N, D]"""
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, queries, 4, 16), (2, keys, kv_heads, 16), (2, keys, kv_heads, 16)]
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return query, key, value


def in_float64(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None = None,
    scale: float = 0.25,
) -> torch.Tensor:
    """Row by row, as the formula says; `keep` [B, N, Sq, Sk]."""
    result = torch.zeros(query.shape, dtype=torch.float64)
    group = query.shape[2] // key.shape[2]
    for b in range(query.shape[0]):
        for n in range(query.shape[2]):
            scores = query[b, :, n].double() @ key[b, :, n // group].double().T * scale
            for row in range(query.shape[1]):
                seen = slice(None) if keep is None else keep[b, n, row]
                if keep is None or bool(keep[b, n, row].any()):
                    weights = scores[row][seen].softmax(0)
                    result[b, row, n] = weights @ value[b, :, n // group].double()[seen]
    return result


def masks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)

    def kept(*shape: int) -> torch.Tensor:
        mask = torch.rand(shape, generator=generator) < 0.6
        mask.view(-1, shape[-1])[0] = False  # the first row sees nothing
        return mask

    return {
        "queries and keys": kept(70, 33),
        "keys of each sample": kept(2, 1, 1, 33),
        "samples, queries and keys": kept(2, 70, 33),
        "everything": kept(2, 4, 70, 33),
        "heads": kept(1, 4, 1, 33),
    }


def full(mask: torch.Tensor) -> torch.Tensor:
    placed = {2: mask[None, None], 3: mask[:, None]} if mask.dim() < 4 else {4: mask}
    return placed[mask.dim()].expand(2, 4, 70, 33)


@pytest.mark.parametrize("op_type", ON_CPU)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_every_form_is_the_formula(op_type: str, dtype: torch.dtype, tolerance: float, kv_heads: int) -> None:
    tensors = drawn(dtype, kv_heads=kv_heads)
    expected = in_float64(*tensors)
    given = attention_forward(*tensors, opt_mode="manual", op_type=op_type)
    assert given.dtype == dtype
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=tolerance)
    turned = [tensor.transpose(1, 2) for tensor in tensors]
    first = attention_forward(*turned, head_first=True, opt_mode="manual", op_type=op_type)
    torch.testing.assert_close(first.transpose(1, 2).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("op_type", ON_CPU)
@pytest.mark.parametrize("name", masks())
def test_true_keeps_and_a_row_that_keeps_nothing_is_zero(op_type: str, name: str) -> None:
    mask = masks()[name]
    for kv_heads in (4, 2):
        tensors = drawn(kv_heads=kv_heads)
        expected = in_float64(*tensors, full(mask))
        assert (expected == 0).all(-1).any()
        for given in (mask, mask.int()):
            mixed = attention_forward(*tensors, attn_mask=given, opt_mode="manual", op_type=op_type)
            torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=2e-6)
            assert torch.equal(mixed == 0, expected == 0)


@pytest.mark.parametrize("op_type", ["chunked", "reference"])
def test_parts_of_the_queries_are_put_together_again(op_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_forms, "_SCORES", 1)
    monkeypatch.setattr(torch_forms, "_LEAST_ROWS", 9)
    monkeypatch.setattr(reference, "_SCORES", 9 * 2 * 4 * 33)
    for mask in (None, *masks().values()):
        tensors = drawn(kv_heads=2)
        expected = in_float64(*tensors, None if mask is None else full(mask))
        given = attention_forward(*tensors, attn_mask=mask, opt_mode="manual", op_type=op_type)
        torch.testing.assert_close(given.double(), expected, rtol=0, atol=2e-6)


def test_the_scale_is_that_of_the_head_size_unless_given() -> None:
    tensors = drawn()
    for scale in (None, 0.25, 1.0):
        expected = in_float64(*tensors, scale=scale or 0.25)
        for op_type in ON_CPU:
            given = attention_forward(*tensors, scale=scale, opt_mode="manual", op_type=op_type)
            torch.testing.assert_close(given.double(), expected, rtol=0, atol=3e-6)


def test_without_keys_there_is_nothing_to_see() -> None:
    query, key, value = drawn()
    given = attention_forward(query, key[:, :0], value[:, :0])
    assert torch.equal(given, torch.zeros_like(query))
    assert attention_forward(query[:, :0], key, value).shape == (2, 0, 4, 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"opt_mode": "fast"}, "runtime, static, manual"),
        ({"op_type": "sdpa"}, "are for opt_mode 'manual'"),
        ({"opt_mode": "static", "layout": "BNSD"}, "are for opt_mode 'manual'"),
        ({"opt_mode": "manual", "op_type": "fused_attn_score"}, "does not exist on cpu; there are sdpa, "),
        ({"opt_mode": "manual", "op_type": "ascend_laser_attention"}, "does not exist on cpu"),
        ({"opt_mode": "manual", "op_type": "sdpa", "layout": "BSH"}, "takes no layout 'BSH'; give BNSD"),
        ({"attn_mask": torch.zeros(70, 33)}, "1 = keep"),
        ({"attn_mask": torch.ones(70, 34, dtype=torch.bool)}, "does not fit"),
        ({"attn_mask": torch.ones(33, dtype=torch.bool)}, "does not fit"),
        ({"attn_mask": torch.ones(3, 1, 33, dtype=torch.bool)}, "does not fit"),
    ],
)
def test_options_that_mean_nothing_are_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        attention_forward(*drawn(), **options)


def test_tensors_that_do_not_fit_are_one_sentence() -> None:
    query, key, value = drawn()
    keep = torch.ones(70, 33, dtype=torch.bool)
    wrong: list[tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], str]] = [
        ((query[0], key, value), "as \\[B, S, N, D\\], not"),
        ((query, key, value[:, :5]), "do not fit one another"),
        ((query, key[:1], value[:1]), "do not fit one another"),
        ((query[:, :, :3], key[:, :, :2], value[:, :, :2]), "divide the query heads"),
        ((query, key.bfloat16(), value), "of one floating dtype"),
        ((query.int(), key.int(), value.int()), "of one floating dtype"),
    ]
    for tensors, said in wrong:
        for mask in (None, keep):
            with pytest.raises(
                UsageError, match=said if mask is None else "fit|as \\[B|floating dtype|divide"
            ):
                attention_forward(*tensors, attn_mask=mask)


def test_a_call_is_measured_once_and_the_choice_is_read_from_disk(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = choice.measure

    def measure(problem: Any, *rest: Any) -> Measurement:
        asked.append(problem.key())
        return real(problem, *rest)

    monkeypatch.setattr(choice, "measure", measure)
    query, key, value = drawn()
    mask = torch.ones(2, 1, 1, 33, dtype=torch.bool)
    for _ in range(2):
        attention_forward(query, key, value)
        attention_forward(query, key, value, mask)
        attention_forward(query.bfloat16(), key.bfloat16(), value.bfloat16())
        attention_forward(query[:, :69].contiguous(), key, value)
        attention_forward(query[:, :, ::2], key[:, :, ::2], value[:, :, ::2])
    assert asked == [
        "fp32 b2 n4 q70 k33 d16 BSND",
        "fp32 b2 n4 q70 k33 d16 BSND mask:bk",
        "bf16 b2 n4 q70 k33 d16 BSND",
        "fp32 b2 n4 q69 k33 d16 BSND",
        "fp32 b2 n2 q70 k33 d16 BSND strided",
    ]
    assert [one.problem.key() for one in measurements(CPU)] == sorted(asked)
    forget()
    attention_forward(query, key, value)
    assert len(asked) == 5
    attention_forward(query[:, :68].contiguous(), key, value)
    assert len(asked) == 6


def test_runtime_takes_what_was_fastest(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(problem: Any, forms: Any, device: Any) -> Measurement:
        times = {"sdpa": 3.0, "sdpa_copied": 2.0, "chunked": 1.0}
        trials = [Trial(form.name, form.layout, True, times[form.name], 0.0) for form in forms]
        return Measurement(problem, tuple(trials), "today")

    monkeypatch.setattr(choice, "measure", measure)
    query, key, value = drawn(torch.bfloat16)
    taken = attention_forward(query, key, value)
    by_hand = {name: attention_forward(query, key, value, opt_mode="manual", op_type=name) for name in ON_CPU}
    assert torch.equal(taken, by_hand["chunked"])
    assert not torch.equal(taken, by_hand["sdpa"])
    assert torch.equal(attention_forward(query, key, value, opt_mode="static"), by_hand["sdpa"])
    assert torch.equal(attention_forward(query, key, value, fused=False), by_hand["reference"])
    monkeypatch.setenv("SIGHTLINE_ATTENTION", "reference")
    assert torch.equal(attention_forward(query, key, value), by_hand["reference"])


def test_where_no_kernel_is_right_the_definition_computes_and_a_warning_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "forms_for", lambda kind: [])
    tensors = drawn()
    assert torch.equal(attention_forward(*tensors), attention_forward(*tensors, fused=False))
    assert "computed by its definition, slowly" in caplog.text


def test_a_gradient_flows_and_is_right(cache: Path) -> None:
    mask = masks()["keys of each sample"]
    gradients = []
    for fused in (True, False):
        tensors = [tensor.requires_grad_() for tensor in drawn()]
        attention_forward(*tensors, attn_mask=mask, fused=fused).square().sum().backward()
        gradients.append([tensor.grad for tensor in tensors])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert measurements(CPU)[0].problem.gradient


def test_a_measured_call_compiles_into_one_graph(cache: Path) -> None:
    query, key, value = drawn()
    expected = attention_forward(query, key, value)
    model = torch.compile(lambda *tensors: attention_forward(*tensors) + 1, backend="eager", fullgraph=True)
    torch.testing.assert_close(model(query, key, value), expected + 1)
    # What was not measured is, outside the graph.
    model = torch.compile(lambda *tensors: attention_forward(*tensors) + 1, backend="eager")
    torch.testing.assert_close(model(query[:, :50].contiguous(), key, value), expected[:, :50] + 1)


@pytest.mark.parametrize("op_type", ["prompt_flash_attn", "fused_attn_score", "fused_infer_attn_score"])
@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH"])
@pytest.mark.parametrize("head_first", [False, True])
def test_npu_operators_in_each_layout(
    torch_npu: DenseTorchNpu, op_type: str, layout: str, head_first: bool
) -> None:
    for kv_heads in (4, 2):
        tensors = drawn(torch.bfloat16, kv_heads=kv_heads)
        turned = [tensor.transpose(1, 2) if head_first else tensor for tensor in tensors]
        for mask in (None, masks()["keys of each sample"], masks()["samples, queries and keys"]):
            given = attention_forward(
                *turned, mask, head_first=head_first, opt_mode="manual", op_type=op_type, layout=layout
            )
            expected = in_float64(*tensors, None if mask is None else full(mask))
            given = given.transpose(1, 2) if head_first else given
            torch.testing.assert_close(given.double(), expected, rtol=0, atol=DTYPES[1][1])
    assert set(torch_npu.calls) == {(op_type, layout)}


def test_npu_limits_are_named_and_never_got_round(torch_npu: DenseTorchNpu) -> None:
    def ask(op_type: str, *tensors: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        attention_forward(*tensors, attn_mask=mask, opt_mode="manual", op_type=op_type)

    half = drawn(torch.float16)
    with pytest.raises(UsageError, match="prompt_flash_attn.* computes in bf16 and fp16, not fp32"):
        ask("prompt_flash_attn", *drawn())
    with pytest.raises(UsageError, match="multiple of 16"):
        ask("fused_infer_attn_score", *(tensor[..., :10] for tensor in half))
    with pytest.raises(UsageError, match="same for all heads"):
        ask("prompt_flash_attn", *half, mask=masks()["heads"])
    with pytest.raises(UsageError, match="more than one query"):
        ask("fused_infer_attn_score", half[0][:, :1], *half[1:])
    with pytest.raises(UsageError, match="one of samples too"):
        ask("fused_attn_score", *half, mask=masks()["heads"])
    with pytest.raises(UsageError, match="has no gradient"):
        ask("prompt_flash_attn", half[0].requires_grad_(), *half[1:])
    with pytest.raises(UsageError, match="does not exist on npu; there are prompt_flash_attn, "):
        ask("ascend_laser_attention", *half)
    assert torch_npu.calls == []


def test_npu_static_and_manual_defaults(torch_npu: DenseTorchNpu) -> None:
    attention_forward(*drawn(torch.bfloat16), opt_mode="static")
    attention_forward(*drawn(), opt_mode="static")
    attention_forward(*drawn(torch.bfloat16), opt_mode="manual")
    assert torch_npu.calls == [
        ("prompt_flash_attn", "BNSD"),
        ("fused_attn_score", "BNSD"),  # float32
        ("fused_attn_score", "BNSD"),
    ]


def test_npu_runtime_leaves_out_an_operator_that_is_wrong(
    torch_npu: DenseTorchNpu, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_npu, "npu_prompt_flash_attention", lambda query, *_, **__: query)
    tensors = drawn(torch.bfloat16)
    given = attention_forward(*tensors)
    torch.testing.assert_close(given.double(), in_float64(*tensors), rtol=0, atol=DTYPES[1][1])
    trials = {(trial.name, trial.layout): trial for trial in measurements(CPU, "npu")[0].trials}
    assert len(trials) == 10
    assert all((trial.reason is None) == (name != "prompt_flash_attn") for (name, _), trial in trials.items())
    assert "differs from the definition" in str(trials["prompt_flash_attn", "BSH"].reason)


def test_on_cuda_each_back_end_of_torch_stands_alone(pretend: Callable[[str], None], cache: Path) -> None:
    pretend("cuda")
    tensors = drawn()
    expected = in_float64(*tensors)
    given = attention_forward(*tensors)
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=2e-6)
    reasons = {trial.name: trial.reason for trial in measurements(CPU, "cuda")[0].trials}
    assert reasons["sdpa"] is reasons["sdpa_flash"] is reasons["sdpa_math"] is None
    assert "No viable backend" in str(reasons["sdpa_efficient"])  # these tensors are a CPU's
    assert "No viable backend" in str(reasons["sdpa_cudnn"])
    assert reasons["flash_attn"] == "flash_attn is not installed"
    with pytest.raises(RuntimeError):
        attention_forward(*tensors, opt_mode="manual", op_type="sdpa_cudnn")


def library(name: str, monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for function, value in functions.items():
        setattr(module, function, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_installed_libraries_take_part_and_inexact_ones_on_request(
    pretend: Callable[[str], None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    def flash(query: Any, key: Any, value: Any, *, softmax_scale: float, causal: bool) -> torch.Tensor:
        calls.append(("flash", (tuple(query.shape), causal)))
        return attention_forward(query, key, value, scale=softmax_scale, fused=False)

    def sage(
        query: Any, key: Any, value: Any, *, tensor_layout: str, is_causal: bool, sm_scale: float
    ) -> Any:
        calls.append(("sage", (tensor_layout, is_causal)))
        return 1.05 * attention_forward(query, key, value, scale=sm_scale, fused=False)  # 5 % off

    library("flash_attn", monkeypatch, flash_attn_func=flash)
    library("flash_attn_interface", monkeypatch, flash_attn_func=lambda *a, **b: (flash(*a, **b), None))
    library("sageattention", monkeypatch, sageattn=sage)
    pretend("cuda")
    tensors = [torch.randn(1, 20, 2, 64).bfloat16() for _ in range(3)]
    expected = attention_forward(*tensors, fused=False)
    for op_type in ("flash_attn", "flash_attn_3"):
        assert torch.equal(attention_forward(*tensors, opt_mode="manual", op_type=op_type), expected)
    assert set(calls) == {("flash", ((1, 20, 2, 64), False))}
    attention_forward(*tensors, opt_mode="manual", op_type="sage")
    assert calls[-1] == ("sage", ("NHD", False))
    attention_forward(*tensors)
    trials = {trial.name: trial for trial in measurements(CPU, "cuda")[0].trials}
    assert trials["flash_attn"].reason is trials["flash_attn_3"].reason is trials["sage"].reason is None
    assert trials["sage"].error == pytest.approx(0.05, abs=0.01)
    slow = [
        Trial(trial.name, trial.layout, trial.exact, 9.0, 0.0) for trial in trials.values() if trial.exact
    ]
    measured = Measurement(measurements(CPU, "cuda")[0].problem, (*slow, trials["sage"]), "today")
    best, any_best = measured.best(), measured.best(approximate=True)
    assert best is not None
    assert any_best is not None
    assert (best.exact, any_best.name) == (True, "sage")
    for refused, said in ((torch.ones(20, 20, dtype=torch.bool), "takes no mask"), (None, "not fp32")):
        wide = tensors if refused is not None else [tensor.float() for tensor in tensors]
        with pytest.raises(UsageError, match=said):
            attention_forward(*wide, attn_mask=refused, opt_mode="manual", op_type="flash_attn")


def test_nothing_is_measured_while_a_graph_is_captured(
    pretend: Callable[[str], None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("cuda")
    tensors = drawn()
    attention_forward(*tensors)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    attention_forward(*tensors)
    forget()
    attention_forward(*tensors)  # the choice is on disk
    with pytest.raises(SightlineError, match="call it once before"):
        attention_forward(*(tensor[:1] for tensor in tensors))
