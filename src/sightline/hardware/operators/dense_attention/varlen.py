"""Attention of segments that lie one after the other, each to its own keys."""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from sightline.errors import UsageError
from sightline.hardware.operators.attention.trial import agrees
from sightline.hardware.operators.attention.varlen import flash_takes
from sightline.hardware.operators.dense_attention.reference import reference
from sightline.hardware.operators.forms import drawn, kind_of

log = logging.getLogger("sightline.hardware")

# npu_fusion_attention takes at most this many segments, and a causal mask of this size whatever the lengths are.
_NPU_SEGMENTS = 1024
_NPU_MASK = 2048

Bounds = tuple[int, ...]
Segments = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Bounds, Bounds, float, bool], torch.Tensor]


def attention_forward_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor | Sequence[int],
    cu_seqlens_k: torch.Tensor | Sequence[int],
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    fused: bool = True,
) -> torch.Tensor:
    """Attention of each segment of queries to the segment of keys of the same number.

    Args:
        q: [Tq, N, D]; k, v: [Tk, M, D], M dividing N.
        cu_seqlens_q, cu_seqlens_k: where each segment begins, and the number of tokens: [segments + 1] with the
            leading 0. Integers on the host are read without waiting for a device.
        max_seqlen_q, max_seqlen_k: accepted for the signature's sake; the lengths say it.
        dropout_p: 0; there is no dropout here.
        softmax_scale: D ** -0.5 when None.
        causal: the last query of a segment sees all its keys, each one before it a key less. A query that sees none
            gets zeros.
        fused: False computes the definition in float32 by plain torch.

    Returns:
        [Tq, N, D]

    Raises:
        UsageError: shapes or bounds do not fit, or dropout is asked for.
    """
    if dropout_p != 0.0:
        raise UsageError(f"attention_forward_varlen has no dropout; give dropout_p 0, not {dropout_p}")
    if (
        q.dim() != 3
        or k.dim() != 3
        or k.shape != v.shape
        or q.shape[2] != k.shape[2]
        or q.shape[1] % k.shape[1]
    ):
        shapes = " ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise UsageError(
            f"q, k and v {shapes} do not fit one another as [T, N, D]: the head size is shared, and the key heads "
            "divide the query heads"
        )
    ends_q, ends_k = (
        _bounds(cu_seqlens_q, len(q), "cu_seqlens_q"),
        _bounds(cu_seqlens_k, len(k), "cu_seqlens_k"),
    )
    if len(ends_q) != len(ends_k):
        raise UsageError(
            f"cu_seqlens_q has {len(ends_q) - 1} segments, cu_seqlens_k {len(ends_k) - 1}; they must be as many"
        )
    scale = q.shape[2] ** -0.5 if softmax_scale is None else float(softmax_scale)
    segments = _plain if not fused else _chosen(kind_of(q), q.device, q.dtype, q.shape[2])
    return segments(q, k, v, ends_q, ends_k, scale, causal)


def _bounds(given: torch.Tensor | Sequence[int], tokens: int, name: str) -> Bounds:
    values = given.tolist() if isinstance(given, torch.Tensor) else [int(value) for value in given]
    if len(values) < 2 or values[0] != 0 or values[-1] != tokens or sorted(values) != values:
        raise UsageError(
            f"{name} {values[:8]} must begin with 0, never fall, and end with the number of tokens, {tokens}"
        )
    return tuple(values)


