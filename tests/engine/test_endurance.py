"""Hundreds of requests, many of them left halfway: no block lost, and memory stays as it is."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import psutil
from PIL import Image as Pillow

from sightline import LLM, SamplingParams
from sightline.engine.stream import Stream

REQUESTS = 500
# Allocators keep pages for later; a request that was not let go of would keep its tensors, 50 kB and more each.
FLAT = 24 * 2**20


def test_many_requests_with_aborts(tiny_folder: Path) -> None:
    llm = LLM(
        tiny_folder,
        dtype="fp32",
        device="cpu",
        max_num_seqs=8,
        max_num_batched_tokens=64,
        max_model_len=400,
        kv_cache_memory_bytes=400 * 16 * 512 * 2 // 16,
        encoder_cache_bytes=20_000,
        image_cache_bytes=300_000,
    )
    rng = random.Random(3)
    pictures = [Pillow.effect_noise((56 + 28 * (i % 3), 84), 30 + i).convert("RGB") for i in range(12)]
    open_: list[Stream] = []
    kept: list[int] = []
    reasons = {"length": 0, "stop": 0, "abort": 0}

    def settle(most: int) -> None:
        while len(open_) > most:
            output = open_.pop(0).result(60)
            assert output.error is None
            for answer in output.outputs:
                reasons[str(answer.finish_reason)] += 1

    for number in range(REQUESTS):
        params = SamplingParams(
            temperature=rng.choice((0.0, 1.0)), max_tokens=rng.randrange(1, 24), n=rng.choice((1, 1, 1, 2))
        )
        images = [rng.choice(pictures) for _ in range(rng.randrange(3))]
        text = "what is it? " * rng.randrange(1, 9) + "<|vision_start|><|image_pad|><|vision_end|>" * len(
            images
        )
        prompt = {"prompt": text, "multi_modal_data": {"image": images}} if images else text
        open_.append(llm.engine.add(prompt, params, deltas=rng.random() < 0.5))
        if rng.random() < 0.3:
            rng.choice(open_).abort()
        settle(20)
        if number in (REQUESTS // 2, REQUESTS - 1):
            settle(0)
            gc.collect()
            kept.append(psutil.Process().memory_info().rss)
    llm.engine._core.check_integrity()
    stats = llm.engine.stats()
    assert (stats.preparing, stats.waiting, stats.running, stats.blocks_used) == (0, 0, 0, 0)
    assert reasons["abort"] > 30 < reasons["length"] + reasons["stop"]
    assert sum(reasons.values()) == sum(stats.totals.finished.values())
    assert min(stats.prefix_cache.hits, stats.encoder_cache.hits, stats.image_cache.hits) > 0
    assert kept[1] - kept[0] < FLAT
