"""Sightline: fine-tune, merge, run and serve Qwen-VL models on NPU, CUDA and CPU."""

__version__ = "0.1.0"
