"""Contestants, each measured in a process of its own, one after the other, never two at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from offline.engines import Job
from sightline.errors import SightlineError
from sightline.progress import note

_PACKAGES = Path(__file__).resolve().parents[1]
_LIMIT_SECONDS = 3600


@dataclass(frozen=True)
class Contestant:
    """An engine with its settings.

    Attributes:
        engine: the module in `offline.engines`; precision: of its weights, a key of `offline.counts.WEIGHT_BYTES`.
        ours: compared with every contestant that is not.
        python: the interpreter that has the engine; None is this one.
    """

    name: str
    engine: str
    precision: str
    settings: dict[str, Any]
    ours: bool = False
    python: str | None = None


def _ours(name: str, precision: str, **settings: Any) -> Contestant:
    return Contestant(name, "sightline", precision, {"dtype": "bf16", **settings}, ours=True)


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        _ours("sightline", "bf16"),
        _ours("sightline-int8", "int8", quantization="int8"),
        _ours("sightline-int4", "int4", quantization="int4"),
        Contestant("transformers", "transformers", "bf16", {"dtype": "bf16"}),
        Contestant("transformers-1by1", "transformers", "bf16", {"dtype": "bf16", "one_by_one": True}),
        Contestant("vllm", "vllm", "bf16", {"dtype": "bfloat16"}),
        Contestant("llama.cpp", "llama_cpp", "q4_1", {}),
    )
}


def measure(contestant: Contestant, job: Job) -> dict[str, Any]:
    """Start the contestant's process, wait for it and return what it measured.

    Raises:
        SightlineError: it ended without a result; the end of what it wrote is part of the text.
    """
    job = replace(job, engine=contestant.engine, settings={**contestant.settings, **job.settings})
    warm_page_cache(Path(job.model))
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        question, answer, log = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        question.write_text(json.dumps(asdict(job)), encoding="utf-8")
        command = [contestant.python or sys.executable, "-m", "offline.worker", str(question), str(answer)]
        environment = os.environ | {
            "PYTHONPATH": _python_path(),
            "HF_HUB_OFFLINE": "1",
            "SIGHTLINE_QUIET": "1",
        }
        with log.open("w") as output:
            try:
                subprocess.run(
                    [*command, repr(time.time())],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=_LIMIT_SECONDS,
                )
            except subprocess.TimeoutExpired as error:
                raise SightlineError(f"{contestant.name} took more than {_LIMIT_SECONDS} s") from error
        if not answer.exists():
            end = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise SightlineError(f"{contestant.name} gave no result; its output ended with:\n{end}")
        result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return result


def ceilings(device: str) -> dict[str, float]:
    """Measured in a process of its own, so that its memory is free again when the contestants run."""
    environment = os.environ | {"PYTHONPATH": _python_path()}
    command = [sys.executable, "-m", "offline.ceilings", device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SightlineError(f"the ceilings of {device} could not be measured:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _python_path() -> str:
    """The benchmarks', and what the caller has set: another checkout of Sightline, perhaps."""
    return os.pathsep.join([str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])


def best(several: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: max(one[name] for one in several) for name in several[0]}


def warm_page_cache(folder: Path) -> None:
    """Read the weights once, so that every contestant loads them from memory."""
    started = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    if time.perf_counter() - started > 10:
        note(f"{folder} was read from disk; there may be too little memory to keep it cached")
