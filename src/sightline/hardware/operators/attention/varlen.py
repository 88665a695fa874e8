"""Attention within segments that lie one after the other: vision towers, and prompts whose keys are gathered.

Each function returns None where no operator of the device takes these tensors; the caller then has its own way.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from sightline.hardware.operators.attention.trial import agrees

# The lengths of segments are asked for on the host, in every layer of a tower with the same tensor.
_ends: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

# npu_fusion_attention takes at most this many segments.
_NPU_SEGMENTS = 2048


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
) -> torch.Tensor | None:
    """Attention of each segment to itself, not causal.

    Args:
        query, key, value: [tokens, heads, head_dim].
        cu_seqlens: [segments + 1] integers, where each segment begins, and the number of tokens. It is read once:
            do not change it in place.
        scale: what the products of queries and keys are multiplied by.

    Returns:
        [tokens, heads, head_dim], or None: no operator for this device, dtype or head size.
    """
    operator = _operator(query.device, query.dtype, query.shape[-1])
    return None if operator is None else operator(query, key, value, cu_seqlens, scale)


def causal_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
) -> torch.Tensor:
    """Causal attention of segments on CUDA, the last query of a segment seeing all its keys.

    Args:
        query: [T, heads, head_dim]; key, value: [S, kv_heads, head_dim].
        cu_query, cu_key: [segments + 1] int32 on the device.
    """
    return _varlen_attn()(
        query,
        key,
        value,
        cu_query,
        cu_key,
        longest_query,
        longest_key,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )


def flash_takes(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether torch's varlen attention is there and its FlashAttention 2 takes these: Ampere and later, half
    precision, a head size of a multiple of 8 up to 256."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    if head_dim % 8 or head_dim > 256 or torch.get_device_module(device).get_device_capability(device)[0] < 8:
        return False
    try:
        known = set(inspect.signature(_varlen_attn()).parameters)
    except ImportError:  # before torch 2.10
        return False
    # The first versions took neither a scale nor fewer key heads than query heads.
    return {"scale", "window_size", "enable_gqa"} <= known


def _varlen_attn() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


Operator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor | None]


@functools.lru_cache(maxsize=16)
def _operator(device: torch.device, dtype: torch.dtype, head_dim: int) -> Operator | None:
    """The device's operator, if a trial shows that it is right."""
    if flash_takes(device, dtype, head_dim):
        return _tried("varlen_attn", _flash, device, dtype, head_dim)
    if device.type == "npu" and dtype in (torch.float16, torch.bfloat16) and head_dim <= 768:
        return _tried("npu_fusion_attention", _npu, device, dtype, head_dim)
    return None


def _tried(
    name: str, operator: Operator, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Operator | None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(50, 2, head_dim, generator=generator).to(device, dtype) for _ in range(3)
    )
    ends = torch.tensor([0, 17, 18, 50], dtype=torch.int32, device=device)
    expected = torch.cat(
        [_plain(query[a:b], key[a:b], value[a:b], 0.1) for a, b in ((0, 17), (17, 18), (18, 50))]
    )

    def attempt() -> torch.Tensor:
        given = operator(query, key, value, ends, 0.1)
        assert given is not None
        return given

    return operator if agrees(f"{name} at head size {head_dim}", attempt, expected) else None


def _plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    scores = torch.einsum("qhd,khd->hqk", query.float() * scale, key.float()).softmax(-1)
    return torch.einsum("hqk,khd->qhd", scores, value.float()).to(query.dtype)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, scale: float
) -> torch.Tensor:
    ends = segment_ends(cu_seqlens)
    longest = max((end - start for start, end in itertools.pairwise((0, *ends))), default=0)
    bounds = cu_seqlens.to(query.device, torch.int32)
    return _varlen_attn()(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _npu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, scale: float
) -> torch.Tensor | None:
    """npu_fusion_attention, as transformers calls it for segments: its ends are cumulative, without the leading 0.

    Its page says that it is for training (it cannot be captured in a graph); eager inference is a forward alone.
    The inference operators take packed segments (TND) only at head sizes that no vision tower here has.
    """
    ends = segment_ends(cu_seqlens)
    if len(ends) > _NPU_SEGMENTS:
        return None
    torch_npu: Any = importlib.import_module("torch_npu")
    outputs = torch_npu.npu_fusion_attention(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        query.shape[1],
        "TND",
        scale=scale,
        keep_prob=1.0,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
        sparse_mode=0,
    )
    return outputs[0]


def segment_ends(cu_seqlens: torch.Tensor) -> tuple[int, ...]:
    """The ends of segments that are not empty, on the host; a device is asked once for each tensor."""
    known = _ends.get(cu_seqlens)
    if known is None:
        bounds = cu_seqlens.tolist()
        known = tuple(end for start, end in itertools.pairwise(bounds) if end > start)
        _ends[cu_seqlens] = known
    return known
