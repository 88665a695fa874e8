"""What is measured of an engine, mode by mode; the same calls for every engine, on a monotonic clock.

An engine with a prefix cache tells the time of a decode step by two runs of different length over prompts it has
seen; one without notes when each token comes.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from offline.engines import Engine, Job, Prompt


def batch(engine: Engine, prompts: list[Prompt], job: Job) -> dict[str, Any]:
    """A batch of new prompts, then the same batch again."""
    cold, answers = _timed(engine, prompts, job.new_tokens)
    result = {"cold_s": cold, "first_tokens": [answer[0] for answer in answers]}
    if engine.caches:
        result["repeat_s"], _ = _timed(engine, prompts, job.new_tokens)
        result["decode_ms"] = 1e3 * _step_of_seen(engine, prompts, job.new_tokens, 1)
    else:
        result["decode_ms"] = 1e3 * _step_of_marks(engine)
    return result


def context(engine: Engine, prompts: list[Prompt], job: Job) -> dict[str, Any]:
    """Decode steps over long prompts."""
    if not engine.caches:
        total, _ = _timed(engine, prompts, job.new_tokens)
        return {"prefill_s": engine.marks[0], "total_s": total, "decode_ms": 1e3 * _step_of_marks(engine)}
    prefill, _ = _timed(engine, prompts, 1)
    step = _step_of_seen(engine, prompts, job.new_tokens, job.repeats)
    return {"prefill_s": prefill, "decode_ms": 1e3 * step}


def single(engine: Engine, prompts: list[Prompt], job: Job) -> dict[str, Any]:
    """One prompt at a time: how fast it is read, and how fast its answer is written. The first one warms up."""
    prefills, steps = [], []
    engine.generate(prompts[:1], job.new_tokens)
    for prompt in prompts[1:]:
        if engine.caches:
            prefills.append(_timed(engine, [prompt], 1)[0])
            steps.append(_step_of_seen(engine, [prompt], job.new_tokens, 1))
        else:
            _timed(engine, [prompt], job.new_tokens)
            prefills.append(engine.marks[0])
            steps.append(_step_of_marks(engine))
    return {"prefill_s": statistics.median(prefills), "decode_ms": 1e3 * statistics.median(steps)}


def encode(engine: Engine, prompts: list[Prompt], job: Job) -> dict[str, Any]:
    """Pictures never seen before, one at a time; the first one warms up."""
    seconds = [engine.encode(prompt) for prompt in prompts][1:]
    return {"encode_s": statistics.median(seconds)}


MODES = {"batch": batch, "context": context, "single": single, "encode": encode}


def _timed(engine: Engine, prompts: list[Prompt], new_tokens: int) -> tuple[float, list[list[int]]]:
    started = time.perf_counter()
    answers = engine.generate(prompts, new_tokens)
    seconds = time.perf_counter() - started
    lengths = [len(answer) for answer in answers]
    if lengths != [new_tokens] * len(prompts):
        raise SystemExit(f"the engine gave answers of {lengths} tokens instead of {new_tokens}")
    return seconds, answers


def _step_of_seen(engine: Engine, prompts: list[Prompt], new_tokens: int, repeats: int) -> float:
    short = statistics.median(_timed(engine, prompts, 1)[0] for _ in range(repeats))
    long = statistics.median(_timed(engine, prompts, new_tokens)[0] for _ in range(repeats))
    return (long - short) / (new_tokens - 1)


def _step_of_marks(engine: Engine) -> float:
    return (engine.marks[-1] - engine.marks[0]) / (len(engine.marks) - 1)
