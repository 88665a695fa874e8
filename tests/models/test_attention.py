"""Our attention against torch's fused one and against transformers' own models."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import FAMILIES, make_model_folder

from sightline.models import attention
from sightline.models.attention import _products
from sightline.models.loading import load_model

# Relative to the largest value: rounding of float32, and of bf16 with its 8 bits.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def inputs(heads: int, shared: int, rows: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(heads * rows)
    shapes = [(2, heads, rows, 16), (2, shared, rows, 16), (2, shared, rows, 16)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("rows", [2, 33])
def test_equals_torch(dtype: torch.dtype, causal: bool, heads: int, shared: int, rows: int) -> None:
    query, key, value = inputs(heads, shared, rows, dtype)
    actual, _ = attention.attention(SimpleNamespace(), query, key, value, None, scaling=0.3, is_causal=causal)
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    reference = torch.nn.functional.scaled_dot_product_attention(
        *exact, is_causal=causal, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    assert actual.shape == (2, rows, heads, 16)
    assert actual.dtype == dtype
    weight = torch.randn(actual.shape)
    given = torch.autograd.grad((actual.float() * weight).sum(), [query, key, value])
    wanted = torch.autograd.grad((reference * weight).sum(), exact)
    for one, other in [(actual, reference), *zip(given, wanted, strict=True)]:
        difference = (one.double() - other).detach().abs().max() / other.detach().abs().max()
        assert float(difference) < TOLERANCE[dtype]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often plain products were used."""
    calls: list[int] = []

    def count(*args: Any) -> torch.Tensor:
        calls.append(1)
        return _products(*args)

    monkeypatch.setattr(attention, "_products", count)
    return calls


def test_masks_dropout_and_large_scores_go_to_torch(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(is_causal=True, training=True, config=None, num_key_value_groups=1)
    query, key, value = inputs(2, 2, 8, torch.float32)
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    masked, _ = attention.attention(module, query, key, value, mask, scaling=0.25)
    assert counted == []
    plain, _ = attention.attention(module, query, key, value, None, scaling=0.25)
    assert counted == [1]
    torch.testing.assert_close(plain, masked)
    attention.attention(module, query, key, value, None, scaling=0.25, dropout=0.5)
    monkeypatch.setattr(attention, "_SMALL", 2 * 2 * 8 * 8 - 1)
    fused, _ = attention.attention(module, query, key, value, None, scaling=0.25)
    assert counted == [1]
    torch.testing.assert_close(fused, masked)


def test_one_new_token_sees_everything_before_it(counted: list[int]) -> None:
    module = SimpleNamespace(is_causal=True, training=False, config=None, num_key_value_groups=1)
    query, key, value = inputs(2, 2, 8, torch.float32)
    last, _ = attention.attention(module, query[:, :, -1:], key, value, None, scaling=0.25)
    whole, _ = attention.attention(module, query, key, value, None, scaling=0.25)
    torch.testing.assert_close(last[:, 0], whole[:, -1])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_models_give_the_logits_of_sdpa_and_eager(model_type: str, tmp_path: Any, counted: list[int]) -> None:
    from PIL import Image as Pillow

    from sightline.data.conversation import Conversation, Image, Message, Text

    folder = make_model_folder(tmp_path / "model", model_type)
    loaded = load_model(folder, device="cpu", dtype="fp32", attention=attention.register())
    picture = Pillow.new("RGB", (112, 84), "red")
    talk = Conversation([Message("user", [Image(picture), Text("what shape?")])])
    encoded = loaded.processor.encode(talk, supervise=False)
    call = {
        "input_ids": encoded.input_ids[None],
        "position_ids": encoded.position_ids[:, None],
        "pixel_values": encoded.pixel_values,
        "image_grid_thw": encoded.image_grid_thw,
    }
    trained = loaded.module(**call).logits
    assert len(counted) >= 4  # two layers of text, two of vision
    with torch.no_grad():
        ours = loaded.module(**call).logits
        torch.testing.assert_close(ours, trained)  # the tower in blocks, as inference has it
        for other in ("sdpa", "eager"):
            module = load_model(folder, device="cpu", dtype="fp32", attention=other).module
            torch.testing.assert_close(ours, module(**call).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 9, 4, 1, 9], [7], [3, 0, 3]])
def test_segments_equal_one_call_for_each(lengths: list[int]) -> None:
    torch.manual_seed(len(lengths))
    total = sum(lengths)
    query, key, value = (torch.randn(1, 2, total, 8, requires_grad=True) for _ in range(3))
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    actual, _ = attention.segment_attention(SimpleNamespace(), query, key, value, None, ends, scaling=0.4)
    split = [tensor.split(lengths, dim=2) for tensor in (query, key, value)]
    parts = [
        torch.nn.functional.scaled_dot_product_attention(*part, scale=0.4)
        for part in zip(*split, strict=True)
    ]
    reference = torch.cat(parts, dim=2).transpose(1, 2)
    torch.testing.assert_close(actual, reference, atol=1e-6, rtol=1e-5)
    weight = torch.randn(actual.shape)
    given = torch.autograd.grad((actual * weight).sum(), [query, key, value])
    wanted = torch.autograd.grad((reference * weight).sum(), [query, key, value])
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_towers_give_the_features_of_transformers(model_type: str, tmp_path: Any) -> None:
    folder = make_model_folder(tmp_path / model_type, model_type)
    ours = load_model(folder, device="cpu", dtype="fp32").module.model.visual
    theirs = type(ours)._from_config(copy.deepcopy(ours.config), attn_implementation="eager").eval()
    theirs.load_state_dict(ours.state_dict())
    assert ours.config._attn_implementation == attention.SEGMENTS
    torch.manual_seed(0)
    grids = torch.tensor([[1, 4, 6], [1, 4, 6], [2, 8, 4], [1, 10, 10]])
    pixels = torch.randn(int(grids.prod(-1).sum()), 3 * 2 * 14 * 14)
    with torch.inference_mode():
        one = ours(pixels, grid_thw=grids).pooler_output
        other = theirs(pixels, grid_thw=grids).pooler_output
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
