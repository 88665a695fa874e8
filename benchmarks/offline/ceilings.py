"""What this machine can do at most, by plain torch: `python -m offline.ceilings DEVICE` prints JSON.

Matrix rates are those of a large product with the weight packed once, as a linear layer that runs often has it;
bandwidth is that of reading a tensor far larger than the caches.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def measure(device: str = "cpu", *, size: int | None = None) -> dict[str, float]:
    """Operations per second of bf16 and int8 products, and bytes per second of a read, the best of several."""
    place = torch.device(device)
    size = size or (2048 if place.type == "cpu" else 8192)
    operations = 2 * size**3
    values = torch.randn(size, size, device=place).bfloat16()
    whole = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=place)
    layouts = (
        [whole, whole.t()] if place.type == "cpu" else [whole.t()]
    )  # cuBLAS wants the second column-major
    data = torch.ones(2**28 if place.type == "cpu" else 2**31, device=place)
    result = {
        "bf16_flops": operations / _best(_bf16_product(values), place),
        "int8_ops": operations / min(_best(partial(torch._int_mm, whole, right), place) for right in layouts),
        "read_bytes": data.nbytes / _best(data.sum, place),
    }
    return {"threads": torch.get_num_threads(), **result}


def _bf16_product(values: torch.Tensor) -> Callable[[], Any]:
    if values.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(values, len(values))
        return lambda: torch.ops.mkldnn._linear_pointwise(values, packed, None, "none", [], "")
    return lambda: values @ values


def _best(call: Callable[[], Any], device: torch.device, repeats: int = 12) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    with torch.inference_mode():
        print(json.dumps(measure(sys.argv[1] if len(sys.argv) > 1 else "cpu")))
