"""One engine in a process of its own: `python -m caching.worker ENGINE MODEL DTYPE THREADS`.

Reads a job a line from standard input and answers each with a line on standard output; what libraries print goes to
standard error. Runs in the Python that has the engine.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from dataclasses import asdict
from typing import Any

from caching.job import Answer, Job


def main() -> None:
    name, model, dtype, threads = sys.argv[1:5]
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(int(threads))
    try:
        engine = importlib.import_module(f"caching.engines.{name}").Engine(model, dtype)
        tell(channel, {"ready": engine.versions()})
    except Exception as error:
        traceback.print_exc()
        tell(channel, {"failed": say(error)})
        return
    for line in sys.stdin:
        tell(channel, asdict(answer(engine, Job(**json.loads(line)))))


def answer(engine: Any, job: Job) -> Answer:
    """The engine's, or its failure in a sentence."""
    import torch

    try:
        if not job.count:
            return engine.run(job)
        from torch.utils.flop_counter import FlopCounterMode

        # torch counts the attention of GPUs by itself and forgets that of CPUs.
        cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_operations}
        with FlopCounterMode(display=False, custom_mapping=cpu) as counter, torch.inference_mode():
            found = engine.run(job)
        return Answer(0.0, float(counter.get_total_flops()), found.told)
    except Exception as error:
        traceback.print_exc()
        return Answer(error=say(error))


def attention_operations(query: Any, key: Any, value: Any, *others: Any, **named: Any) -> int:
    """Of two products, from the shapes."""
    from torch.utils.flop_counter import sdpa_flop_count

    return int(sdpa_flop_count(query, key, value))


def say(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:300]}"


def tell(channel: Any, value: dict[str, Any]) -> None:
    channel.write(json.dumps(value) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
