"""Sightline: fine-tune, merge, run and serve Qwen-VL models on NPU, CUDA and CPU."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where the package's own names live. They are imported when they are asked for, so that importing the package
# costs nothing and the command line's help needs no torch.
_HOMES = {
    "CacheAgent": "sightline.video.agent",
    "CacheConfig": "sightline.video.config",
    "LLM": "sightline.engine.llm",
    "LoRARequest": "sightline.engine.adapters",
    "SamplingParams": "sightline.engine.sampling.params",
    "StructuredOutputsParams": "sightline.engine.sampling.structured.params",
    "VideoPipeline": "sightline.video.pipeline",
    "process_vision_info": "sightline.data.vision_inputs",
}

__all__ = [
    "LLM",
    "CacheAgent",
    "CacheConfig",
    "LoRARequest",
    "SamplingParams",
    "StructuredOutputsParams",
    "VideoPipeline",
    "__version__",
    "process_vision_info",
]

if TYPE_CHECKING:
    from sightline.data.vision_inputs import process_vision_info
    from sightline.engine.adapters import LoRARequest
    from sightline.engine.llm import LLM
    from sightline.engine.sampling.params import SamplingParams
    from sightline.engine.sampling.structured.params import StructuredOutputsParams
    from sightline.video.agent import CacheAgent
    from sightline.video.config import CacheConfig
    from sightline.video.pipeline import VideoPipeline


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sightline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
