"""Pack a trained adapter into the data file that the package ships.

    python examples/tiny-vlm/pack.py runs/tiny-vlm/run

Keeps tower and merger in full and the language model's low-rank pairs, all in bfloat16. The loader is
`sightline.demo.pretrained`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sightline.demo.pretrained import ASSET, FORMAT
from sightline.training.checkpoint import RESULT

RECIPE = Path(__file__).parent
LIMIT = 8_200_000  # bytes; the file travels with every install


def pack(adapter: Path, output: Path, training: dict[str, object]) -> Path:
    """Write the packed file of a PEFT adapter folder (LoRA, with the whole `visual` saved beside it)."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    tensors = {
        _name(name): tensor.to(torch.bfloat16).contiguous()
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
    }
    if not any(name.startswith("visual.merger.") for name in tensors):
        raise SystemExit(f"{adapter} has no vision tower; train with freeze.vision and freeze.merger false")
    rank, alpha = settings["r"], settings["lora_alpha"]
    if settings.get("rank_pattern") or settings.get("alpha_pattern") or settings.get("use_dora"):
        raise SystemExit(f"{adapter} has ranks or scales that differ by layer; train with one for all")
    metadata = {
        "format": FORMAT,
        "r": str(rank),
        "alpha": str(alpha),
        "scale": repr(alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank),
        "targets": json.dumps(settings["target_modules"]),
        "recipe": recipe_hash(),
        "training": json.dumps(training, sort_keys=True),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output, metadata=metadata)
    output.chmod(0o644)
    size = output.stat().st_size
    if size > LIMIT:
        output.unlink()
        raise SystemExit(f"{size:,} bytes are more than {LIMIT:,}; train with a smaller lora.r than {rank}")
    return output


def recipe_hash() -> str:
    """sha256 over the files that decide the pictures and the training."""
    digest = hashlib.sha256()
    for name in ("shapes.py", "scene.py", "questions.py", "draw.py", "school.py", "whole.yaml"):
        digest.update((RECIPE / name).read_bytes())
    return digest.hexdigest()


def run_summary(run: Path) -> dict[str, object]:
    """What the run reported about itself, without its place on the machine that trained it."""
    result = run / RESULT
    if not result.is_file():
        raise SystemExit(f"{result} does not exist; let the training run finish")
    summary = json.loads(result.read_text())
    summary.pop("output", None)
    return summary


def _name(name: str) -> str:
    """PEFT's name without its wrappers: `visual...` or `language_model....lora_A`."""
    name = name.removeprefix("base_model.model.").removeprefix("model.")
    name = re.sub(r"modules_to_save\.(default\.)?|original_module\.", "", name)
    return re.sub(r"\.(lora_[AB])(\.default)?\.weight$", r".\1", name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack a trained adapter into the package's data file.")
    parser.add_argument("run", type=Path, help="output folder of the training run, with the adapter")
    parser.add_argument("--output", type=Path, default=ASSET)
    parser.add_argument("--note", default="", help="a sentence kept with the weights")
    arguments = parser.parse_args()
    training = run_summary(arguments.run)
    if arguments.note:
        training["note"] = arguments.note
    path = pack(arguments.run, arguments.output, training)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
