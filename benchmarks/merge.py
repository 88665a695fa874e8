"""Seconds and memory of a merge, against PEFT's merge_and_unload and against a plain copy of the files.

    python benchmarks/merge.py [--quick] [--rounds 3] [--work FOLDER]

Two bases: the shape of Qwen2-VL-2B with random weights (4.4 GB), and the shape of Qwen2.5-VL-32B as files of holes,
which are read as zeros (65 GB are written: where the disk has less, as many layers as fit, and the table says so). The
adapter is LoRA of rank 16 on every linear map of the language model. Each contestant is a process of its own, one after
the other in every round, writes to the same disk, and brings what it wrote to the disk (fsync) before it ends. Its time
is that of the whole command, imports included; its peak the largest resident memory that the system saw (Linux only).
PEFT computes in bfloat16, as it does with a bfloat16 model; it does not run on the large shape, which it would hold in
memory whole. `--quick` takes a few layers of each shape.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from offline.shapes import SHAPES
from safetensors.torch import save_file

from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.names import OLD, spelled
from sightline.files import write_json
from sightline.progress import note, size

RANK = 16
SHARD = 4 * 10**9  # bytes
# From the config.json of Qwen/Qwen2.5-VL-32B-Instruct.
LARGE: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3456,
        "num_heads": 16,
        "out_hidden_size": 5120,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
OURS = "from sightline.cli.app import main; import sys; main(sys.argv[1:])"
# ru_maxrss would not do: a process begins with its parent's.
PEAK = """
import atexit, os
def told():
    peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
    open(os.environ["PEAK_FILE"], "w").write(peak)
atexit.register(told)
"""
PEFT = """
import os, sys, torch, transformers
from pathlib import Path
from peft import PeftModel
base, adapter, output = sys.argv[1:]
kind = getattr(transformers, transformers.AutoConfig.from_pretrained(base).architectures[0])
model = PeftModel.from_pretrained(kind.from_pretrained(base, dtype=torch.bfloat16), adapter)
model.merge_and_unload().save_pretrained(output, max_shard_size="5GB")
for path in Path(output).iterdir():
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
"""
COPY = """
import os, subprocess, sys
from pathlib import Path
base, output = map(Path, sys.argv[1:])
output.mkdir()
for path in sorted(base.glob("*.safetensors")):
    subprocess.run(["cp", "--sparse=never", "--reflink=never", path, output / path.name], check=True)
    descriptor = os.open(output / path.name, os.O_RDONLY)
    os.fsync(descriptor)
"""


def make_base(folder: Path, config: dict[str, Any], *, holes: bool) -> int:
    """Write a model of random numbers, or of holes; gives the bytes of its tensors."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    shapes = Architecture.of(config, "the shape").tensors()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = total = 0
    for name, shape in shapes.items():
        count = 2 * torch.Size(shape).numel()
        if shards[-1] and held + count > SHARD:
            shards.append({})
            held = 0
        shards[-1][spelled(name, OLD)] = shape
        held += count
        total += count
    random = torch.Generator().manual_seed(0)
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(shard, file)
        if holes:
            write_holes(folder / file, shard)
        else:
            drawn = {
                name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=random)
                for name, shape in shard.items()
            }
            save_file(drawn, folder / file, metadata={"format": "pt"})
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places}
    )
    return total


def write_holes(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def make_adapter(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir()
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    random = torch.Generator().manual_seed(1)
    tensors, modules = {}, []
    for name, shape in Architecture.of(config, "the shape").tensors().items():
        module = name.removeprefix("text.").removesuffix(".weight")
        if name.startswith("text.layers.") and name.endswith(".weight") and module.split(".")[-1] in kinds:
            place = f"base_model.model.model.language_model.{module}.lora_"
            tensors[f"{place}A.weight"] = 0.02 * torch.randn(RANK, shape[1], generator=random)
            tensors[f"{place}B.weight"] = 0.02 * torch.randn(shape[0], RANK, generator=random)
            modules.append(f"language_model.{module}")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": modules}
    write_json(folder / "adapter_config.json", {"task_type": "CAUSAL_LM", "bias": "none", **settings})


def measured(program: str, *arguments: str | Path) -> dict[str, float]:
    """Run a program; seconds from start to end, and its largest resident memory in bytes."""
    os.sync()
    with tempfile.NamedTemporaryFile("r") as told:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "SIGHTLINE_QUIET": "1", "PEAK_FILE": told.name}
        start = time.perf_counter()
        command = [sys.executable, "-c", PEAK + program, *map(str, arguments)]
        result = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=False)
        seconds = time.perf_counter() - start
        if result.returncode:
            raise SystemExit(f"a contestant failed with {result.returncode}")
        return {"seconds": seconds, "peak_bytes": int(told.read()) * 1024}


