"""Answer many questions into a results file that survives interruption, and count what it took."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from sightline.data.conversation import Conversation, Message, RowError, Text
from sightline.data.rows import to_row
from sightline.engine.llm import LLM
from sightline.engine.offline.questions import Question, request_of
from sightline.engine.offline.results import ResultsFile, key_of, weights_mark
from sightline.engine.outputs import RequestOutput
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.stream import Stream
from sightline.errors import SightlineError
from sightline.progress import Progress, note

Row = dict[str, Any]

# Questions given to the engine of which no row is written, as a multiple of the engine's own window. Rows are
# written in order, so that a long answer holds back those behind it; this bounds what an interruption loses.
_HELD_BACK = 2


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
    """Answer `questions`; give the result rows, in the questions' order, and their summary.

    Each row keeps the conversation with the answer appended, the dataset's own answer under `reference`, and
    token counts and timings; a question that cannot be answered becomes a row with `error`.

    Args:
        output: a jsonl file; each row is on disk as soon as it and those before it are answered. What an
            interrupted run of the same questions, model and settings left there is kept and continued.
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
        "quantization": llm.settings.quantization,
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
    """Keep the engine busy, and hand rows on in the order of their questions."""
    given: deque[tuple[int, Stream | SightlineError]] = deque()
    ended: SimpleQueue[Stream] = SimpleQueue()
    running = 0

    def settle() -> None:
        """Write the rows whose turn it is."""
        while given and (isinstance(given[0][1], SightlineError) or given[0][1].ended):
            index, asked = given.popleft()
            row = _row(index, questions[index], _outcome(asked))
            keep(row)
            if on_row is not None:
                on_row(row)
            progress.advance()

    try:
        with Progress("answering", total=len(questions)) as progress:
            progress.update(done)
            for index in range(done, len(questions)):
                settle()
                while running >= llm.window or len(given) >= _HELD_BACK * llm.window:
                    ended.get()
                    running -= 1
                    settle()
                asked = _ask(llm, questions[index], params, index, limit, ended.put)
                running += isinstance(asked, Stream)
                given.append((index, asked))
            settle()
            while given:
                ended.get()
                settle()
    finally:
        for _, asked in given:
            if isinstance(asked, Stream):
                asked.abort()


def _ask(
    llm: LLM,
    question: Question,
    params: SamplingParams,
    index: int,
    limit: int | None,
    on_end: Callable[[Stream], None],
) -> Stream | SightlineError:
    try:
        if isinstance(question, RowError):
            raise question
        # A seed of its own for each place, so that a continued run draws what an uninterrupted one would.
        return llm.engine.add(
            question, params, number=index, max_prompt_tokens=limit, deltas=False, on_end=on_end
        )
    except SightlineError as error:
        return error


def _outcome(asked: Stream | SightlineError) -> RequestOutput | SightlineError:
    """The output of a question that was given to the engine, or why there is none."""
    if isinstance(asked, SightlineError):
        return asked
    try:
        output = asked.result()
    except SightlineError as error:
        return error
    return output if output.error is None else SightlineError(output.error)


def _row(index: int, question: Question, found: RequestOutput | SightlineError) -> Row:
    if isinstance(found, SightlineError):
        origin = getattr(question, "origin", None)
        text = str(found) if origin is None or str(origin) in str(found) else f"{origin}: {found}"
        known = to_row(question) if isinstance(question, Conversation) else {}
        return {"index": index, **known, "error": text}
    assert isinstance(question, Conversation)
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
