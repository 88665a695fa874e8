"""Options of Wan2.1's own generate.py and of MindIE's that mean something else here, or nothing: each is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.errors import SightlineError, UsageError
from sightline.progress import note

if TYPE_CHECKING:
    from sightline.video.pipeline import VideoPipeline


def _hidden(name: str) -> Any:
    return typer.Option(name, hidden=True)


Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="t2v-1.3B or t2v-14B: checks that the model is of this size.",
        rich_help_panel="What computes it, and how",
    ),
]
DitFsdp = Annotated[bool, _hidden("--dit-fsdp")]
T5Fsdp = Annotated[bool, _hidden("--t5-fsdp")]
ConvertDtype = Annotated[bool, _hidden("--convert-model-dtype")]
Ratio = Annotated[float | None, _hidden("--attentioncache-ratio")]
Ring = Annotated[int, _hidden("--ring-size")]
TensorParallel = Annotated[int, _hidden("--tp-size")]
Extend = Annotated[bool, _hidden("--use-prompt-extend")]
ExtendMethod = Annotated[str | None, _hidden("--prompt-extend-method")]
ExtendModel = Annotated[str | None, _hidden("--prompt-extend-model")]
ExtendLanguage = Annotated[str | None, _hidden("--prompt-extend-target-lang")]
Fp8 = Annotated[bool, _hidden("--fp8")]
Rainfusion = Annotated[bool, _hidden("--use-rainfusion")]
Sparsity = Annotated[float | None, _hidden("--sparsity")]
SparseStart = Annotated[int | None, _hidden("--sparse-start-step")]
QuantMode = Annotated[int, _hidden("--quant-mode")]
QuantPath = Annotated[str | None, _hidden("--quant-dit-path")]
Image = Annotated[str | None, _hidden("--image")]
FirstFrame = Annotated[str | None, _hidden("--first-frame")]
LastFrame = Annotated[str | None, _hidden("--last-frame")]

# Width of the transformer (heads times head size) and blocks, of wan/configs in Wan-Video/Wan2.1.
_TASKS = {"t2v-1.3B": (1536, 30), "t2v-14B": (5120, 40)}

_REFUSED = {
    "ring_size": "ring attention is not offered; spread the tokens with --ulysses-size",
    "tp_size": "tensor parallelism is not offered; spread the tokens with --ulysses-size",
    "use_prompt_extend": "no language model rewrites prompts here; write the long prompt yourself",
    "fp8": "there are no products in 8 bits here; --cast-weights keeps the weights in 8 bits to save memory",
    "use_rainfusion": "sparse attention is not offered; --use-attentioncache, --block-cache or a --plan save time",
    "quant_mode": "quantized video models are not offered; --cast-weights keeps the weights in 8 bits",
    "quant_dit_path": "quantized video models are not offered; --cast-weights keeps the weights in 8 bits",
    "image": "only text makes a video here, not a picture; take a text-to-video model and --prompt",
    "first_frame": "only text makes a video here, not a picture; take a text-to-video model and --prompt",
    "last_frame": "only text makes a video here, not a picture; take a text-to-video model and --prompt",
}
_IGNORED = {
    "dit_fsdp": "every card holds the whole transformer; --offload group or --cast-weights save memory",
    "t5_fsdp": "every card holds the whole text encoder; --offload model or --t5-cpu save memory",
    "attentioncache_ratio": "`sightline video search --budget` finds a plan for a speed",
    "prompt_extend_method": "no language model rewrites prompts here",
    "prompt_extend_model": "no language model rewrites prompts here",
    "prompt_extend_target_lang": "no language model rewrites prompts here",
    "sparsity": "sparse attention is not offered",
    "sparse_start_step": "sparse attention is not offered",
}


def answer_theirs(task: str | None, given: dict[str, Any]) -> None:
    """Refuse what cannot be had, and say once what makes no difference.

    Args:
        given: the values of the other options by name.

    Raises:
        UsageError: an option that would change the video and is not offered, with what there is instead.
    """
    if task is not None and task not in _TASKS:
        raise UsageError(f"--task {task} is not offered; there is text to video: {' and '.join(_TASKS)}")
    for name, reason in _REFUSED.items():
        # Of one card, and of no quantization, is what everybody has.
        if given.get(name) not in (None, False, 0, 1 if name.endswith("_size") else None):
            raise UsageError(f"{_spelt(name)}: {reason}")
    for name, reason in _IGNORED.items():
        if given.get(name) not in (None, False):
            note(f"{_spelt(name)} changes nothing: {reason}")


def check_task(task: str | None, pipeline: VideoPipeline, *, built_in: bool = False) -> None:
    """Whether a model is of the size that --task names; of the built-in one it is only said that it is not.

    Raises:
        SightlineError: it is of another size.
    """
    if task is None:
        return
    config = pipeline.components.transformer.config
    shape = (config.num_attention_heads * config.attention_head_dim, config.num_layers)
    if shape == _TASKS[task]:
        return
    if built_in:
        note(
            f"warning: without --model (--ckpt-dir) it is not {task} that makes the video, but the small built-in "
            f"model of moving digits"
        )
        return
    name = pipeline.components.name
    for other, theirs in _TASKS.items():
        if shape == theirs:
            raise SightlineError(f"--task {task}, but {name} is the model of {other}; give the other --model")
    raise SightlineError(
        f"--task {task}, but {name} is of another size (width {shape[0]} in {shape[1]} blocks); give the other "
        f"--model, or leave --task out"
    )


def _spelt(name: str) -> str:
    return "--" + name.replace("_", "-")
