"""Answer many questions into a results file that survives interruption, and count what it took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sightline.data.conversation import Conversation, Message, RowError, Text
from sightline.data.rows import to_row
from sightline.engine.job import Job
from sightline.engine.llm import LLM
from sightline.engine.questions import Question, request_of
from sightline.engine.results import ResultsFile, key_of, weights_mark
from sightline.engine.sampling import SamplingParams
from sightline.errors import SightlineError
from sightline.progress import Progress, note

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """What a run took. Tokens of all rows; seconds and rates of the rows that this run computed.

    Attributes:
        resumed: rows that an earlier run had written.
        time_to_first_token: median seconds from opening a question's media to its first token.
        output_tokens_per_second, questions_per_second: over the whole run, preprocessing included.
    """

    questions: int
    answered: int
    failed: int
    resumed: int
    prompt_tokens: int
    vision_tokens: int
    completion_tokens: int
    seconds: float
    time_to_first_token: float | None
    output_tokens_per_second: float
    questions_per_second: float


def infer(
    llm: LLM,
    questions: Sequence[Question],
    params: SamplingParams,
    output: str | Path | None = None,
    *,
    max_input_length: int | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> tuple[list[Row], Summary]:
    """Answer `questions` in order; give the result rows and their summary.

    Each row keeps the conversation with the answer appended, the dataset's own answer under `reference`, and
    token counts and timings; a question that cannot be answered becomes a row with `error`.

    Args:
        output: a jsonl file; each row is flushed to it. What an interrupted run of the same questions, model
            and settings left there is kept and continued.
        max_input_length: most tokens of a prompt; a longer one is an error row.
        on_row: called with each row, those of an earlier run first.

    Raises:
        SightlineError: `output` holds other results or cannot be written.
    """
    if any(isinstance(one, Conversation) and (one.images or one.videos) for one in questions):
        report_pixel_limit(llm)
    start = time.perf_counter()
    limit = max_input_length
    if output is None:
        rows: list[Row] = []
        _answer_all(llm, questions, params, rows.append, 0, limit, on_row)
        return rows, summarise(rows, 0, time.perf_counter() - start)
    settings = _settings(llm, params, limit)
    keys = [key_of(request_of(question), {"index": i, **settings}) for i, question in enumerate(questions)]
    file = ResultsFile(output, keys)
    done = len(file.rows)
    if done:
        _each(file.rows, on_row)
        note(f"{output} already holds {done} of {len(questions)} answers; going on behind them")
    with file:
        _answer_all(llm, questions, params, file.append, done, limit, on_row)
    return file.rows, summarise(file.rows, done, time.perf_counter() - start)


def _each(rows: Sequence[Row], on_row: Callable[[Row], None] | None) -> None:
    for row in rows:
        if on_row is not None:
            on_row(row)


def report_pixel_limit(llm: LLM) -> None:
    """Say which pixel limit is used when it is the one that the checkpoint records."""
    vision = llm.model.processor.vision
    if vision.max_pixels_source == "checkpoint":
        note(
            f"pictures are limited to {vision.max_pixels:,} pixels, as the checkpoint records; "
            "--max-pixels changes it"
        )


def _settings(llm: LLM, params: SamplingParams, limit: int | None) -> dict[str, Any]:
    model = llm.model
    return {
        "weights": weights_mark(model.folder, llm.adapter),
        "dtype": str(model.dtype),
        "vision": asdict(replace(model.processor.vision, max_pixels_source="")),
        "params": asdict(params),
        "lengths": [limit, llm.max_model_len],
        "seed": llm.seed,
    }


def _answer_all(
    llm: LLM,
    questions: Sequence[Question],
    params: SamplingParams,
    keep: Callable[[Row], None],
    done: int,
    limit: int | None,
    on_row: Callable[[Row], None] | None,
) -> None:
    with Progress("answering", total=len(questions)) as progress:
        progress.update(done)
        for start in range(done, len(questions), llm.max_num_seqs):
            indices = range(start, min(start + llm.max_num_seqs, len(questions)))
            for row in _answer(llm, questions, params, indices, limit):
                keep(row)
                if on_row is not None:
                    on_row(row)
                progress.advance()


def _answer(
    llm: LLM, questions: Sequence[Question], params: SamplingParams, indices: range, limit: int | None
) -> list[Row]:
    """The rows of one batch; a bad question does not touch its neighbours."""
    prepared = [_prepare(llm, questions[index], params, index, limit) for index in indices]
    llm.run([job for job in prepared if isinstance(job, Job)])
    return [_row(index, questions[index], job) for index, job in zip(indices, prepared, strict=True)]


def _prepare(
    llm: LLM, question: Question, params: SamplingParams, index: int, limit: int | None
) -> Job | SightlineError:
    try:
        if isinstance(question, RowError):
            raise question
        # A seed of its own for each place, so that a continued run draws what an uninterrupted one would.
        job = llm.prepare(question, params, number=index)
        length = job.requests[0].prompt_length
        if limit is not None and length > limit:
            raise SightlineError(f"the prompt has {length} tokens, above the input limit of {limit}")
        return job
    except SightlineError as error:
        return error


def _row(index: int, question: Question, job: Job | SightlineError) -> Row:
    if isinstance(job, SightlineError):
        origin = getattr(question, "origin", None)
        text = str(job) if origin is None or str(origin) in str(job) else f"{origin}: {job}"
        known = to_row(question) if isinstance(question, Conversation) else {}
        return {"index": index, **known, "error": text}
    assert isinstance(question, Conversation)
    found = job.output()
    answer = found.outputs[0]
    asked = question.without_answer().messages
    said = Conversation([*asked, Message("assistant", [Text(answer.text)])], extra=question.extra)
    row = {"index": index, **to_row(said), "answer": answer.text}
    if question.answer is not None:
        row["reference"] = question.answer
    if len(found.outputs) > 1:
        row["answers"] = [output.text for output in found.outputs]
    return row | {
        "prompt_tokens": len(found.prompt_token_ids),
        "vision_tokens": found.vision_tokens,
        "completion_tokens": found.completion_tokens,
        "finish_reason": answer.finish_reason,
        "time_to_first_token": round(found.metrics.time_to_first_token or 0.0, 4),
        "seconds": round(found.metrics.total, 4),
    }


def summarise(rows: Sequence[Row], resumed: int, seconds: float) -> Summary:
    """Count `rows`, of which the first `resumed` were there before; `seconds` is the time of the others."""
    good = [row for row in rows if "error" not in row]
    new = [row for row in rows[resumed:] if "error" not in row]
    counts = ("prompt_tokens", "vision_tokens", "completion_tokens")
    tokens = {name: sum(row[name] for row in good) for name in counts}
    return Summary(
        questions=len(rows),
        answered=len(good),
        failed=len(rows) - len(good),
        resumed=resumed,
        **tokens,
        seconds=seconds,
        time_to_first_token=statistics.median(row["time_to_first_token"] for row in new) if new else None,
        output_tokens_per_second=sum(row["completion_tokens"] for row in new) / seconds if new else 0.0,
        questions_per_second=len(new) / seconds if new else 0.0,
    )


def question_of(row: Row) -> str:
    """The last thing a result row asks, on one line, with the names of its media."""
    asked = next((message for message in reversed(row["messages"]) if message["role"] == "user"), None)
    content = asked["content"] if asked else ""
    if isinstance(content, list):
        content = " ".join(part.get("text", f"<{part['type']}>") for part in content)
    media = [_name(entry) for kind in ("images", "videos") for entry in row.get(kind, [])]
    text = " ".join(content.replace("<image>", " ").replace("<video>", " ").split())
    return f"[{', '.join(media)}] {text}" if media else text


def _name(entry: Any) -> str:
    entry = entry.get("path", "") if isinstance(entry, dict) else entry
    entry = f"{len(entry)} frames" if isinstance(entry, list) else str(entry)
    return "a picture" if entry.startswith("data:") else Path(entry).name
