"""What adapters cost a decode step: none, one on all rows, several mixed, measured in turn on one engine.

    python benchmarks/adapters.py --model demo/model --rank 16 --rows 8

The adapters are random ones on every linear map of the language model, which is what costs; what they answer does not
matter. Times are the processor's for the thread that computes (`time.thread_time`), so that another process on the
machine disturbs them little; run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from sightline.checkpoints.adapter import base_of
from sightline.checkpoints.store import Store
from sightline.engine.assembly import Parts, assemble
from sightline.engine.inputs import read_prompt
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.settings import EngineSettings

WARM = 5


def make_adapter(base: Path, folder: Path, rank: int) -> Path:
    """A random adapter on every linear map of the language model, as PEFT writes it."""
    tensors = {}
    store = Store(base)
    for name in store:
        if "visual." in name or not name.endswith("_proj.weight"):
            continue
        width, inputs = store.shape(name)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, inputs) * 0.01
        tensors[f"{module}.lora_B.weight"] = torch.randn(width, rank) * 0.01
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert base_of(folder) == str(base)
    return folder


def decode_seconds(parts: Parts, adapters: list[str | None], steps: int) -> list[float]:
    """Each of `steps` decode steps of as many answers as there are names."""
    params = SamplingParams(temperature=0, max_tokens=steps + WARM + 64, ignore_eos=True)
    ids = list(range(100, 164))
    for place, name in enumerate(adapters):
        request, preparation = parts.preparer.prepare(
            read_prompt([place + 1, *ids]),
            params,
            request_id=str(place),
            adapter=None if name is None else parts.adapters.get(name),
        )
        parts.core.add(request, preparation)
    while parts.core.waiting or parts.core.running < len(adapters):
        parts.core.step()
    for _ in range(WARM):
        parts.core.step()
    found = []
    for _ in range(steps):
        begun = time.thread_time()
        parts.core.step()
        found.append(time.thread_time() - begun)
    parts.core.close()
    for place in range(len(adapters)):
        parts.core.forget(str(place))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    names = ["a", "b", "c", "d"]
    with tempfile.TemporaryDirectory() as folder:
        adapters = {name: make_adapter(asked.model, Path(folder) / name, asked.rank) for name in names}
        settings = EngineSettings.of(
            asked.model,
            device="cpu",
            dtype=asked.dtype,
            adapters=adapters,
            kv_cache_memory_bytes="128MiB",
            enable_prefix_caching=False,
            max_num_seqs=asked.rows,
        )
        parts = assemble(settings)
    cases: dict[str, list[str | None]] = {
        "no adapter": [None] * asked.rows,
        "1 adapter on half of the rows": ["a" if row % 2 else None for row in range(asked.rows)],
        "1 adapter on all rows": ["a"] * asked.rows,
        "4 adapters, mixed": [names[row % 4] for row in range(asked.rows)],
    }
    times: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(asked.rounds):
        for case, rows in cases.items():
            times[case] += decode_seconds(parts, rows, asked.steps)
    base = statistics.median(times["no adapter"])
    for case, found in times.items():
        middle = statistics.median(found)
        print(f"{case:32} {1000 * middle:8.2f} ms a step   {middle / base - 1:+.1%}")


if __name__ == "__main__":
    main()
