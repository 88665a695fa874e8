"""The real operators on a real GPU: what choose() takes, a captured step, segments of a vision tower's head size."""

from __future__ import annotations

import pytest
import torch
from paged_steps import assert_agrees, random_steps

from sightline.hardware.graphs import DecodeGraphs
from sightline.hardware.operators.attention import choose, varlen
from sightline.hardware.operators.attention.cuda import CudaAttention
from sightline.hardware.operators.attention.paged import Piece, Plan
from sightline.hardware.operators.attention.reference import ReferenceAttention

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)]
)
@pytest.mark.parametrize("heads", [(12, 2), (28, 4), (4, 4)])
def test_the_chosen_attention_agrees(dtype: torch.dtype, tolerance: float, heads: tuple[int, int]) -> None:
    shape = {"heads": heads[0], "kv_heads": heads[1]}
    attention = choose(CUDA, dtype, 128, **shape)
    assert isinstance(attention, CudaAttention)
    assert attention.capturable, "the Triton kernel did not agree with the reference"
    steps = random_steps(3, attention.block_size, longest=200)
    assert_agrees(attention, steps, **shape, head_dim=128, dtype=dtype, tolerance=tolerance, device=CUDA)


def test_long_contexts_are_cut_into_parts_and_joined() -> None:
    attention = choose(CUDA, torch.bfloat16, 128, heads=12, kv_heads=2)
    context = 16 * 58
    table = list(range(60))
    shape = {"heads": 12, "kv_heads": 2, "head_dim": 128}
    steps = [[Piece(context, 0, table)], [Piece(1, context, table)], [Piece(1, context + 1, table)]]
    assert_agrees(attention, steps, **shape, dtype=torch.bfloat16, tolerance=5e-2, device=CUDA)


def test_a_captured_step_gives_what_the_eager_one_gives() -> None:
    attention = choose(CUDA, torch.bfloat16, 64, heads=4, kv_heads=2)
    assert isinstance(attention, CudaAttention)
    tables = [torch.randn(50, count, 64, device=CUDA, dtype=torch.bfloat16) for count in (4, 2, 2)]

    def step(attention: CudaAttention | ReferenceAttention, ids: torch.Tensor, plan: Plan) -> torch.Tensor:
        return attention.attend(0, *(table[ids] for table in tables), plan, 0.125).flatten(1)

    reference = ReferenceAttention(attention.block_size)
    for each in (attention, reference):
        each.allocate(layers=1, blocks=40, kv_heads=2, head_dim=64, dtype=torch.bfloat16, device=CUDA)
    graphs = DecodeGraphs(
        lambda ids, positions, plan: step(attention, ids, plan), attention, max_num_seqs=12, max_blocks=8
    )
    graphs.capture()
    assert graphs.captured == [1, 2, 4, 8, 12]
    for at in range(40):
        rows = at % 11 + 1
        ids = torch.randint(50, (rows,), device=CUDA)
        pieces = [Piece(1, at, [3 * row, 3 * row + 2, 3 * row + 1]) for row in range(rows)]
        given = graphs.run(ids, torch.zeros(3, rows, dtype=torch.int64, device=CUDA), pieces)
        expected = step(reference, ids, reference.plan(pieces))
        torch.testing.assert_close(given, expected, rtol=0, atol=5e-2)


@pytest.mark.parametrize("size", [64, 80, 128])
def test_segments_of_a_vision_tower(size: int) -> None:
    tensors = [torch.randn(300, 4, size, device=CUDA, dtype=torch.bfloat16) for _ in range(3)]
    bounds = torch.tensor([0, 64, 128, 131, 300], dtype=torch.int32, device=CUDA)
    given = varlen.varlen(*tensors, bounds, size**-0.5)
    if given is None:
        pytest.skip("torch has no varlen attention for this device")
    parts = zip(*(tensor.split([64, 64, 3, 169]) for tensor in tensors), strict=True)
    expected = torch.cat([varlen._plain(*part, size**-0.5) for part in parts])
    torch.testing.assert_close(given, expected, rtol=0, atol=2e-2)
