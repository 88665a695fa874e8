"""Options of `sightline video generate`, each with the name it has in Wan2.1's own generate.py beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sightline.errors import UsageError


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_panel, **settings)


# What to make.
_panel = "What to make"
Prompt = Annotated[str | None, _option("--prompt", help="What the video shall show.")]
Negative = Annotated[
    str | None, _option("--negative-prompt", help="What to keep away from; the model's own without it.")
]
Size = Annotated[str | None, _option("--size", metavar="WIDTHxHEIGHT", help="Such as 832x480 or 832*480.")]
Frames = Annotated[int | None, _option("--frames", "--frame-num", help="Pictures, 4n + 1.")]
Steps = Annotated[int | None, _option("--steps", "--sample-steps", help="Denoising steps.")]
Guidance = Annotated[
    float | None,
    _option(
        "--guidance", "--sample-guide-scale", help="How strongly the prompt pulls; 1 and less: one branch."
    ),
]
Shift = Annotated[
    float | None, _option("--shift", "--sample-shift", help="Flow shift; the model's own for this size.")
]
Solver = Annotated[str | None, _option("--scheduler", "--sample-solver", help="unipc, dpm++ or euler.")]
Seed = Annotated[
    int | None, _option("--seed", "--base-seed", help="Of the noise; -1 draws one. 0 without it.")
]
Fps = Annotated[int | None, _option("--fps", help="Pictures a second in the file.")]
From = Annotated[
    Path | None,
    _option("--from", metavar="NAME.json", help="Make a video again from the JSON beside it."),
]

# Many at once.
_panel = "Many at once"
Prompts = Annotated[
    Path | None,
    _option("--prompts", help="A prompt a line, or jsonl with settings of their own; -o is a folder then."),
]
NumVideos = Annotated[
    int,
    _option(
        "--num-videos", min=1, help="Videos of each prompt, with the seeds that follow; -o is a folder then."
    ),
]

# Where it goes.
_panel = "Where it goes"
Output = Annotated[
    Path | None,
    _option("--output", "-o", "--save-file", help="The file (.mp4, .mov, .mkv, .webm, .gif), or the folder."),
]
Overwrite = Annotated[bool, _option("--overwrite", help="Replace what is there.")]
SaveFrames = Annotated[bool, _option("--save-frames", help="The frames as PNG files too, in NAME.frames.")]
Crf = Annotated[
    int | None, _option("--crf", help="Quality of the encoder: lower is nearer and larger; 14 with x264.")
]
AsJson = Annotated[bool, _option("--json", help="Print what the JSON beside the video says, in one line.")]

# What computes it, and how.
_panel = "What computes it, and how"
VideoModel = Annotated[
    Path | None,
    _option(
        "--model",
        "--ckpt-dir",
        help="Folder of a Wan model, diffusers' or original; the built-in one without.",
    ),
]
TransformerFile = Annotated[
    Path | None, _option("--transformer-file", help="The transformer from elsewhere.")
]
VaeFile = Annotated[Path | None, _option("--vae-file", help="The VAE from elsewhere.")]
TextFile = Annotated[Path | None, _option("--text-encoder-file", help="The text encoder from elsewhere.")]
TokenizerFolder = Annotated[Path | None, _option("--tokenizer", help="The tokenizer from elsewhere.")]
Offload = Annotated[
    str | None,
    _option(
        "--offload",
        "--offload-model",
        metavar="none|model|group",
        help="On the device only while it runs: each part (model), the transformer block by block (group). "
        "--offload-model alone, or with true, is model.",
    ),
]
CastWeights = Annotated[
    bool | None, _option("--cast-weights/--no-cast-weights", help="Keep large weights in 8 bits; not exact.")
]
TileVae = Annotated[bool | None, _option("--tile-vae/--no-tile-vae", help="Decode in tiles; not exact.")]
T5Cpu = Annotated[bool | None, _option("--t5-cpu/--no-t5-cpu", help="The text encoder computes on the CPU.")]
Operators = Annotated[
    bool | None, _option("--operators/--no-operators", help="Fused operators, or the model's own code.")
]
VideoDevice = Annotated[str | None, _option("--device", help="cpu, cuda, npu, cuda:1, ...")]
VideoDtype = Annotated[str | None, _option("--dtype", help="auto, bf16, fp16 or fp32.")]

# The step cache.
_panel = "The step cache: see docs/step-cache.md"
PlanFile = Annotated[
    Path | None, _option("--plan", help="A step-cache plan, as `sightline video search` finds.")
]
PlanAnyway = Annotated[
    bool, _option("--plan-anyway", help="Use a plan that was found for another generation.")
]
AttentionCache = Annotated[
    bool, _option("--use-attentioncache", help="Take self-attention of some steps from earlier ones.")
]
BlockCache = Annotated[
    bool, _option("--block-cache", help="Take a range of blocks from earlier steps instead.")
]
StartStep = Annotated[
    int | None, _option("--start-step", min=0, help="Up to this step all are computed; 12 without.")
]
Interval = Annotated[
    int | None,
    _option(
        "--attentioncache-interval",
        "--cache-interval",
        min=1,
        help="Behind it, one step of so many is computed; 4 without.",
    ),
]
EndStep = Annotated[
    int | None, _option("--end-step", min=0, help="Behind this step all are computed; 37 without.")
]
BlockStart = Annotated[
    int | None, _option("--block-start", min=0, help="First block of the range; 0 without.")
]
BlockEnd = Annotated[
    int | None, _option("--block-end", min=1, help="The block behind the range; none without.")
]

# Several cards.
_panel = "Several cards, under torchrun"
Ulysses = Annotated[
    int | None,
    _option("--ulysses-size", min=1, help="Cards that share each branch's tokens."),
]
Cfg = Annotated[int | None, _option("--cfg-size", min=1, help="2: guidance branches on two groups of cards.")]
VaeParallel = Annotated[bool | None, _option("--vae-parallel/--no-vae-parallel", help="Decode on all cards.")]

_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_OFFLOADS = ("none", "model", "group")


def offload_from(text: str | None) -> str | None:
    """What --offload or --offload-model says: `none`, `model` or `group`.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    word = text.lower()
    chosen = "model" if word in _TRUE else "none" if word in _FALSE else word
    if chosen not in _OFFLOADS:
        raise UsageError(f"--offload {text!r} is not one of {', '.join(_OFFLOADS)}, true or false")
    return chosen


def with_bare_offload(arguments: list[str]) -> list[str]:
    """Give `--offload-model` its value where it stands alone, as in MindIE's lines; Wan's own write True or False."""
    filled: list[str] = []
    for number, argument in enumerate(arguments):
        filled.append(argument)
        following = arguments[number + 1].lower() if number + 1 < len(arguments) else ""
        if argument == "--offload-model" and following not in (*_TRUE, *_FALSE, *_OFFLOADS):
            filled.append("model")
    return filled
