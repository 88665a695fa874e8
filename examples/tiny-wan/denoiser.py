"""Train the transformer and its text encoder, together, on the encoded clips.

    python examples/tiny-wan/denoiser.py runs/tiny-wan --minutes 50 --compile

Flow matching as Wan's: x = (1 - s) clip + s noise, and the transformer tells noise - clip from x, 1000 s and the text.
Writes the averaged weights to `OUT/transformer.safetensors` and `OUT/text_encoder.safetensors`, and goes on from
`OUT/denoiser.state.safetensors` when it is there. Files that `encode.py` adds meanwhile are taken up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from clips import worded
from encode import pairs_of
from network import SHIFT, text_encoder, tokenizer, transformer
from safetensors.torch import load_file, save_file
from state import average, load_state, save_state
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

DECAY = 0.999  # of the averaged weights
EVENLY = 3.0  # shift of the fifth of the noise levels that is drawn evenly
NO_TEXT = 0.1  # share of clips learnt without their words, for guidance
# WanPipeline fills the text with zeros up to its max_sequence_length, and the transformer has no mask for them. Seen at
# several lengths it learns to look past them. The shortest one holds every sentence of the grammar.
LENGTHS, SHARES = (32, 128, 512), (0.92, 0.05, 0.03)


class Denoiser(torch.nn.Module):
    """Text encoder and transformer, as WanPipeline joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = tokenizer()
        self.text_encoder = text_encoder(len(self.words))
        self.transformer = transformer()
        _start(self.transformer)

    def text(self, prompts: list[str], length: int) -> torch.Tensor:
        """float [B, length, width], zero after each prompt's end."""
        device = next(self.parameters()).device
        given = self.words(prompts, padding="longest", return_tensors="pt").to(device)
        states = self.text_encoder(given.input_ids, given.attention_mask).last_hidden_state
        states = states * given.attention_mask[:, :, None]
        return functional.pad(states, (0, 0, 0, length - states.shape[1]))

    def forward(
        self, noisy: torch.Tensor, level: torch.Tensor, prompts: list[str], length: int
    ) -> torch.Tensor:
        return self.transformer(noisy, 1000 * level, self.text(prompts, length), return_dict=False)[0]


@torch.no_grad()
def _start(model: Any) -> None:
    """Wan's own initial weights where diffusers leaves PyTorch's: even linear layers, and an output of zero."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.zeros_(model.proj_out.weight)


class Latents:
    """What `encode.py` has written so far, per channel of mean 0 and deviation 1."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "latents"
        scale = json.loads((out / "latents.json").read_text())
        self.mean = torch.tensor(scale["mean"]).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(scale["std"]).view(1, -1, 1, 1, 1)
        self.parts: dict[Path, dict[str, torch.Tensor]] = {}
        self.look()

    def look(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self.parts:
                self.parts[path] = load_file(path)

    def batch(self, rng: Random, size: int) -> tuple[torch.Tensor, list[str]]:
        """Clips float [B, 16, 5, 8, 8] drawn evenly, and words for each."""
        clips, prompts, parts = [], [], list(self.parts.values())
        for _ in range(size):
            part = rng.choice(parts)
            row = rng.randrange(len(part["latents"]))
            clips.append(part["latents"][row])
            pairs = pairs_of(part["digits"][row], part["directions"][row])
            rng.shuffle(pairs)
            prompts.append("" if rng.random() < NO_TEXT else worded(rng, pairs))
        return (torch.stack(clips).float() - self.mean) / self.std, prompts


def levels(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels in (0, 1): most between 0.65 and 0.95, where text decides digits and ways; a fifth more evenly."""
    middle = torch.randn(count, generator=generator).sigmoid()
    even = torch.rand(count, generator=generator)
    some = torch.rand(count, generator=generator) < 0.2
    return torch.where(some, shifted(even, EVENLY), shifted(middle, SHIFT))


def shifted(level: torch.Tensor, shift: float) -> torch.Tensor:
    """Levels moved towards noise as the scheduler's `flow_shift` does."""
    return shift * level / (1 + (shift - 1) * level)


def loss_of(model: Denoiser, batch: tuple[torch.Tensor, list[str]], step: int, seed: int) -> torch.Tensor:
    clips, prompts = batch
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    noise = torch.randn(clips.shape, generator=generator)
    level = levels(len(clips), generator)
    share = level.view(-1, 1, 1, 1, 1)
    noisy = (1 - share) * clips + share * noise
    length = Random(f"length {seed} {step}").choices(LENGTHS, SHARES)[0]
    # At these sizes PyTorch's plain attention is several times faster on a CPU than its flash attention.
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
    with torch.autocast(device.type, torch.bfloat16), plain:
        told = model(noisy.to(device), level.to(device), prompts, length)
    return functional.mse_loss(told.float(), (noise - clips).to(device))


def rate_at(progress: float, step: int) -> float:
    """Share of the learning rate: warm-up, constant, and down to 2 % over the last third."""
    return min(1.0, (step + 1) / 200) * min(1.0, 0.02 + 2.94 * (1 - progress))


def groups(model: Denoiser) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for norms, biases and tables."""
    matrices = [weights for weights in model.parameters() if weights.ndim > 1]
    others = [weights for weights in model.parameters() if weights.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]


def train(out: Path, minutes: float, batch: int, rate: float, seed: int, device: str, compiled: bool) -> None:
    torch.manual_seed(seed)
    model, averaged = Denoiser().to(device).train(), Denoiser().to(device).requires_grad_(False)
    averaged.load_state_dict(model.state_dict())
    if compiled:
        for block in model.transformer.blocks:
            block.compile(dynamic=False)
    optimizer = torch.optim.AdamW(groups(model), lr=rate, betas=(0.9, 0.98), fused=True)
    state, latents = out / "denoiser.state.safetensors", Latents(out)
    step, spent = load_state(state, model, averaged, optimizer)
    log, mark, saved, losses = (out / "denoiser.log").open("a"), time.perf_counter(), spent, []
    while spent < 60 * minutes:
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(spent / (60 * minutes), step)
        loss = loss_of(model, latents.batch(Random(f"batch {seed} {step}"), batch), step, seed)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        average(averaged, model, min(DECAY, (step + 1) / (step + 10)))
        losses.append(float(loss.detach()))
        now = time.perf_counter()
        spent, mark = spent + now - mark, now
        if step % 50 == 0:
            mean, losses = math.fsum(losses) / len(losses), []
            parts = len(latents.parts)
            print(
                f"{step} {spent:.0f}s loss {mean:.4f} norm {float(norm):.3f} files {parts}",
                file=log,
                flush=True,
            )
            latents.look()
        if spent - saved > 180 or spent >= 60 * minutes:
            save_state(state, out / "denoiser.safetensors", model, averaged, optimizer, step, spent)
            divide(out)
            saved = spent


def divide(out: Path) -> None:
    """The averaged weights as the two parts' own files."""
    weights = load_file(out / "denoiser.safetensors")
    for name in ("transformer", "text_encoder"):
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in weights.items()
            if key.startswith(f"{name}.")
        }
        save_file(own, out / f"{name}.writing")
        (out / f"{name}.writing").rename(out / f"{name}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile", action="store_true", dest="compiled", help="1.7 times faster; needs a C++ compiler"
    )
    options = parser.parse_args()
    train(**vars(options))