def contest(work: Path, name: str, config: dict[str, Any], rounds: int, *, holes: bool) -> dict[str, Any]:
    """One base: every contestant in every round, the first of them another one each time."""
    root, out = work / name, work / name / "out"
    note(f"making {name}")
    total = make_base(root / "base", config, holes=holes)
    make_adapter(root / "adapter", config)
    ours = ("merge", "--model", root / "base", "--adapter", root / "adapter", "-o", out)
    contestants: dict[str, tuple[str, tuple[str | Path, ...]]] = {
        "copy of the files": (COPY, (root / "base", out)),
        "sightline merge": (OURS, ours),
    }
    if not holes:
        contestants["PEFT merge_and_unload"] = (PEFT, (root / "base", root / "adapter", out))
    runs: dict[str, list[dict[str, float]]] = {one: [] for one in contestants}
    order = list(contestants)
    for number in range(rounds):
        for one in order[number % len(order) :] + order[: number % len(order)]:
            runs[one].append(measured(contestants[one][0], *contestants[one][1]))
            shutil.rmtree(out)
            note(f"{name}, round {number + 1}, {one}: {runs[one][-1]['seconds']:.1f} s")
    largest = max(2 * torch.Size(shape).numel() for shape in Architecture.of(config, name).tensors().values())
    shutil.rmtree(root)
    return {
        "bytes": total,
        "largest_tensor_bytes": largest,
        "layers": config["num_hidden_layers"],
        "results": {
            one: {
                "seconds": statistics.median(run["seconds"] for run in found),
                "peak_bytes": max(run["peak_bytes"] for run in found),
                "runs": found,
            }
            for one, found in runs.items()
        },
    }


def fitted(config: dict[str, Any], free: int) -> dict[str, Any]:
    """The shape with as many layers as `free` bytes hold."""
    for layers in range(config["num_hidden_layers"], 0, -1):
        cut = {**config, "num_hidden_layers": layers}
        shapes = Architecture.of(cut, "the shape").tensors().values()
        if sum(2 * torch.Size(shape).numel() for shape in shapes) < free:
            return cut
    raise SystemExit("there is no room on this disk")


def table(report: dict[str, Any]) -> str:
    lines = ["| base | contestant | seconds | of a copy | GB/s | peak memory |", "|---|---|---|---|---|---|"]
    for name, found in report["bases"].items():
        copy = found["results"]["copy of the files"]["seconds"]
        for one, result in found["results"].items():
            seconds, rate = result["seconds"], found["bytes"] / 1e9 / result["seconds"]
            lines.append(
                f"| {name}, {size(found['bytes'])} | {one} | {seconds:.1f} | {seconds / copy:.2f} | {rate:.2f} | "
                f"{size(int(result['peak_bytes']))} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two layers of each shape, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, help="where the models are written; without it, a temporary folder"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/bench/merge.json"))
    options = parser.parse_args()
    small, large = SHAPES["qwen2-vl-2b"], LARGE
    if options.quick:
        small, large = ({**config, "num_hidden_layers": 2} for config in (small, large))
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        bases = {"Qwen2-VL-2B shape": contest(work, "Qwen2-VL-2B shape", small, rounds, holes=False)}
        # Two gigabytes are left for the rest of the machine.
        large = fitted(large, shutil.disk_usage(work).free - 2 * 10**9)
        name = "Qwen2.5-VL-32B shape"
        if large["num_hidden_layers"] != LARGE["num_hidden_layers"]:
            name += f" with {large['num_hidden_layers']} of 64 layers"
        bases[name] = contest(work, name, large, rounds, holes=True)
    report = {
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bases": bases,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, report)
    print(table(report))


if __name__ == "__main__":
    main()
