"""Attention over whole tensors (video transformers): several kernels, the fastest found by measurement and kept.

`forward` is the call, `reference` its definition, `forms` the kernels, `measure` times them, `store` keeps what came
out, `choice` decides. The engine's attention over a cache in blocks is `operators.attention`.
"""

from sightline.hardware.operators.dense_attention.choice import forget, measured, measurements
from sightline.hardware.operators.dense_attention.forward import attention_forward
from sightline.hardware.operators.dense_attention.measure import Measurement, Trial
from sightline.hardware.operators.dense_attention.problem import Problem
from sightline.hardware.operators.dense_attention.varlen import attention_forward_varlen

__all__ = [
    "Measurement",
    "Problem",
    "Trial",
    "attention_forward",
    "attention_forward_varlen",
    "forget",
    "measured",
    "measurements",
]
