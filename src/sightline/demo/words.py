"""What the demo says: one line a step, and the rows of its answers in a form to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.demo.settings import KINDS
from sightline.progress import duration

_NOTES = {"new": "", "resumed": ", with an earlier run", "reused": ", done by an earlier run"}


def step_line(steps: Sequence[str], name: str, text: str, seconds: float, state: str) -> str:
    """`4/8 train   312 steps, ... (4 min 00 s)`"""
    return f"{number(steps, name)}{name:<7} {text} ({duration(seconds)}{_NOTES[state]})"


def number(steps: Sequence[str], name: str) -> str:
    return f"{steps.index(name) + 1}/{len(steps)} "


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def millions(count: int) -> str:
    """136_912_000 -> "137 M", 110_000 -> "0.11 M"."""
    return f"{count / 1e6:.{2 if count < 10**6 else 1 if count < 10**7 else 0}f} M"


def held_out(path: Path) -> list[dict[str, Any]]:
    """Question, expected answer, kind and picture of each held-out row."""
    from sightline.data.rows import load_conversations

    return [
        {
            "kind": row.extra["kind"],
            "question": row.without_answer().messages[-1].text.strip(),
            "expected": row.answer,
            "picture": str(row.images[0].source),
        }
        for row in load_conversations(path)
    ]


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with whether its answer is right."""
    from sightline.engine.offline.accuracy import normalise

    return {**row, "right": normalise(row["answer"]) == normalise(row["expected"])}


def shown(row: Mapping[str, Any]) -> str:
    """The answer of a result row on one line, with dots where it was cut off."""
    cut = "…" if row.get("finish_reason") == "length" else ""
    return printable(row.get("answer", "")) + cut


def printable(text: str) -> str:
    """`text` on one line, with a mark for each character that cannot be shown."""
    plain = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in plain)


def answer_lines(answers: Iterable[Mapping[str, Any]]) -> list[str]:
    return [
        f"            {answer['question']}  ->  {answer['answer']}  "
        + ("(right)" if answer["right"] else f"(wrong: {answer['expected']})")
        for answer in answers
    ]


def _model(result: Mapping[str, Any]) -> str:
    size = f"{millions(result['parameters'])} parameters"
    if result["pretrained"] is None:
        return f"{result['folder']}, {size}"
    return f"SmolLM2-135M inside a Qwen2.5-VL with a small pre-trained vision tower, {size}"


def _data(result: Mapping[str, Any]) -> str:
    train, held = result["train"], result["held_out"]
    return f"{train['rows']:,} training rows, {held['rows']:,} held-out questions, all checked"


def _accuracy(result: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{kind} {percent(share(result['by_kind'][kind]))}" for kind in KINDS)
    return f"{percent(result['accuracy'])} right ({kinds})"


def _train(result: Mapping[str, Any]) -> str:
    return (
        f"{result['steps']:,} steps, {result['steps'] * result['batch_size']:,} samples, "
        f"{result['samples_per_second']:.1f} samples/s, loss {result['final_loss']:.3f}"
    )


def _merge(result: Mapping[str, Any]) -> str:
    return f"{result['adapted']} tensors summed, {result['replaced']} replaced: {result['output']}"


def _serve(result: Mapping[str, Any]) -> str:
    return f"asked through the OpenAI SDK at {result['url']}"


def share(counts: Sequence[int]) -> float:
    """(right, count) as a share."""
    return counts[0] / counts[1] if counts[1] else 0.0


TEXTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "model": _model,
    "data": _data,
    "before": _accuracy,
    "train": _train,
    "merge": _merge,
    "after": _accuracy,
    "serve": _serve,
}
