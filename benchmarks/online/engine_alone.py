"""Ours without HTTP: the same prompts, as many at a time, in the engine's own process.

`python -m online.engine_alone JOB RESULT`, both JSON files. What it takes less than the server is what HTTP costs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from online.workload import WARM
from sightline import LLM, SamplingParams
from sightline.bench.serve.datasets import DataSettings, PromptMaker
from sightline.bench.serve.load import Measured, run_load
from sightline.bench.serve.metrics import summarize
from sightline.bench.serve.outcome import Outcome
from sightline.bench.serve.prompts import Prompt


def main() -> None:
    """The job has model, limits (tokens, requests, media), levels [[clients, count, rows], ...], new_tokens."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llm = LLM(
        job["model"],
        dtype="bf16",
        max_model_len=job["tokens"],
        max_num_seqs=job["requests"],
        limit_mm_per_prompt=job["media"],
    )
    found = {"ready_s": time.time() - job["started"], "levels": {}}
    for clients, count, rows in job["levels"]:
        measured = asyncio.run(_level(llm, rows, clients, count, job["new_tokens"]))
        found["levels"][clients] = summarize(measured)
    llm.close()
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


async def _level(llm: LLM, rows: str, clients: int, count: int, new_tokens: int) -> Measured:
    maker = PromptMaker(DataSettings(dataset=rows, output_len=new_tokens), 0)
    for number in (WARM, count):
        calls = [partial(ask, llm.engine, prompt) for prompt in await maker.make(number)]
        measured = await run_load(calls, [0.0] * number, max_concurrency=clients, progress=False)
    return measured


async def ask(engine: Any, prompt: Prompt, outcome: Outcome) -> None:
    """One request to the engine, its moments noted as for one over HTTP."""
    params = SamplingParams(temperature=0.0, max_tokens=prompt.output_tokens, ignore_eos=True)
    outcome.start = last = time.perf_counter()
    stream = engine.add(prompt.conversation, params)
    try:
        async for delta in stream:
            now = time.perf_counter()
            outcome.latency = now - outcome.start
            if not delta.text:
                continue
            if outcome.chunks:
                outcome.itls.append(now - last)
            else:
                outcome.ttft = now - outcome.start
            outcome.chunks, outcome.text, last = outcome.chunks + 1, outcome.text + delta.text, now
        output = stream.output
    finally:
        stream.abort()
    outcome.input_tokens, outcome.output_tokens = len(output.prompt_token_ids), output.completion_tokens
    if output.error is not None or not outcome.chunks:
        outcome.fail("error", str(output.error or "no text"))


if __name__ == "__main__":
    main()
