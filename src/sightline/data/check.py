"""Every faulty row of a data set, with its place and cause, and how long the samples are.

Sizes come from headers and cut-off files from their structure, so checking is quick; with `decode` every
medium is decoded as well.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sightline.data.conversation import Conversation, Origin, RowError
from sightline.data.looks import Looks, media_of
from sightline.data.media import DEFAULT, Budget
from sightline.data.rows import parse_row, read_rows, row_count
from sightline.errors import SightlineError
from sightline.progress import track

# What may be wrong with a row, and how the summary says it.
KINDS = {
    "row": "not a row of messages",
    "tag-count": "tags and media differ in number",
    "path-in-text": "media path inside the text",
    "missing": "missing medium",
    "unreadable": "unreadable medium",
    "truncated": "truncated or damaged medium",
    "unsupported": "unsupported format",
    "too-large": "medium over the limits",
    "aspect-ratio": "aspect ratio the model refuses",
    "no-assistant": "no assistant turn",
    "empty-answer": "empty answer",
    "end-marker": "end marker in the text",
    "too-long": "sample too long",
    "model": "refused by the model",
}
# Turned into special tokens by tokenizers of the Qwen family and others, so text may not hold them.
END_MARKERS = ("</s>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>")
VISION_MARKERS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_CHUNK = 256  # rows whose media are looked at together
_THREADS = 4


class TokenCount(Protocol):
    """Tokens of a conversation: `total`, and `vision` of them for images and videos."""

    @property
    def total(self) -> int: ...
    @property
    def vision(self) -> int: ...


Counter = Callable[[Conversation], TokenCount]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a row; a row may have several."""

    origin: Origin
    kind: str
    cause: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.cause}"


@dataclass
class CheckReport:
    """`rows` were read, `good` are the conversations without fault.

    With a counter, `tokens` and `vision_tokens` belong to `good`, one each; `lengths` and `vision_lengths` are
    those of all rows that could be counted, also of the ones that are too long.
    """

    file: str
    rows: int = 0
    faults: list[Fault] = field(default_factory=list)
    good: list[Conversation] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    vision_tokens: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    vision_lengths: list[int] = field(default_factory=list)

    @property
    def faulty_rows(self) -> int:
        return len({(fault.origin.file, fault.origin.line) for fault in self.faults})

    @property
    def by_kind(self) -> dict[str, int]:
        """Faults of each kind, most frequent first."""
        return dict(Tally(fault.kind for fault in self.faults).most_common())


def check_file(
    path: str | Path,
    *,
    counter: Counter | None = None,
    max_length: int | None = None,
    media_root: str | Path | None = None,
    max_samples: int | None = None,
    end_markers: Sequence[str] = END_MARKERS,
    decode: bool = False,
    budget: Budget = DEFAULT,
    keep_good: bool = True,
) -> CheckReport:
    """Check every row of a jsonl or json file.

    Args:
        counter: counts a conversation's tokens, media included; without it lengths are not checked.
        max_length: most tokens a sample may have.
        end_markers: texts that may not stand in a message.
        decode: decode every medium, not only those whose structure looks cut off.
        keep_good: hold the good conversations in the report; without it huge files take no memory.

    Raises:
        SightlineError: the file is missing or not JSON at all.
    """
    path = Path(path)
    report = CheckReport(str(path))
    root = Path(media_root) if media_root is not None else None
    looks = Looks(budget, decode)
    total = row_count(path, max_samples=max_samples)
    rows = track(read_rows(path, max_samples=max_samples), f"checking {path.name}", total)
    with _pool() as pool:
        for chunk in _chunks(rows, _CHUNK):
            parsed = [_parsed(origin, row, path.parent, root, report) for origin, row in chunk]
            conversations = [conversation for conversation in parsed if conversation is not None]
            looks.look(pool, conversations)
            for conversation in conversations:
                faults = conversation_faults(conversation, looks, end_markers)
                _finish(conversation, faults, counter, max_length, report)
            if not keep_good:
                report.good.clear()
    report.faults.sort(key=lambda fault: fault.origin.line)
    return report


def check_conversation(
    conversation: Conversation,
    *,
    counter: Counter | None = None,
    max_length: int | None = None,
    end_markers: Sequence[str] = END_MARKERS,
    decode: bool = False,
    budget: Budget = DEFAULT,
) -> list[Fault]:
    """The faults of one conversation; arguments as `check_file`."""
    report = CheckReport("")
    faults = conversation_faults(conversation, Looks(budget, decode), end_markers)
    _finish(conversation, faults, counter, max_length, report)
    return report.faults


def conversation_faults(
    conversation: Conversation, looks: Looks, end_markers: Sequence[str] = END_MARKERS
) -> list[Fault]:
    """What is wrong with the turns, the texts and the media, but for the length."""
    causes = [*_turn_causes(conversation), *_marker_causes(conversation, end_markers)]
    for medium in media_of(conversation):
        found = looks.of(medium)
        if found is not None and found not in causes:
            causes.append(found)
    origin = conversation.origin or Origin("row", 0)
    return [Fault(origin, kind, cause) for kind, cause in causes]


def _parsed(
    origin: Origin, row: Any, folder: Path, root: Path | None, report: CheckReport
) -> Conversation | None:
    report.rows += 1
    try:
        if isinstance(row, RowError):
            raise row
        return parse_row(row, origin=origin, folder=folder, media_root=root)
    except RowError as error:
        report.faults.append(Fault(origin, error.kind, error.cause))
        return None


def _finish(
    conversation: Conversation,
    faults: list[Fault],
    counter: Counter | None,
    max_length: int | None,
    report: CheckReport,
) -> None:
    """Count tokens where the media allow it, and put the conversation among the good or the faulty."""
    count = None
    # Fewer tokens cannot be known of a medium that cannot be read.
    if counter is not None and all(fault.kind in ("no-assistant", "empty-answer") for fault in faults):
        origin = conversation.origin or Origin("row", 0)
        try:
            count = counter(conversation)
            if max_length is not None and count.total > max_length:
                cause = (
                    f"the sample has {count.total:,} tokens ({count.vision:,} of images and videos), "
                    f"more than {max_length:,}; lower max_pixels, shorten it or raise --max-length"
                )
                faults.append(Fault(origin, "too-long", cause))
        except SightlineError as error:
            faults.append(Fault(origin, getattr(error, "kind", "model"), str(error)))
    report.faults += faults
    if not faults:
        report.good.append(conversation)
        if count is not None:
            report.tokens.append(count.total)
            report.vision_tokens.append(count.vision)
    if count is not None:
        report.lengths.append(count.total)
        report.vision_lengths.append(count.vision)


def _turn_causes(conversation: Conversation) -> Iterator[tuple[str, str]]:
    answers = [
        (number, message)
        for number, message in enumerate(conversation.messages, 1)
        if message.role == "assistant"
    ]
    if not answers:
        yield "no-assistant", "no message is the assistant's, so there is nothing to learn; add the answer"
    for number, message in answers:
        if not message.text.strip():
            yield (
                "empty-answer",
                f"message {number}, the assistant's, is empty; write the answer or drop it",
            )


def _marker_causes(conversation: Conversation, markers: Iterable[str]) -> Iterator[tuple[str, str]]:
    for number, message in enumerate(conversation.messages, 1):
        for marker in dict.fromkeys((*markers, *VISION_MARKERS)):
            if marker in message.text:
                yield (
                    "end-marker",
                    f"message {number} holds the literal marker {marker}; "
                    "remove it, the chat template writes its own",
                )


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that an interrupt stops at once: files that nobody has begun to look at are left."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
