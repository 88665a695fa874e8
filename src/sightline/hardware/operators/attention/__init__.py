"""Attention over the key-value cache in blocks, in the form that is fastest on each device.

`paged` says what a backend does, `reference` is its definition, the others are one device each. SIGHTLINE_ATTENTION=
reference makes every device use the definition: slow, and the way to tell whether a wrong answer comes from here.
"""

from __future__ import annotations

import logging
import os

import torch

from sightline.hardware.operators.attention.paged import PagedAttention
from sightline.hardware.operators.attention.reference import ReferenceAttention

log = logging.getLogger("sightline.hardware")


def choose(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    *,
    heads: int = 8,
    kv_heads: int = 2,
    block_size: int | None = None,
) -> PagedAttention:
    """The attention for models of these heads on `device`; its cache is not allocated yet.

    A device's operators are tried on a small cache first, which takes a second or two; what does not agree with the
    reference there is replaced by a slower form, and a warning says so.

    Args:
        block_size: None for what the backend prefers.

    Raises:
        UsageError: the device's operators cannot read blocks of `block_size` tokens.
    """
    if os.environ.get("SIGHTLINE_ATTENTION") == "reference":
        return ReferenceAttention(block_size)
    if device.type == "cpu":
        from sightline.hardware.operators.attention.cpu import CpuAttention

        return CpuAttention(block_size)
    if device.type == "cuda":
        return _on_cuda(device, dtype, head_dim, heads, kv_heads, block_size)
    if device.type == "npu":
        return _on_npu(device, dtype, head_dim, heads, kv_heads, block_size)
    return ReferenceAttention(block_size)


def _on_cuda(
    device: torch.device, dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, block_size: int | None
) -> PagedAttention:
    from sightline.hardware.operators.attention.cuda import CudaAttention, Decode, Prompt
    from sightline.hardware.operators.attention.trial import backend_agrees
    from sightline.hardware.operators.attention.varlen import causal_varlen, flash_takes

    decode: Decode | None = None
    prompt: Prompt | None = None
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    try:
        from sightline.hardware.operators.attention.paged_decode import paged_decode
    except ImportError:
        log.warning("decoding on %s copies the KV cache in every step: install triton", device)
    else:
        if backend_agrees(
            CudaAttention(block_size, decode=paged_decode), **shape, dtype=dtype, device=device
        ):
            decode = paged_decode
        else:
            log.warning("decoding on %s copies the KV cache in every step: its Triton kernel failed", device)
    if flash_takes(device, dtype, head_dim) and backend_agrees(
        CudaAttention(block_size, prompt=causal_varlen), **shape, dtype=dtype, device=device
    ):
        prompt = causal_varlen
    return CudaAttention(block_size, decode=decode, prompt=prompt)


def _on_npu(
    device: torch.device, dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, block_size: int | None
) -> PagedAttention:
    from sightline.hardware.operators.attention.npu import NpuAttention
    from sightline.hardware.operators.attention.trial import backend_agrees

    attention = NpuAttention(block_size)
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    if attention.takes(**shape, dtype=dtype) and backend_agrees(
        attention, **shape, dtype=dtype, device=device
    ):
        return attention
    log.warning("%s attends without its fused operators, slowly: they do not serve %s here", device, dtype)
    return ReferenceAttention(attention.block_size)
