"""Training speed: Sightline's step against the stock transformers + PEFT step, alternating in one run.

    python benchmarks/train.py [--steps 8] [--batch-size 32] [--threads N]

Both train the demo's model on the same batches of easy-vqa questions with the same parameters learning (LoRA r 16 on
the language model, tower and merger in full, bf16 autocast). The peer is what the libraries give by themselves: padded
batches with a mask, torch's fused attention, logits for every token. The ceiling is the rate of a large bf16 matrix
product on the same threads, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from sightline.demo.base_model import build_base
from sightline.hardware.accelerator import find
from sightline.models import attention
from sightline.models.families import family_of
from sightline.models.loading import load_model
from sightline.training.config import parse_config
from sightline.training.dataset import collate
from sightline.training.loss import install_token_loss
from sightline.training.tuner import apply_tuner, parameter_groups

LORA = {"r": 16, "alpha": 32, "dropout": 0.0}
FREEZE = {"vision": False, "merger": False}


def ceiling(size: int = 2048, repeats: int = 5) -> float:
    """Operations per second of a bf16 matrix product of `size`, the best of `repeats`."""
    left = torch.randn(size, size).bfloat16()
    best = float("inf")
    for _ in range(repeats + 1):
        started = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def batches(processor: Any, count: int, batch_size: int) -> list[list[Any]]:
    """`count` lists of encoded easy-vqa questions."""
    from easy_vqa import get_train_image_paths, get_train_questions

    from sightline.data.conversation import Conversation, Image, Message, Text

    questions, answers, images = get_train_questions()
    paths = get_train_image_paths()
    encoded = []
    for index in range(count * batch_size):
        asked = Message("user", [Image(paths[images[index]]), Text(questions[index])])
        turns = [asked, Message("assistant", [Text(answers[index])])]
        encoded.append(processor.encode(Conversation(turns), supervise=True))
    return [encoded[start : start + batch_size] for start in range(0, len(encoded), batch_size)]


def stock_batch(batch: list[Any]) -> dict[str, torch.Tensor]:
    """What a usual collator gives: mask and labels for every position."""
    ours = collate(batch)
    mask = (ours["kinds"] >= 0).long()
    labels = torch.full_like(ours["input_ids"], -100)
    labels[:, 1:] = ours["shift_labels"][:, :-1]
    kept = {name: ours[name] for name in ("input_ids", "pixel_values", "image_grid_thw")}
    kinds = ours["kinds"].clamp(min=0).int()
    return {**kept, "attention_mask": mask, "labels": labels, "mm_token_type_ids": kinds}


class Side:
    """One of the two contestants: a model, its optimizer and the times of its steps."""

    def __init__(self, folder: Path, *, ours: bool) -> None:
        config = parse_config(
            {"model": folder, "data": "-", "output": "-", "lora": LORA, "freeze": FREEZE, "dtype": "bf16"},
            "benchmark",
        )
        if ours:
            module = load_model(folder, device="cpu", dtype="bf16", attention=attention.register()).module
            install_token_loss(module)
        else:
            module = family_of(folder).model_class().from_pretrained(folder, dtype=torch.bfloat16)
        torch.manual_seed(0)
        self.model = apply_tuner(module, config).train()
        if not ours:
            for layer in self.model.modules():
                if hasattr(layer, "cast_input_dtype_enabled"):
                    layer.cast_input_dtype_enabled = True
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config), fused=True)
        self.ours = ours
        self.times: list[float] = []

    def step(self, batch: list[Any], *, measure: bool) -> float:
        inputs = collate(batch) if self.ours else stock_batch(batch)
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(**inputs)
        loss = output["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if measure:
            self.times.append(time.perf_counter() - started)
        return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("runs/bench/base"), help="built there if absent")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.model.exists():
        build_base(options.model)
    sides = {
        "sightline": Side(options.model, ours=True),
        "transformers + peft": Side(options.model, ours=False),
    }
    processor = load_model(options.model, device="cpu").processor
    work = batches(processor, options.steps + 1, options.batch_size)
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for number, batch in enumerate(work):
        for name, side in sides.items():
            losses[name].append(side.step(batch, measure=number > 0))
    tokens = statistics.mean(sum(len(item.input_ids) for item in batch) for batch in work[1:])
    report(sides, losses, tokens, options.batch_size)


def report(sides: dict[str, Side], losses: dict[str, list[float]], tokens: float, batch_size: int) -> None:
    layers = [
        p
        for n, p in sides["sightline"].model.named_parameters()
        if "language_model.layers" in n and p.dim() > 1
    ]
    # A frozen layer costs two products a token, forward and back to its input: 2 operations a weight each.
    needed = 4 * sum(weight.numel() for weight in layers) * tokens
    best = ceiling()
    result: dict[str, Any] = {
        "device": find("cpu").name,
        "threads": torch.get_num_threads(),
        "tokens_per_batch": round(tokens, 1),
        "ceiling_gflops": round(best / 1e9, 1),
    }
    for name, side in sides.items():
        middle = statistics.median(side.times)
        result[name] = {
            "seconds_per_step": round(middle, 3),
            "samples_per_second": round(batch_size / middle, 2),
            "tokens_per_second": round(tokens / middle, 1),
            "share_of_ceiling": round(needed / middle / best, 3),
            "first_loss": round(losses[name][0], 4),
        }
    ours, peer = (statistics.median(side.times) for side in sides.values())
    result["ratio"] = round(peer / ours, 2)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
