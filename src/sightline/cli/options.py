"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sightline.data.media_counts import read_media_counts

Model = Annotated[Path, typer.Option("--model", help="The checkpoint folder.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="A PEFT adapter folder to put on top.")]
MaxPixels = Annotated[
    int | None, typer.Option(help="Largest picture; without it MAX_PIXELS, then the checkpoint's limit.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, npu, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")]

# How an engine is built; the settings of the same names in sightline.engine.settings.
KvCacheMemory = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-memory", help="Memory for keys and values, like 4GiB; without it, what is left over."
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(min=2, help="Most tokens of prompt and answer; without it, the checkpoint's."),
]
MaxBatchedTokens = Annotated[
    int | None, typer.Option("--max-num-batched-tokens", min=1, help="Most tokens of one step.")
]
Quantization = Annotated[
    str | None, typer.Option(help="int8 or int4: quantize the weights as they are loaded.")
]
PrefixCaching = Annotated[
    bool,
    typer.Option("--prefix-caching/--no-prefix-caching", help="Reuse what earlier prompts began with."),
]
Speculation = Annotated[
    int,
    typer.Option(
        "--num-speculative-tokens", min=0, max=64, help="Tokens guessed ahead from the text itself."
    ),
]
GpuMemory = Annotated[
    float,
    typer.Option("--gpu-memory-utilization", help="Share of a card's memory that may be taken in all."),
]
CpuMemory = Annotated[
    float,
    typer.Option("--cpu-memory-share", help="On a CPU, share of the memory left over for keys and values."),
]
DeviceMap = Annotated[
    str | None, typer.Option("--device-map", help="auto spreads the model over the visible cards.")
]
MediaLimits = Annotated[
    str | None,
    typer.Option(
        "--limit-mm-per-prompt",
        metavar="LIMITS",
        help="Most media of a prompt: image=4,video=1, or JSON that may name width and height too.",
    ),
]


def media_limits(text: str | None) -> dict[str, Any] | None:
    """What --limit-mm-per-prompt says; raises as `read_media_counts`."""
    return None if text is None else read_media_counts(text)
