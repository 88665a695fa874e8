"""How large the KV cache becomes, and what is said when memory is short."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from sightline.data.vision_spec import VisionSpec
from sightline.engine.memory import Needs, largest_medium, size_cache
from sightline.engine.settings import EngineSettings
from sightline.errors import SightlineError, UsageError
from sightline.hardware.memory import Memory

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
