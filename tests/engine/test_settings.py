"""Arguments of the engine: each mistake is named, and vLLM's harmless ones are passed over."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.engine.settings import EngineSettings
from sightline.errors import UsageError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, not 0"),
        ({"max_num_seqs": True}, "max_num_seqs must be a whole number"),
        ({"max_num_batched_tokens": 1.5}, "max_num_batched_tokens must be a whole number"),
        ({"max_model_len": 1}, "max_model_len must be at least 2"),
        ({"quantization": "int7"}, "int8, int4"),
        ({"device_map": "balanced"}, "device_map 'balanced' is not 'auto'"),
        ({"kv_cache_memory_bytes": "much"}, "kv_cache_memory_bytes: 'much' is not a size"),
        ({"kv_cache_memory_bytes": 0}, "kv_cache_memory_bytes"),
        ({"gpu_memory_utilization": 1.2}, "gpu_memory_utilization must be above 0 and at most 1"),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization"),
        ({"cpu_memory_share": 0}, "cpu_memory_share"),
        ({"enable_prefix_caching": "yes"}, "enable_prefix_caching must be true or false"),
        ({"prompt_lookup_min": 5}, "prompt_lookup_max must be at least 5"),
        ({"num_speculative_tokens": 65}, "between 0 and 64"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size is 2"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"limit_mm_per_prompt": {"audio": 1}}, "audio"),
        ({"mm_processor_kwargs": {"fps": 2}}, "fps"),
        ({"max_pixels": 0}, "max_pixels must be at least 1"),
        ({"trust_remote_code": True}, "no code of a checkpoint is run"),
        ({"enable_chunked_prefill": False}, "max_num_batched_tokens"),
        ({"pipeline_parallel_size": 2}, "device_map"),
        ({"swap_space": 99}, "swap_space=99 cannot be honoured"),
        ({"max_number_seqs": 3}, "max_number_seqs is not an argument of LLM"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        EngineSettings.of("model", **options)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_asks_for_what_happens_anyway() -> None:
    settings = EngineSettings.of(
        "model",
        trust_remote_code=False,
        disable_log_stats=True,
        swap_space=4,
        enforce_eager=True,
        dtype=None,
        max_pixels=3136,
        mm_processor_kwargs={"min_pixels": 784},
        kv_cache_memory_bytes="1.5GiB",
    )
    assert settings.pixel_options == {"max_pixels": 3136, "min_pixels": 784}
    assert settings.kv_cache_memory_bytes == 3 * 2**29
    assert (settings.dtype, settings.enforce_eager) == ("auto", True)


def test_numbers_that_the_device_decides() -> None:
    cpu, card = (EngineSettings("model").for_device(kind) for kind in ("cpu", "cuda"))
    assert (cpu.max_num_seqs, cpu.max_num_batched_tokens) == (8, 512)
    assert (card.max_num_seqs, card.max_num_batched_tokens) == (64, 4096)
    assert EngineSettings("model", max_num_seqs=1000).for_device("cpu").max_num_batched_tokens == 1000
    with pytest.raises(UsageError, match="max_num_batched_tokens is 4, but 8 answers"):
        EngineSettings("model", max_num_batched_tokens=4).for_device("cpu")
