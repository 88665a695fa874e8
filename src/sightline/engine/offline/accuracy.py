"""How many answers are right: exact match with the dataset's own, in total and per kind of question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.engine.llm import LLM
from sightline.engine.offline.infer import infer
from sightline.engine.offline.questions import Question, from_dataset
from sightline.engine.sampling.params import SamplingParams
from sightline.errors import UsageError

UNKNOWN_KIND = "all"


@dataclass
class Accuracy:
    """Attributes:
    total: share of right answers, 0 to 1; a row that failed counts as wrong.
    by_kind: (right, count) for each value of the rows' `kind` column.
    rows: the result rows, each with `right`.
    """

    total: float
    by_kind: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def evaluate(
    model: LLM | str | Path,
    data: str | Path | Sequence[Question],
    *,
    max_samples: int | None = None,
    max_tokens: int = 16,
    output: str | Path | None = None,
    media_root: str | Path | None = None,
    **llm_options: Any,
) -> Accuracy:
    """Answer `data` greedily and compare with its answers; case, punctuation and spacing do not matter.

    Args:
        model: an engine, or a checkpoint folder for which one is made with `llm_options`.
        data: a jsonl file or conversations that end with an assistant's turn.
        output: a results file, resumable as in `infer`.

    Raises:
        UsageError: a row has no answer to compare with.
    """
    questions = from_dataset(data, media_root=media_root) if isinstance(data, (str, Path)) else list(data)
    questions = questions[:max_samples]
    for question in questions:
        if not isinstance(question, Exception) and question.answer is None:
            where = f"{question.origin}: the row" if question.origin else "a conversation"
            raise UsageError(f"{where} has no assistant turn to compare with")
    llm = model if isinstance(model, LLM) else LLM(model, **llm_options)
    rows, _ = infer(llm, questions, SamplingParams(temperature=0, max_tokens=max_tokens), output)
    return score(rows)


def score(rows: Sequence[dict[str, Any]]) -> Accuracy:
    """Compare `answer` with `reference` in result rows."""
    by_kind: dict[str, tuple[int, int]] = {}
    marked = []
    for row in rows:
        right = "error" not in row and normalise(row["answer"]) == normalise(row["reference"])
        kind = str(row.get("kind", UNKNOWN_KIND))
        known = by_kind.get(kind, (0, 0))
        by_kind[kind] = (known[0] + right, known[1] + 1)
        marked.append({**row, "right": right})
    total = sum(row["right"] for row in marked) / len(marked) if marked else 0.0
    return Accuracy(total, dict(sorted(by_kind.items())), marked)


def normalise(text: str) -> str:
    """Lower case, without punctuation, single spaces: "A Blue  circle." -> "a blue circle"."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]|_", " ", plain).split())
