"""What structured output costs: reading the tokenizer, compiling a form, and each token of one answer.

    OMP_NUM_THREADS=1 python benchmarks/structured.py MODEL

MODEL is a checkpoint folder; only its tokenizer and the size of its vocabulary are used. Times of a token are medians
of the sampler's choice of one row of random logits in bf16, as it is and under a form, along a JSON text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sightline import SamplingParams, StructuredOutputsParams
from sightline.engine.sampling.answer import Answer
from sightline.engine.sampling.sampler import Sampler
from sightline.engine.sampling.structured.compiler import Compiler
from sightline.engine.sampling.structured.matcher import Matcher

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colors": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
        },
    },
    "required": ["name", "age", "colors", "address"],
}
TEXT = (
    '{"name": "Ann from \\"next door\\"", "age": 42, "colors": ["red", "blue"], '
    '"address": {"street": "Main street 5, over the hill", "zip": "12345"}}'
)


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = act()
    return time.perf_counter() - begun, result


def steps(
    tokens: list[int], compiler: Compiler, rows: torch.Tensor, tokenizer: Any, **options: Any
) -> list[float]:
    """Seconds of each choice along `tokens`."""
    form = options.get("structured_outputs")
    sampler = Sampler(rows.shape[1], "cpu")
    seconds = []
    for round_ in range(3):
        structure = None if form is None else Matcher(compiler.compile(form))
        params = SamplingParams(max_tokens=None, **options)
        answer = Answer(params, limit=10**6, tokenizer=tokenizer, seed=0, structure=structure)
        for place, token in enumerate(tokens):
            row = place % len(rows)
            begun = time.perf_counter()
            sampler.choose(rows[row : row + 1], [answer])
            taken = time.perf_counter() - begun
            answer.rules.push(token)
            if round_:  # the first one warms up
                seconds.append(taken)
    return seconds


def main() -> None:
    from transformers import AutoConfig, AutoTokenizer

    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    folder = parser.parse_args().model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = int(AutoConfig.from_pretrained(folder).get_text_config().vocab_size)
    ends = frozenset({int(tokenizer.eos_token_id)})
    compiler = Compiler(tokenizer, size, ends)
    form = StructuredOutputsParams(json=SCHEMA)
    first, _ = timed(lambda: compiler.compile(StructuredOutputsParams(choice=["yes", "no"])))
    started, _ = timed(lambda: compiler.compile(StructuredOutputsParams(regex="[a-z]+")))
    compiled, _ = timed(lambda: compiler.compile(form))
    known, _ = timed(lambda: compiler.compile(form))
    print(f"{size:,} tokens: reading the tokenizer {first:.2f} s, starting the process {started:.2f} s")
    print(
        f"compiling {len(json.dumps(SCHEMA))} characters of schema {1e3 * compiled:.1f} ms, again {1e6 * known:.0f} µs"
    )
    torch.manual_seed(0)
    rows = torch.randn(16, size).bfloat16()
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0},
        "temperature 1": {"temperature": 1.0},
        "top_k 20": {"top_k": 20},
    }
    for name, options in kinds.items():
        plain = steps(tokens, compiler, rows, tokenizer, **options)
        held = steps(tokens, compiler, rows, tokenizer, structured_outputs=form, **options)
        print(
            f"{name}: {1e6 * statistics.median(plain):.0f} µs a token as it is, "
            f"{1e6 * statistics.median(held):.0f} µs under the schema (largest {1e6 * max(held):.0f})"
        )
    compiler.close()


if __name__ == "__main__":
    main()
