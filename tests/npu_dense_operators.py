"""A stand-in for torch_npu's operators over whole tensors: what their pages allow, computed plainly.

Sources: docs/context of Ascend/op-plugin, torch_npu-npu_prompt_flash_attention.md, torch_npu-npu_fusion_attention.md,
torch_npu-npu_fused_infer_attention_score.md, torch_npu-npu_rotary_mul.md, torch_npu-npu_gelu.md and
torch_npu-npu_fast_gelu.md (Atlas A2 and A3). Rows that see no key come out as nan, as nobody promises anything there.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.nn import functional

HALF = (torch.float16, torch.bfloat16)
ALL = 2**31 - 1


class DenseTorchNpu:
    """Put it at sys.modules["torch_npu"]. `calls` records the operators' names and what distinguishes the call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def npu_prompt_flash_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        atten_mask: torch.Tensor | None = None,
        num_heads: int = 1,
        scale_value: float = 1.0,
        pre_tokens: int = ALL,
        next_tokens: int = 0,
        input_layout: str = "BSH",
        num_key_value_heads: int = 0,
    ) -> torch.Tensor:
        self.calls.append(("prompt_flash_attn", input_layout))
        assert query.dtype in HALF
        assert atten_mask is None or (pre_tokens == next_tokens == ALL)
        assert atten_mask is None or atten_mask.shape[1] == 1
        return attend(
            query,
            key,
            value,
            atten_mask,
            scale_value,
            input_layout,
            num_heads,
            num_key_value_heads or num_heads,
        )

    def npu_fused_infer_attention_score(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        atten_mask: torch.Tensor | None = None,
        num_heads: int = 1,
        scale: float = 1.0,
        pre_tokens: int = ALL,
        next_tokens: int = ALL,
        input_layout: str = "BSH",
        num_key_value_heads: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append(("fused_infer_attn_score", input_layout))
        assert query.dtype in HALF
        assert pre_tokens == next_tokens == ALL
        assert atten_mask is None or atten_mask.shape[1] == 1
        heads = num_key_value_heads or num_heads
        return attend(query, key, value, atten_mask, scale, input_layout, num_heads, heads), torch.zeros(1)

    def npu_fusion_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        head_num: int,
        input_layout: str,
        *,
        atten_mask: torch.Tensor | None = None,
        scale: float = 1.0,
        keep_prob: float = 1.0,
        pre_tockens: int = ALL,
        next_tockens: int = ALL,
        actual_seq_qlen: tuple[int, ...] | None = None,
        actual_seq_kvlen: tuple[int, ...] | None = None,
        sparse_mode: int = 0,
    ) -> tuple[Any, ...]:
        self.calls.append(("fused_attn_score", input_layout))
        assert query.dtype in (*HALF, torch.float32)
        assert keep_prob == 1.0
        assert pre_tockens == next_tockens == ALL
        rest = (None, None, None, 0, 0, 0)
        if input_layout != "TND":
            kv_heads = key.shape[2] * head_num // query.shape[2] if input_layout == "BSH" else None
            return attend(query, key, value, atten_mask, scale, input_layout, head_num, kv_heads), *rest
        assert actual_seq_qlen is not None
        assert actual_seq_kvlen is not None
        assert 0 < len(actual_seq_qlen) <= 1024
        bounds = [list(itertools.pairwise((0, *ends))) for ends in (actual_seq_qlen, actual_seq_kvlen)]
        assert (bounds[0][-1][1], bounds[1][-1][1]) == (len(query), len(key))
        parts = []
        for (a, b), (c, d) in zip(*bounds, strict=True):
            assert b > a
            assert d > c
            masked = None
            if atten_mask is not None:
                assert sparse_mode == 3
                assert torch.equal(atten_mask, torch.ones(2048, 2048, dtype=torch.bool).triu(1))
                masked = torch.ones(1, 1, b - a, d - c, dtype=torch.bool).triu(d - c - (b - a) + 1)
                assert not masked.all(-1).any(), "a row that sees nothing"
            segment = query[a:b][None], key[c:d][None], value[c:d][None]
            parts.append(attend(*segment, masked, scale, "BSND", head_num, None)[0])
        return torch.cat(parts), *rest

    def npu_rotary_mul(
        self, input: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, rotary_mode: str = "half"
    ) -> torch.Tensor:
        self.calls.append(("rotary", rotary_mode))
        assert input.dim() == r1.dim() == 4
        assert input.shape[-1] < 896
        assert input.dtype == r1.dtype
        spans = [axis for axis in range(3) if r1.shape[axis] != 1]
        if rotary_mode == "interleave":
            assert len(spans) == 1, "11SD, 1S1D or S11D"
            pairs = input.unflatten(-1, (-1, 2))
            turned = torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(-2)
        else:
            assert rotary_mode == "half"
            assert spans in ([0], [1], [2], [0, 1], [0, 2]) or r1.shape == input.shape
            turned = torch.cat((-input[..., input.shape[-1] // 2 :], input[..., : input.shape[-1] // 2]), -1)
        return (input.float() * r1.float() + turned.float() * r2.float()).to(input.dtype)

    def npu_rms_norm(
        self, x: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append(("rms_norm", epsilon))
        assert gamma.shape == x.shape[-1:]
        assert gamma.dtype == x.dtype
        root = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
        return (x.float() * root * gamma.float()).to(x.dtype), root

    def npu_layer_norm_eval(
        self,
        input: torch.Tensor,
        normalized_shape: list[int],
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        self.calls.append(("layer_norm", tuple(input.shape)))
        assert weight is not None
        assert list(weight.shape) == normalized_shape == [input.shape[-1]]
        assert not input.requires_grad
        return functional.layer_norm(input, normalized_shape, weight, bias, eps)

    def npu_swiglu(self, input: torch.Tensor, dim: int = -1) -> torch.Tensor:
        self.calls.append(("swiglu", dim))
        assert input.shape[dim] % 2 == 0
        gate, up = input.float().chunk(2, dim)
        return (gate * torch.sigmoid(gate) * up).to(input.dtype)

    def npu_gelu(self, input: torch.Tensor, approximate: str = "none") -> torch.Tensor:
        self.calls.append(("gelu", approximate))
        return functional.gelu(input, approximate=approximate)

    def npu_fast_gelu(self, input: torch.Tensor) -> torch.Tensor:
        self.calls.append(("fast_gelu", None))
        return (input.float() / (1 + torch.exp(-1.702 * input.float()))).to(input.dtype)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    masked: torch.Tensor | None,
    scale: float,
    layout: str,
    heads: int,
    kv_heads: int | None,
) -> torch.Tensor:
    """In the layout given; `masked` is True where there is nothing to see, [B|1, N|1, Sq, Sk]."""
    assert all(tensor.is_contiguous() for tensor in (query, key, value)), "non-contiguous tensors"
    assert query.dtype == key.dtype == value.dtype
    shape = query.shape
    if layout == "BSH":
        assert kv_heads is not None
        query = query.unflatten(2, (heads, -1))
        key, value = (tensor.unflatten(2, (kv_heads, -1)) for tensor in (key, value))
    else:
        assert layout in ("BSND", "BNSD")
    if layout != "BNSD":
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    assert query.shape[1] == heads
    assert kv_heads in (None, key.shape[1])
    group = heads // key.shape[1]
    key, value = (tensor.repeat_interleave(group, 1).float() for tensor in (key, value))
    scores = query.float() @ key.transpose(2, 3) * scale
    if masked is not None:
        assert masked.dtype in (torch.bool, torch.uint8)
        assert masked.is_contiguous()
        assert masked.shape[2:] == scores.shape[2:], "the whole mask"
        assert masked.shape[0] in (1, len(query))
        assert masked.shape[1] in (1, heads)
        scores = scores.masked_fill(masked.bool(), float("-inf"))
    mixed = (scores.softmax(-1) @ value).to(query.dtype)
    return (mixed if layout == "BNSD" else mixed.transpose(1, 2)).reshape(shape)
