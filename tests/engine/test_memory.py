"""How large the KV cache becomes, and what is said when memory is short."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.data.vision_spec import VisionSpec
from sightline.engine import assembly
from sightline.engine.memory import (
    CacheSize,
    Needs,
    graph_bytes,
    largest_medium,
    sampled_rows,
    size_cache,
)
from sightline.engine.runner import Runner
from sightline.engine.sampling.draw import Drawer
from sightline.engine.settings import EngineSettings
from sightline.errors import SightlineError, UsageError
from sightline.hardware.memory import Memory
from sightline.models.loading import load_model

GIB = 2**30


@dataclass
class Card:
    """An accelerator of 10 GiB whose largest step takes `transient` bytes for a moment."""

    kind: str = "cuda"
    free: int = 7 * GIB
    total: int = 10 * GIB
    transient: int = GIB
    calls: list[str] = field(default_factory=list)
    peak: int = 3 * GIB

    def __str__(self) -> str:
        return self.kind

    def memory(self) -> Memory:
        return Memory(self.free, self.total)

    def reset_peak_memory(self) -> None:
        self.peak = 3 * GIB

    def peak_memory(self) -> int:
        return self.peak

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def profile(self) -> int:
        self.calls.append("profile")
        self.peak += self.transient + 2**20
        return 2**20


def size(card: Card, length: int = 1000, *, given: bool = False, block: int = 2**20, **options: Any) -> Any:
    settings = EngineSettings.of("model", **options).for_device(card.kind)
    needs = Needs(block, 16, length, length_is_given=given)
    return size_cache(settings, card, needs, profile=card.profile)  # type: ignore[arg-type]


def test_a_card_gives_what_weights_and_the_largest_step_leave() -> None:
    card = Card()
    found = size(card, length=10**6)
    # 10 GiB x 0.9 less 1 % for what nobody counts, 3 GiB in use, 1 GiB for a moment.
    assert found.blocks == int(10 * 1024 * 0.89) - 3 * 1024 - 1024
    assert card.calls == ["profile"]
    assert size(Card(), length=10**6, gpu_memory_utilization=0.5).blocks < found.blocks - 4000


def test_no_more_than_the_sequences_can_use() -> None:
    assert size(Card(), length=160, max_num_seqs=2).blocks == 20


def test_a_size_that_is_given_is_taken_without_a_trial() -> None:
    card = Card()
    assert size(card, kv_cache_memory_bytes="1GiB").blocks == 1024
    assert card.calls == []


def test_a_share_on_the_cpu() -> None:
    card = Card("cpu", free=GIB)
    assert size(card, length=10**6, cpu_memory_share=0.5).blocks == 512
    assert card.calls == []


def test_a_length_that_was_not_asked_for_shrinks() -> None:
    found = size(Card("cpu", free=2**24), length=10**6)
    assert found.max_model_len == found.blocks * 16 < 10**6


@pytest.mark.parametrize(
    ("card", "options", "kind", "words"),
    [
        (
            Card("cpu", free=2**24),
            {"given": True},
            UsageError,
            "max_model_len 1000 needs 63.00 MiB of KV cache",
        ),
        (Card("cpu", free=2**24), {"given": True}, UsageError, "lower max_model_len to 96"),
        (Card(free=2**20), {}, SightlineError, "gpu_memory_utilization 0.9"),
        (Card(), {"kv_cache_memory_bytes": 5}, SightlineError, "kv_cache_memory_bytes"),
        (Card("cpu", free=5), {}, SightlineError, "cpu_memory_share"),
        (
            Card("cpu"),
            {"kv_cache_memory_bytes": "900GiB"},
            UsageError,
            "kv_cache_memory_bytes 900.00 GiB is more than the 7.00 GiB of memory left on cpu; lower it",
        ),
        (
            Card(),
            {"kv_cache_memory_bytes": "8GiB"},
            UsageError,
            "more than the 7.00 GiB of memory left on cuda",
        ),
    ],
)
def test_too_little_memory(card: Card, options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as raised:
        size(card, **options)
    assert words in str(raised.value)


def test_the_largest_medium_is_what_the_limits_let_through() -> None:
    spec = VisionSpec("qwen2_vl", max_pixels=16384 * 28 * 28)
    free = EngineSettings("model")
    assert largest_medium(spec, free, 10**6) >= 16384
    assert largest_medium(spec, free, 2000) == 1999
    none = EngineSettings("model", limit_mm_per_prompt={"image": 0, "video": 0})
    assert largest_medium(spec, none, 10**6) == 0
    small = {"image": {"count": 3, "width": 448, "height": 448}, "video": 0}
    assert largest_medium(spec, EngineSettings("model", limit_mm_per_prompt=small), 10**6) == 256


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"),
        RuntimeError("NPU out of memory. Tried to allocate 2.50 GiB (NPU 0; ...)"),
    ],
)
def test_a_step_that_does_not_fit_is_one_sentence(error: Exception) -> None:
    def profile() -> int:
        raise error

    card, needs = Card(), Needs(2**20, 16, 1000)
    with pytest.raises(SightlineError) as raised:
        size_cache(EngineSettings("model").for_device("cuda"), card, needs, profile=profile)  # type: ignore[arg-type]
    text = str(raised.value)
    assert "\n" not in text
    for words in ("2.50 GiB", "max_pixels", "max_num_batched_tokens", "limit_mm_per_prompt", "device_map"):
        assert words in text


def test_other_failures_of_a_step_are_not_called_memory() -> None:
    def profile() -> int:
        raise RuntimeError("shapes do not match")

    settings = EngineSettings("model").for_device("cuda")
    with pytest.raises(RuntimeError, match="shapes"):
        size_cache(settings, Card(), Needs(2**20, 16, 1000), profile=profile)  # type: ignore[arg-type]


def test_rows_of_logits_of_the_largest_step() -> None:
    assert sampled_rows(EngineSettings("model").for_device("cuda")) == 64
    assert sampled_rows(EngineSettings("model", num_speculative_tokens=3).for_device("cuda")) == 256
    drafts = EngineSettings("model", num_speculative_tokens=64, max_num_batched_tokens=100)
    assert sampled_rows(drafts.for_device("cuda")) == 100


def test_captured_steps_are_set_aside() -> None:
    def bytes_of(kind: str, **options: Any) -> int:
        return graph_bytes(EngineSettings.of("model", **options).for_device(kind), Card(kind))  # type: ignore[arg-type]

    assert bytes_of("cpu") == bytes_of("npu") == bytes_of("cuda", enforce_eager=True) == 0
    assert bytes_of("cuda", max_num_seqs=256) > bytes_of("cuda", max_num_seqs=8) > 0


def test_the_largest_step_is_sampled(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in float32 and their sort take more than the logits themselves."""
    settings = EngineSettings("x", max_num_seqs=6, max_num_batched_tokens=40, num_speculative_tokens=2)
    model = load_model(tiny_folder, device="cpu", dtype="fp32")
    drawn: list[tuple[int, ...]] = []
    among_all = Drawer.among_all

    def record(drawer: Drawer, logits: torch.Tensor, *arguments: Any) -> Any:
        drawn.append(tuple(logits.shape))
        return among_all(drawer, logits, *arguments)

    def size(settings: EngineSettings, *rest: Any, profile: Any, reserved: int) -> CacheSize:
        assert profile() > 0
        return size_cache(settings, *rest, profile=profile, reserved=reserved)

    monkeypatch.setattr(Drawer, "among_all", record)
    monkeypatch.setattr(assembly, "size_cache", size)
    assembly.assemble(settings, model)
    assert drawn == [(18, model.processor.config.get_text_config().vocab_size)]


def test_a_cache_that_does_not_fit_is_one_sentence(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(runner: Runner, blocks: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr(Runner, "allocate", allocate)
    with pytest.raises(SightlineError, match="KV cache of .* lower gpu_memory_utilization"):
        assembly.assemble(EngineSettings(tiny_folder, device="cpu"))
