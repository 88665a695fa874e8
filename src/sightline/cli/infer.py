"""sightline infer: parse, answer, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.options import (
    Adapter,
    CpuMemory,
    Device,
    DeviceMap,
    Dtype,
    GpuMemory,
    KvCacheMemory,
    MaxBatchedTokens,
    MaxModelLen,
    MaxPixels,
    MediaLimits,
    Model,
    PrefixCaching,
    Quantization,
    Speculation,
    media_limits,
)
from sightline.errors import SightlineError, UsageError

if TYPE_CHECKING:
    from sightline.engine.offline.infer import Summary
    from sightline.engine.offline.questions import Question

_SHOWN = 20  # up to so many answers are printed as they come


def command(
    model: Model,
    adapter: Adapter = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The question; placed after the media.")
    ] = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="A picture; may be repeated.")] = None,
    video: Annotated[list[str] | None, typer.Option("--video", help="A video; may be repeated.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A jsonl dataset to answer.")] = None,
    dataset_path: Annotated[
        Path | None,
        typer.Option("--dataset-path", help="A folder: --prompt is asked about each file in it."),
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Where a dataset's media lie, if not beside it.")
    ] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Answer only the first rows.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Results as jsonl; an interrupted file is continued."),
    ] = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option("--max-num-seqs", "--max-batch-size", min=1, help="Most answers computed together."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "--max-output-length", min=1, help="Longest answer.")
    ] = 128,
    max_input_length: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt in tokens; a longer one is an error.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of probability to sample from.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Number of tokens to sample from; 0 means all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    max_pixels: MaxPixels = None,
    min_pixels: Annotated[
        int | None, typer.Option(help="Smallest picture; smaller ones are scaled up.")
    ] = None,
    max_model_len: MaxModelLen = None,
    max_num_batched_tokens: MaxBatchedTokens = None,
    kv_cache_memory: KvCacheMemory = None,
    gpu_memory_utilization: GpuMemory = 0.9,
    cpu_memory_share: CpuMemory = 0.4,
    limit_mm_per_prompt: MediaLimits = None,
    prefix_caching: PrefixCaching = True,
    num_speculative_tokens: Speculation = 0,
    quantization: Quantization = None,
    device: Device = None,
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Answer one prompt, a dataset or a folder of pictures and videos.

    Example:  sightline infer --model MODEL --image cat.jpg --prompt "What is this?"
    """
    from sightline.engine.llm import LLM
    from sightline.engine.offline.infer import infer
    from sightline.engine.sampling.params import SamplingParams

    questions = _questions(prompt, image or [], video or [], data, dataset_path, media_root, max_samples)
    if output is None and len(questions) > 1:
        raise UsageError("many questions need a place for their answers; name it with -o results.jsonl")
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
    )
    llm = LLM(
        model,
        adapter=adapter,
        device=device,
        device_map=device_map,
        dtype=dtype,
        max_num_seqs=max_num_seqs,
        max_pixels=max_pixels,
        min_pixels=min_pixels,
        max_model_len=max_model_len,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_memory_bytes=kv_cache_memory,
        gpu_memory_utilization=gpu_memory_utilization,
        cpu_memory_share=cpu_memory_share,
        limit_mm_per_prompt=media_limits(limit_mm_per_prompt),
        enable_prefix_caching=prefix_caching,
        num_speculative_tokens=num_speculative_tokens,
        quantization=quantization,
        seed=seed,
    )
    show = _print_row if len(questions) <= _SHOWN and not as_json else None
    rows, summary = infer(llm, questions, params, output, max_input_length=max_input_length, on_row=show)
    if len(rows) == summary.failed == 1:
        raise SightlineError(rows[0]["error"])
    typer.echo(json.dumps(asdict(summary)) if as_json else _words(summary, output))
    if summary.failed:
        first = next(row["error"] for row in rows if "error" in row)
        raise SightlineError(f"{summary.failed} of {len(rows)} questions failed; the first: {first}")


def _questions(
    prompt: str | None,
    images: list[str],
    videos: list[str],
    data: Path | None,
    folder: Path | None,
    media_root: Path | None,
    max_samples: int | None,
) -> list[Question]:
    from sightline.engine.offline import questions

    if data is not None and folder is not None:
        raise UsageError("--data and --dataset-path exclude each other; give one")
    if data is not None:
        if prompt is not None or images or videos:
            raise UsageError("--data brings its own questions; leave --prompt, --image and --video out")
        return questions.from_dataset(data, media_root=media_root, max_samples=max_samples)
    if prompt is None:
        raise UsageError(
            "there is nothing to ask; give --prompt (with --image, --video or --dataset-path) or --data"
        )
    if folder is None:
        return questions.from_prompt(prompt, images, videos)
    if images or videos:
        raise UsageError("--dataset-path brings its own media; leave --image and --video out")
    return questions.from_folder(folder, prompt)[:max_samples]


def _print_row(row: dict[str, Any]) -> None:
    from sightline.engine.offline.infer import question_of

    if "error" not in row:
        typer.echo(f"Question: {question_of(row)}\nAnswer: {row['answer']}\n")


def _words(summary: Summary, output: Path | None) -> str:
    first = "-" if summary.time_to_first_token is None else f"{summary.time_to_first_token:.2f} s (median)"
    resumed = f", {summary.resumed} of them by an earlier run" if summary.resumed else ""
    lines = [
        f"Questions            {summary.questions}: {summary.answered} answered, {summary.failed} failed"
        + resumed,
        f"Prompt tokens        {summary.prompt_tokens:,}, "
        f"{summary.vision_tokens:,} of them from images and videos",
        f"Answer tokens        {summary.completion_tokens:,}",
        f"Time to first token  {first}",
        f"Throughput           {summary.output_tokens_per_second:.1f} tokens/s, "
        f"{summary.questions_per_second:.2f} questions/s, {summary.seconds:.1f} s in all",
    ]
    return "\n".join([*lines, f"Answers in           {output}"] if output else lines)
