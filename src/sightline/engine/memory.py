"""How many blocks the KV cache gets, from what is free once the weights are there. Plain numbers, no tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sightline.engine.settings import EngineSettings
from sightline.errors import SightlineError, UsageError
from sightline.hardware.accelerator import Accelerator
from sightline.hardware.graphs import sizes
from sightline.hardware.out_of_memory import explained

# A share of a device's memory that no count sees: fragments of the allocator, contexts of libraries.
_SLACK = 0.01
_ENCODER_CACHE = {"cpu": 512 * 2**20}
_OTHER_ENCODER_CACHE = 2**30
# Of one captured size of a decode step: what the driver keeps of its thousands of launches, and its share of the pool.
# Not measured but set aside: a capture comes after the cache, whose tensors it records.
_GRAPH = 16 * 2**20
_SMALLER_STEPS = (
    "lower max_pixels, max_num_batched_tokens or max_num_seqs, limit the size of media with limit_mm_per_prompt, use "
    "a larger card, or spread the model with device_map auto"
)


@dataclass(frozen=True)
class Needs:
    """What a model asks of the cache.

    Attributes:
        bytes_per_block: of keys and values in all layers.
        block_size: in tokens.
        max_model_len: most tokens of a sequence; `length_is_given` says whether the user asked for it.
    """

    bytes_per_block: int
    block_size: int
    max_model_len: int
    length_is_given: bool = False

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)


@dataclass(frozen=True)
class CacheSize:
    """The blocks of the cache, and the longest sequence that fits into them."""

    blocks: int
    max_model_len: int


def largest_medium(vision: Any, settings: EngineSettings, max_model_len: int) -> int:
    """Vision tokens of the largest picture or clip that the limits in force let through.

    Args:
        vision: a `VisionSpec`.
    """
    limits = settings.limits
    # What leaves no room for anything else is refused by its header.
    return min(
        max(limits.largest_image_tokens(vision), limits.largest_video_tokens(vision)), max_model_len - 1
    )


def encoder_cache_bytes(
    settings: EngineSettings, accelerator: Accelerator, largest: int, bytes_per_row: int
) -> int:
    """Bytes of image features to keep; at least the largest medium where nothing was asked for."""
    if settings.encoder_cache_bytes is not None:
        return settings.encoder_cache_bytes
    usual = _ENCODER_CACHE.get(accelerator.kind, _OTHER_ENCODER_CACHE)
    return max(usual, largest * bytes_per_row)


def graph_bytes(settings: EngineSettings, accelerator: Accelerator) -> int:
    """Bytes that captured decode steps will take once the cache is there."""
    if accelerator.kind != "cuda" or settings.enforce_eager:
        return 0
    return len(sizes(settings.max_num_seqs or 1)) * _GRAPH


def sampled_rows(settings: EngineSettings) -> int:
    """Most rows of logits of a step: a token of each answer, and its drafts."""
    rows = (settings.max_num_seqs or 1) * (1 + settings.num_speculative_tokens)
    return min(rows, settings.max_num_batched_tokens or 1)


def size_cache(
    settings: EngineSettings,
    accelerator: Accelerator,
    needs: Needs,
    *,
    profile: Callable[[], int] | None = None,
    reserved: int = 0,
) -> CacheSize:
    """Decide the size of the KV cache; called when the weights are on the device.

    Args:
        profile: runs the largest step that the settings allow, and gives the bytes of the small cache that it made
            for that; not called on a CPU, nor when `kv_cache_memory_bytes` says the size.
        reserved: bytes that others will take later (the encoder cache, captured steps).

    Raises:
        SightlineError: too little memory is left; the text gives the numbers and the setting to change.
        UsageError: max_model_len was asked for and does not fit, or more memory than there is.
    """
    most = needs.blocks_for(needs.max_model_len) * (settings.max_num_seqs or 1)
    if settings.kv_cache_memory_bytes is not None:
        free = int(settings.kv_cache_memory_bytes)
        _check_given(free, accelerator)
        source = f"kv_cache_memory_bytes {_gib(free)}"
        return _fitted(free // needs.bytes_per_block, needs, source, "raise it")
    if accelerator.kind == "cpu":
        left = accelerator.memory().free - reserved
        free = int(max(0, left) * settings.cpu_memory_share)
        source = f"{settings.cpu_memory_share:.0%} of the {_gib(left)} of memory that is left"
        advice = "free memory, raise cpu_memory_share or use kv_cache_memory_bytes"
    else:
        free = _free_on_device(settings, accelerator, profile) - reserved
        source = (
            f"{_gib(free)} left of {accelerator} by gpu_memory_utilization {settings.gpu_memory_utilization}"
        )
        advice = "raise it, or lower max_num_batched_tokens or max_pixels"
    return _fitted(min(most, max(0, free) // needs.bytes_per_block), needs, source, advice)


def _check_given(wanted: int, accelerator: Accelerator) -> None:
    """A system promises memory that it does not have, and ends the process when that is used."""
    accelerator.empty_cache()
    left = accelerator.memory().free
    if wanted > left:
        raise UsageError(
            f"kv_cache_memory_bytes {_gib(wanted)} is more than the {_gib(left)} of memory left on {accelerator}; "
            "lower it, or leave it out"
        )


def _free_on_device(
    settings: EngineSettings, accelerator: Accelerator, profile: Callable[[], int] | None
) -> int:
    """Bytes of the engine's share that neither weights nor the largest step take."""
    accelerator.empty_cache()
    free, total = accelerator.memory()
    transient = 0
    if profile is not None:
        accelerator.reset_peak_memory()
        held = accelerator.peak_memory()
        with explained(f"the largest step does not fit on {accelerator} beside the weights", _SMALLER_STEPS):
            own = profile()
            accelerator.synchronize()
        transient = accelerator.peak_memory() - held - own
        accelerator.empty_cache()
        # Libraries keep workspaces of their own after the first run, which no allocator counts.
        free = min(free, accelerator.memory().free + own)
    return int(total * (settings.gpu_memory_utilization - _SLACK)) - (total - free) - transient


def _fitted(blocks: int, needs: Needs, source: str, advice: str) -> CacheSize:
    room = blocks * needs.block_size
    if room >= needs.max_model_len:
        return CacheSize(blocks, needs.max_model_len)
    if needs.length_is_given:
        wanted = needs.blocks_for(needs.max_model_len) * needs.bytes_per_block
        raise UsageError(
            f"max_model_len {needs.max_model_len} needs {_gib(wanted)} of KV cache, but {source} holds "
            f"{room} tokens; lower max_model_len to {room} or {advice}"
            if room >= 2
            else f"{source} holds no block of the KV cache ({_gib(needs.bytes_per_block)}); {advice}"
        )
    if blocks < 2:
        raise SightlineError(
            f"{source} holds {blocks} blocks of the KV cache of {_gib(needs.bytes_per_block)} each; {advice}"
        )
    return CacheSize(blocks, room)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if abs(size) >= 2**26 else f"{size / 2**20:.2f} MiB"
