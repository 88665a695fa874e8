"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Option("--model", help="The checkpoint folder.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="A PEFT adapter folder to put on top.")]
MaxPixels = Annotated[
    int | None, typer.Option(help="Largest picture; without it MAX_PIXELS, then the checkpoint's limit.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, npu, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")]
