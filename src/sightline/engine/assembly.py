"""An engine from its settings: the model is loaded, memory is shared out, and the parts are put together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

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
from sightline.errors import UsageError
from sightline.hardware.host_threads import release_threads
from sightline.hardware.out_of_memory import explained
from sightline.models.loading import VisionLanguageModel, load_model
from sightline.progress import note


@dataclass
class Parts:
    """What an engine is made of; `settings` have every number filled in."""

    model: VisionLanguageModel
    settings: EngineSettings
    core: EngineCore
    preparer: Preparer

    def engine(self) -> AsyncEngine:
        return AsyncEngine(self.core, self.preparer, in_turn=self.model.accelerator.kind == "cpu")


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
    largest = largest_medium(model.processor.vision, settings, length)
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
    settings = replace(settings, max_model_len=size.max_model_len, block_size=runner.block_size)
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
    return Parts(model, settings, core, Preparer(model, media, settings, max_model_len=size.max_model_len))


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
