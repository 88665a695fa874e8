"""An engine from its settings: the model is loaded, memory is shared out, and the parts are put together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sightline.data.vision_spec import VisionSpec
from sightline.engine.adapters import Adapters
from sightline.engine.async_engine import AsyncEngine
from sightline.engine.core import EngineCore
from sightline.engine.media.encoder_cache import EncoderCache
from sightline.engine.media.image_cache import ImageCache
from sightline.engine.media.opening import MediaPreparer
from sightline.engine.memory import (
    Needs,
    encoder_cache_bytes,
    graph_bytes,
    largest_medium,
    sampled_rows,
    size_cache,
)
from sightline.engine.preprocess import Preparer
from sightline.engine.runner import Runner
from sightline.engine.sampling.draw import Drawer
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.sampling.sampler import Sampler
from sightline.engine.scheduling.blocks import BlockPool
from sightline.engine.scheduling.scheduler import Scheduler
from sightline.engine.settings import EngineSettings
from sightline.errors import SightlineError, UsageError
from sightline.hardware.host_threads import release_threads
from sightline.hardware.out_of_memory import explained
from sightline.models.adapters.loader import LoadedAdapter
from sightline.models.loading import VisionLanguageModel, load_model, vision_of
from sightline.progress import note


@dataclass
class Parts:
    """What an engine is made of; `settings` have every number filled in."""

    model: VisionLanguageModel
    settings: EngineSettings
    core: EngineCore
    preparer: Preparer
    adapters: Adapters

    def engine(self) -> AsyncEngine:
        in_turn = self.model.accelerator.kind == "cpu"
        return AsyncEngine(self.core, self.preparer, in_turn=in_turn, adapters=self.adapters)


def assemble(settings: EngineSettings, model: VisionLanguageModel | None = None) -> Parts:
    """Build an engine.

    Args:
        model: loaded already; None loads `settings.model`.

    Raises:
        SightlineError: the checkpoint cannot be loaded, or memory does not suffice.
        UsageError: a setting does not suit the model.
    """
    if model is None:
        model = load(settings)
    length, given = _model_length(settings, model), settings.max_model_len is not None
    settings = replace(settings.for_device(model.accelerator.kind), max_model_len=length)
    largest = max(largest_medium(vision, settings, length) for vision in _visions(settings, model))
    bytes_per_row = Runner.bytes_per_feature_row(model)
    features = EncoderCache(
        encoder_cache_bytes(settings, model.accelerator, largest, bytes_per_row), bytes_per_row
    )
    with explained(
        f"laying out the weights for {model.accelerator} takes more memory than it has",
        "use a larger card, spread the model with device_map auto, or halve it with quantization int8",
    ):
        runner = Runner(
            model, features=features, block_size=settings.block_size, eager=settings.enforce_eager
        )
    adapters = _adapters(settings, model, runner, largest)
    needs = Needs(runner.bytes_per_block, runner.block_size, length, length_is_given=given)
    tokens = settings.max_num_batched_tokens or 1
    encoded = max(largest, settings.max_encoder_tokens or 1) if largest else 0

    def profile() -> int:
        blocks = needs.blocks_for(tokens)
        runner.allocate(blocks)
        _sample(runner.profile(tokens, encoded, sampled_rows(settings)))
        return blocks * needs.bytes_per_block

    size = size_cache(
        settings,
        model.accelerator,
        needs,
        profile=profile,
        reserved=(features.capacity if largest else 0) + graph_bytes(settings, model.accelerator),
    )
    if size.max_model_len < length:
        note(f"the KV cache holds {size.max_model_len:,} tokens, so max_model_len is that, not {length:,}")
    with explained(
        f"a KV cache of {size.blocks} blocks does not fit on {model.accelerator}",
        "lower gpu_memory_utilization or kv_cache_memory_bytes",
    ):
        runner.allocate(size.blocks)
    runner.capture(max_num_seqs=settings.max_num_seqs or 1, max_model_len=size.max_model_len)
    settings = replace(
        settings,
        max_model_len=size.max_model_len,
        block_size=runner.block_size,
        kv_cache_memory_bytes=size.blocks * needs.bytes_per_block,
    )
    core = _core(settings, model, runner, features, size.blocks)
    media = MediaPreparer(
        model.processor,
        limits=settings.limits,
        cache=ImageCache(settings.image_cache_bytes),
        dtype=model.dtype,
        most_tokens=size.max_model_len,
    )
    if model.accelerator.kind == "cpu":
        release_threads()  # the engine computes in a thread of its own
    preparer = Preparer(model, media, settings, max_model_len=size.max_model_len)
    return Parts(model, settings, core, preparer, adapters)


def load(settings: EngineSettings) -> VisionLanguageModel:
    """Load the model that the settings name."""
    options: dict[str, Any] = {
        "quantization": settings.quantization,
        "device_map": settings.device_map,
        **settings.pixel_options,
    }
    return load_model(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        adapter=settings.adapter,
        **{name: value for name, value in options.items() if value is not None},
    )


def _visions(settings: EngineSettings, model: VisionLanguageModel) -> list[VisionSpec]:
    """How pictures are brought to the tower: of the model, and of each adapter that is given."""
    folders = (settings.adapters or {}).values()
    own = [vision_of(model.processor, folder, **settings.pixel_options) for folder in folders]
    return [model.processor.vision, *own]


def _adapters(settings: EngineSettings, model: VisionLanguageModel, runner: Runner, largest: int) -> Adapters:
    """The settings' adapters, in memory before what is left of it is measured.

    Args:
        largest: vision tokens of the largest medium that memory is measured for.
    """
    most = settings.max_adapters
    if settings.adapter is not None:
        return Adapters(None, most=most, reason="the engine was started with one adapter on all requests")
    length = settings.max_model_len or 1

    def load(name: str, folder: str | Path, key: str) -> LoadedAdapter:
        vision = vision_of(model.processor, folder, **settings.pixel_options)
        tokens = largest_medium(vision, settings, length)
        if tokens > largest and model.accelerator.kind != "cpu":
            raise SightlineError(
                f"the adapter {name} sees pictures of up to {tokens} tokens, but memory was measured for {largest}; "
                "load it at the start, or limit pictures with max_pixels"
            )
        return runner.adapters.load(
            name, folder, key, max_rank=settings.max_lora_rank, pixels=settings.pixel_options
        )

    adapters = Adapters(load, most=most)
    adapters.load_all(settings.adapters or {})
    return adapters


@torch.inference_mode()
def _sample(logits: torch.Tensor) -> None:
    """Draw from rows in the way that takes most memory: of equal logits top_p sorts all of them."""
    rows, params = len(logits), SamplingParams(temperature=1.0, top_p=0.99)
    drawer = Drawer(logits.shape[1], logits.device)
    drawer.among_all(logits.zero_(), [None] * rows, [params] * rows, [0.5] * rows)


def _core(
    settings: EngineSettings,
    model: VisionLanguageModel,
    runner: Runner,
    features: EncoderCache,
    blocks: int,
) -> EngineCore:
    pool = BlockPool(blocks, runner.block_size, prefix_caching=settings.enable_prefix_caching)
    scheduler = Scheduler(
        pool,
        features,
        max_num_seqs=settings.max_num_seqs or 1,
        max_num_batched_tokens=settings.max_num_batched_tokens or 1,
        max_model_len=settings.max_model_len or 1,
        max_encoder_tokens=settings.max_encoder_tokens or 1,
    )
    vocabulary = int(model.processor.config.get_text_config().vocab_size)
    return EngineCore(
        runner,
        scheduler,
        Sampler(vocabulary, model.device),
        pool=pool,
        features=features,
        settings=settings,
        tokenizer=model.tokenizer,
        free_memory=model.accelerator.empty_cache,
    )


def _model_length(settings: EngineSettings, model: VisionLanguageModel) -> int:
    most = int(getattr(model.processor.config.get_text_config(), "max_position_embeddings", 32768))
    wanted = settings.max_model_len
    if wanted is not None and wanted > most:
        raise UsageError(f"max_model_len must be between 2 and the model's {most}, not {wanted}")
    return most if wanted is None else wanted
