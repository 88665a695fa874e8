"""Put the trained parts together as the diffusers folder that the package ships.

    python examples/tiny-wan/pack.py runs/tiny-wan

Weights are stored in bfloat16. Refuses to write more than 14 MB.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from network import autoencoder, scheduler, text_encoder, tokenizer, transformer
from safetensors.torch import load_file

from sightline.files import replacing_folder, write_json
from sightline.video import tiny

LIMIT = 14_000_000  # bytes; the folder travels with every install
MODEL = Path(tiny.__file__).parent / "model"
NOTICE = """The weights in this folder are part of Sightline and under its licence, Apache-2.0.

They were trained from nothing with the recipe in examples/tiny-wan, on clips drawn from the digits of MNIST (Yann LeCun
and Corinna Cortes; CC BY-SA 3.0), which are not contained here.
"""


def assemble(out: Path) -> Any:
    """A WanPipeline of the parts trained in a folder, in bfloat16."""
    from diffusers import WanPipeline

    scale = json.loads((out / "latents.json").read_text())
    words = tokenizer()
    parts = {
        "vae": autoencoder(scale["mean"], scale["std"]),
        "transformer": transformer(),
        "text_encoder": text_encoder(len(words)),
    }
    for name, part in parts.items():
        # Not strict: the text encoder has one table under two names, and the file holds it once.
        left = part.load_state_dict(load_file(out / f"{name}.safetensors"), strict=name != "text_encoder")
        if set(left.missing_keys) - {"encoder.embed_tokens.weight"} or left.unexpected_keys:
            raise SystemExit(f"{out / name}.safetensors does not hold this model: {left}")
        part.to(torch.bfloat16).eval()
    return WanPipeline(tokenizer=words, scheduler=scheduler(), **parts)


def pack(out: Path, output: Path) -> int:
    """Write the folder beside its place and swap; how many bytes it holds."""
    beside = output.with_name(f"{output.name}.new")
    with replacing_folder(beside) as folder:
        assemble(out).save_pretrained(folder, safe_serialization=True)
        write_json(folder / "sightline.json", asdict(tiny.SPEC))
        (folder / "NOTICE.txt").write_text(NOTICE)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > LIMIT:
            raise SystemExit(
                f"{size:,} bytes are more than {LIMIT:,}; make the networks in network.py smaller"
            )
    shutil.rmtree(output, ignore_errors=True)
    beside.rename(output)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the training")
    parser.add_argument("--output", type=Path, default=MODEL)
    arguments = parser.parse_args()
    print(f"{arguments.output}: {pack(arguments.out, arguments.output):,} bytes")


if __name__ == "__main__":
    main()
