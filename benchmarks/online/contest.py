"""One contestant in one round: started, measured level by level, stopped; never two at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from offline.contest import warm_page_cache

from online.contestants import ENGINE, Server, server
from online.process import Running, log_tail, running
from online.workload import WARM, Workload, rows_of
from sightline.bench.serve.bench import BenchSettings, bench
from sightline.bench.serve.datasets import DataSettings
from sightline.errors import SightlineError

_PACKAGES = Path(__file__).resolve().parents[1]
_LIMIT = 3600.0
_TIMEOUT = 900.0  # of one request
# What is kept of a level.
KEPT = (
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "output_throughput", "failures", "not_streamed", "stages"),
    *(f"{kind}_{name}_ms" for kind in ("mean", "median", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
)


def measure(
    name: str, model: Path, workload: Workload, folder: Path, pythons: dict[str, str], idle_seconds: float
) -> dict[str, Any]:
    """What one contestant does with the prompts in `folder`.

    Raises:
        SightlineError: it does not start, or answers nothing.
    """
    warm_page_cache(model)
    if name == ENGINE:
        return _engine(model, workload, folder)
    contestant = server(name, model, workload.limits, workload.new_tokens, pythons)
    with running(contestant) as it:
        try:
            return _served(contestant, it, workload, folder, idle_seconds)
        except SightlineError as error:
            raise SightlineError(f"{error}; the server wrote:\n{it.log_end()}") from error


def _served(
    contestant: Server, it: Running, workload: Workload, folder: Path, idle_seconds: float
) -> dict[str, Any]:
    found: dict[str, Any] = {"ready_s": it.ready_s, "levels": {}}
    first = time.perf_counter()
    _level(contestant, it.url, workload, folder, min(workload.clients), prompts=1)
    found["first_answer_s"] = it.ready_s + time.perf_counter() - first
    found["idle_cpu"] = it.idle_share(idle_seconds)
    for clients, count in workload.clients.items():
        before, own = it.cpu_seconds(), time.process_time()
        level = _level(contestant, it.url, workload, folder, clients, prompts=count, warmup=WARM)
        found["levels"][str(clients)] = {
            **level,
            "server_cpu_s": it.cpu_seconds() - before,
            "client_cpu_s": time.process_time() - own,
        }
    return found


def _level(
    contestant: Server,
    url: str,
    workload: Workload,
    folder: Path,
    clients: int,
    *,
    prompts: int,
    warmup: int = 0,
) -> dict[str, Any]:
    fields = {"temperature": 0.0, "stream_options": {"include_usage": True}, **contestant.fields}
    settings = BenchSettings(
        base_url=url,
        model=contestant.asks_for,
        data=DataSettings(dataset=str(rows_of(folder, clients)), output_len=workload.new_tokens),
        prompts=prompts,
        max_concurrency=clients,
        fields={name: value for name, value in fields.items() if value is not None},
        warmup=warmup,
        timeout=_TIMEOUT,
        seed=0,
        exact_answers=True,
    )
    (result,) = bench(settings)
    if result["unanswered"]:
        raise KeyboardInterrupt
    if not result["completed"]:
        examples = "; ".join(one["example"] for one in result["failures"].values())
        raise SightlineError(f"{contestant.name} answered none of {prompts} requests: {examples}")
    return {key: result[key] for key in KEPT}


def _engine(model: Path, workload: Workload, folder: Path) -> dict[str, Any]:
    limits = workload.limits
    levels = [[clients, count, str(rows_of(folder, clients))] for clients, count in workload.clients.items()]
    job = {
        "model": str(model),
        "tokens": limits.tokens,
        "requests": limits.requests,
        "media": limits.media,
        "levels": levels,
        "new_tokens": workload.new_tokens,
    }
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as place:
        question, answer, log = (Path(place) / name for name in ("job.json", "result.json", "log"))
        question.write_text(json.dumps({**job, "started": time.time()}), encoding="utf-8")
        path = os.pathsep.join([str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "SIGHTLINE_QUIET": "1"}
        command = [sys.executable, "-m", "online.engine_alone", str(question), str(answer)]
        with log.open("w") as output:
            try:  # `run` kills it where this process is interrupted
                subprocess.run(
                    command, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=_LIMIT
                )
            except subprocess.TimeoutExpired as error:
                raise SightlineError(f"the engine alone took more than {_LIMIT:.0f} s") from error
        if not answer.exists():
            raise SightlineError(f"the engine alone gave no result; it wrote:\n{log_tail(log)}")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    found["levels"] = {
        clients: {key: level[key] for key in KEPT} for clients, level in found["levels"].items()
    }
    return found
