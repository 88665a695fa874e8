"""Runs the Triton decode kernel in Triton's interpreter on the CPU; test_paged_decode.py starts it with
TRITON_INTERPRET=1, which must be set before the first import of triton and is nothing for other tests."""

from __future__ import annotations

import torch
from paged_steps import assert_agrees, random_steps

from sightline.hardware.operators.attention import paged_decode as module
from sightline.hardware.operators.attention.cuda import CudaAttention, plain_decode
from sightline.hardware.operators.attention.paged_decode import paged_decode


def compare(
    rows: int, heads: int, kv_heads: int, size: int, block: int, longest: int, dtype: torch.dtype
) -> int:
    """One call beside the plain form, on lengths from 1 to `longest`; returns into how many parts it was cut."""
    width = -(-longest // block)
    keys, values = (torch.randn(width * 3, block, kv_heads, size).to(dtype) for _ in range(2))
    tables = torch.stack([torch.randperm(width * 3)[:width] for _ in range(rows)]).int()
    lengths = torch.randint(1, longest + 1, (rows,)).int()
    lengths[0], lengths[-1] = 1, longest
    # What lies behind a row's length is nobody's: a wrong block there must not be read.
    for row, length in enumerate(lengths.tolist()):
        tables[row, -(-length // block) :] = 2**30
    query = torch.randn(heads, rows, size).to(dtype).transpose(0, 1)
    given = paged_decode(query, keys, values, tables, lengths, 0.3)
    safe = torch.where(tables == 2**30, 0, tables)
    expected = plain_decode(query.float(), keys.float(), values.float(), safe, lengths, 0.3)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(given.float(), expected, rtol=tolerance, atol=tolerance)
    return module._parts(rows * kv_heads, width * block, 32, query.device)


def main() -> None:
    torch.manual_seed(0)
    parts = {
        compare(1, 8, 2, 64, 16, 300, torch.float32),
        compare(2, 7, 1, 80, 5, 41, torch.float32),
        compare(2, 4, 4, 24, 1, 33, torch.float32),
        compare(2, 40, 2, 32, 48, 200, torch.float32),
        compare(2, 4, 2, 128, 16, 260, torch.float16),  # the interpreter multiplies bf16's bits as integers
    }
    assert {1, 4} <= parts, parts  # both ways through: alone, and cut into parts that are joined
    assert_agrees(CudaAttention(4, decode=paged_decode), random_steps(0, 4, steps=3, longest=12))
    print("agreed")


main()