@functools.lru_cache(maxsize=16)
def _chosen(kind: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Segments:
    """The device's form, if a trial shows that it is right."""
    form: Segments | None = None
    if kind == "npu" and dtype in (torch.float16, torch.bfloat16, torch.float32) and head_dim <= 768:
        form = _npu
    elif flash_takes(device, dtype, head_dim):
        form = _flash
    if form is None:
        return _each
    q, k, v = drawn(device, dtype, (50, 2, head_dim), (61, 2, head_dim), (61, 2, head_dim))
    ends_q, ends_k = (0, 17, 18, 50), (0, 20, 21, 61)

    def both(segments: Segments) -> torch.Tensor:
        return torch.cat([segments(q, k, v, ends_q, ends_k, 0.1, causal) for causal in (False, True)])

    expected = both(_plain)

    def attempt() -> torch.Tensor:
        assert form is not None
        return both(form)

    if agrees(f"varlen attention of {dtype} at head size {head_dim}", attempt, expected):
        return form
    log.warning("varlen attention on %s runs segment by segment: its fused operator failed its trial", device)
    return _each


def _pairs(ends_q: Bounds, ends_k: Bounds) -> list[tuple[slice, slice]]:
    return [
        (slice(*queries), slice(*keys))
        for queries, keys in zip(itertools.pairwise(ends_q), itertools.pairwise(ends_k), strict=True)
    ]


def _causal_mask(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """[1, 1, queries, keys], True where a query sees a key: the last one sees all."""
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ends_q: Bounds,
    ends_k: Bounds,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    parts = []
    for queries, keys in _pairs(ends_q, ends_k):
        query, key, value = q[queries][None], k[keys][None], v[keys][None]
        keep = _causal_mask(query.shape[1], key.shape[1], q.device) if causal else None
        empty = key.shape[1] == 0
        parts.append(torch.zeros_like(query) if empty else reference(query, key, value, keep, scale, False))
    return torch.cat(parts, dim=1)[0]


def _each(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ends_q: Bounds,
    ends_k: Bounds,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """One call of scaled_dot_product_attention for each segment."""
    shared = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    parts = []
    for queries, keys in _pairs(ends_q, ends_k):
        query, key, value = (t[None].transpose(1, 2) for t in (q[queries], k[keys], v[keys]))
        if key.shape[2] == 0:
            parts.append(torch.zeros_like(query))
            continue
        keep = _causal_mask(query.shape[2], key.shape[2], q.device) if causal else None
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=keep, scale=scale, **shared
        )
        parts.append(mixed if keep is None else mixed.masked_fill(~keep.any(-1, keepdim=True), 0))
    return torch.cat(parts, dim=2)[0].transpose(0, 1)


def _flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ends_q: Bounds,
    ends_k: Bounds,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """torch's varlen attention (FlashAttention 2); causal is laid on the last query and key, as here."""
    from torch.nn.attention.varlen import varlen_attn

    longest = [max(b - a for a, b in itertools.pairwise(ends)) for ends in (ends_q, ends_k)]
    bounds = [torch.tensor(ends, dtype=torch.int32, device=q.device) for ends in (ends_q, ends_k)]
    operator: Any = varlen_attn
    mixed: torch.Tensor = operator(
        q,
        k,
        v,
        *bounds,
        *longest,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    for queries, keys in _pairs(ends_q, ends_k):
        count, seen = queries.stop - queries.start, keys.stop - keys.start
        blind = count if seen == 0 else max(0, count - seen) if causal else 0
        mixed[queries.start : queries.start + blind] = 0
    return mixed


def _npu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ends_q: Bounds,
    ends_k: Bounds,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """npu_fusion_attention on packed segments, whose ends are cumulative without the leading 0.

    It takes no row that sees nothing: with an empty segment, or a causal one of more queries than keys, every segment
    is computed by itself.
    """
    lengths = [(a.stop - a.start, b.stop - b.start) for a, b in _pairs(ends_q, ends_k)]
    blind = any(keys == 0 or queries == 0 or (causal and queries > keys) for queries, keys in lengths)
    if blind or len(lengths) > _NPU_SEGMENTS:
        return _each(q, k, v, ends_q, ends_k, scale, causal)
    torch_npu: Any = importlib.import_module("torch_npu")
    masked: dict[str, Any] = {}
    if causal:
        # With sparse mode 3 the mask's last row is laid on the last query and the last key of each segment.
        future = torch.ones(_NPU_MASK, _NPU_MASK, dtype=torch.bool, device=q.device).triu(1)
        masked = {"atten_mask": future, "sparse_mode": 3}
    mixed: torch.Tensor = torch_npu.npu_fusion_attention(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        q.shape[1],
        "TND",
        scale=scale,
        keep_prob=1.0,
        actual_seq_qlen=ends_q[1:],
        actual_seq_kvlen=ends_k[1:],
        **masked,
    )[0]
    return mixed
