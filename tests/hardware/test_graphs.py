"""Captured decode steps without a GPU: sizes, padding and buffers by a stand-in for the capture, and the order of
calls that a capture makes of torch.cuda."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.hardware import graphs
from sightline.hardware.graphs import DecodeGraphs, sizes
from sightline.hardware.operators.attention.cuda import CudaAttention, plain_decode
from sightline.hardware.operators.attention.paged import Piece, Plan
from sightline.hardware.operators.attention.reference import ReferenceAttention

CPU = torch.device("cpu")
BLOCKS, HEADS, KV_HEADS, SIZE = 40, 4, 2, 8


class Model:
    """One layer of attention, its inputs made of token ids and positions by fixed random tables."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        attention.allocate(
            layers=1, blocks=BLOCKS, kv_heads=KV_HEADS, head_dim=SIZE, dtype=torch.float32, device=CPU
        )
        generator = torch.Generator().manual_seed(0)
        self.tables = [
            torch.randn(100, count, SIZE, generator=generator) for count in (HEADS, KV_HEADS, KV_HEADS)
        ]
        self.batches: list[int] = []

    def step(self, ids: torch.Tensor, positions: torch.Tensor, plan: Plan) -> torch.Tensor:
        self.batches.append(len(ids))
        query, key, value = (table[ids] * (1 + positions.sum(0))[:, None, None] / 20 for table in self.tables)
        return self.attention.attend(0, query, key, value, plan, 0.4).flatten(1)  # type: ignore[no-any-return]


class Recorder:
    """In place of graphs._record: a replay runs the step again on the same buffers, as a graph does."""

    def __init__(self) -> None:
        self.pools: list[Any] = []
        self.replays = 0

    def __call__(self, run: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
        self.pools.append(pool)
        output = run().clone()

        def replay() -> None:
            self.replays += 1
            output.copy_(run())

        return replay, output


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(graphs, "_record", recorder)
    monkeypatch.setattr(graphs, "can_capture", lambda attention: attention.capturable)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    return recorder


def graphs_of(model: Model, **options: Any) -> DecodeGraphs:
    made = DecodeGraphs(model.step, model.attention, max_num_seqs=20, max_blocks=5, **options)
    made.capture()
    return made


def decodes(draw: torch.Generator, rows: int, step: int) -> tuple[torch.Tensor, torch.Tensor, list[Piece]]:
    """A step of `rows` sequences, each in blocks of its own."""
    ids = torch.randint(100, (rows,), generator=draw)
    positions = torch.randint(50, (3, rows), generator=draw)
    return ids, positions, [Piece(1, step, [2 * row + 1, 2 * row]) for row in range(rows)]


@given(st.integers(1, 300))
def test_sizes_pad_by_less_than_eight_rows(most: int) -> None:
    captured = sizes(most)
    assert captured == sorted(set(captured))
    assert captured[-1] == most
    for rows in range(1, most + 1):
        assert min(size for size in captured if size >= rows) - rows < 8


def test_sizes_are_the_documented_ones() -> None:
    assert sizes(32) == [1, 2, 4, 8, 16, 24, 32]
    assert sizes(20) == [1, 2, 4, 8, 16, 20]
    assert sizes(1) == [1]


def test_replayed_steps_are_the_eager_ones_whatever_the_padding(recorder: Recorder) -> None:
    captured = Model(CudaAttention(4, decode=plain_decode))
    decode = graphs_of(captured)
    assert captured.batches == [20, 16, 8, 4, 2, 1]  # largest first, from one pool
    assert recorder.pools == ["pool"] * 6
    eager = Model(ReferenceAttention(4))
    draw = torch.Generator().manual_seed(1)
    for step, rows in enumerate([3, 19, 1, 20, 5, 2, 16, 11]):
        ids, positions, pieces = decodes(draw, rows, step)
        given = decode.run(ids, positions, pieces)
        expected = eager.step(ids, positions, eager.attention.plan(pieces))
        torch.testing.assert_close(given, expected)
    assert captured.batches[6:] == [4, 20, 1, 20, 8, 2, 16, 16]
    assert recorder.replays == 8
    cache = captured.attention.keys[0][:-1].flatten(0, 1)
    torch.testing.assert_close(cache, eager.attention.keys[0])  # padding wrote nothing of anybody's


def test_more_rows_than_were_captured_run_as_they_are(recorder: Recorder) -> None:
    model = Model(CudaAttention(4, decode=plain_decode))
    decode = DecodeGraphs(model.step, model.attention, max_num_seqs=4, max_blocks=5)
    decode.capture()
    decode.run(*decodes(torch.Generator(), 5, 0))
    assert model.batches[-1] == 5
    assert recorder.replays == 0


@pytest.mark.parametrize(
    ("attention", "options"),
    [
        (CudaAttention(4, decode=plain_decode), {"enforce_eager": True}),
        (CudaAttention(4), {}),  # its decode copies by lengths known to the host
    ],
)
def test_what_is_not_captured_runs_as_it_is(
    recorder: Recorder, attention: CudaAttention, options: Any
) -> None:
    model = Model(attention)
    decode = graphs_of(model, **options)
    assert decode.captured == []
    assert model.batches == []
    decode.run(*decodes(torch.Generator(), 3, 0))
    assert model.batches == [3]


def test_a_capture_that_fails_is_said_once_and_steps_run_as_they_are(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(run: Callable[[], torch.Tensor], pool: Any) -> Any:
        if len(recorder.pools) == 2:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return recorder(run, pool)

    monkeypatch.setattr(graphs, "_record", failing)
    model = Model(CudaAttention(4, decode=plain_decode))
    decode = graphs_of(model)
    assert decode.captured == []
    draw = torch.Generator()
    for step in range(3):
        ids, positions, pieces = decodes(draw, 3, step)
        assert decode.run(ids, positions, pieces).shape == (3, HEADS * SIZE)
    assert model.batches[-3:] == [3, 3, 3]
    assert [record.message for record in caplog.records] == [
        "decoding runs without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_attention_of_other_devices_is_not_captured() -> None:
    for attention in (ReferenceAttention(4), CudaAttention(4, decode=plain_decode)):
        Model(attention)
        assert not graphs.can_capture(attention)


def test_a_capture_warms_up_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def inside(name: str) -> Iterator[None]:
        calls.append(f"enter {name}")
        yield
        calls.append(f"leave {name}")

    main = Stream("main")
    names = SimpleNamespace(
        Stream=Stream,
        current_stream=lambda: main,
        stream=lambda stream: inside(stream.name),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: calls.append("replay")),
        graph=lambda graph, pool: inside(f"capture in {pool}"),
    )
    for name, value in vars(names).items():
        monkeypatch.setattr(torch.cuda, name, value)

    def run() -> torch.Tensor:
        calls.append("run")
        return torch.ones(1)

    replay, output = graphs._record(run, "pool")
    replay()
    assert output.item() == 1
    assert calls == [
        "side waits for main",
        "enter side",
        "run",
        "run",
        "leave side",
        "main waits for side",
        "enter capture in pool",
        "run",
        "leave capture in pool",
        "replay",
    ]
