"""The demo's data: easy-vqa as rows with a `kind`, a balanced sample to train on, held-out questions to measure."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sightline.data.check import check_file
from sightline.data.conversation import Conversation
from sightline.data.formats import convert
from sightline.data.rows import read_rows, write_rows
from sightline.demo.fetch import file_sha256
from sightline.demo.settings import KINDS, TRAINING_SHARES, Settings
from sightline.errors import SightlineError, UsageError
from sightline.files import replacing_folder

Row = dict[str, Any]

TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"
_KIND_OF = {answer: kind for kind, answers in KINDS.items() for answer in answers}


def prepare(folder: Path, settings: Settings, counter: Callable[[Conversation], Any]) -> dict[str, Any]:
    """Write train.jsonl and held-out.jsonl into the new `folder`.

    Held-out questions come from the test split, in the data set's own mixture of kinds; training rows from the
    training split, in the mixture `TRAINING_SHARES`, without any picture that a held-out question shows.

    Args:
        counter: counts a conversation's tokens, for the check.

    Returns:
        Counts, for the report.

    Raises:
        SightlineError: easy-vqa is not installed or not what it was, or a row is faulty.
    """
    rng = random.Random(settings.seed)
    with replacing_folder(folder) as place:
        held = _proportional(_converted("test", place), settings.questions, rng)
        rows = _balanced(_converted("train", place), settings.rows, rng)
        shown, trained = set(_pictures(held, place)), _pictures(rows, place)
        twins = shown & set(trained)
        rows = [row for row, picture in zip(rows, trained, strict=True) if picture not in twins]
        write_rows(place / HELD_OUT, held)
        write_rows(place / TRAIN, rows)
        tokens = [_check(place / name, counter) for name in (TRAIN, HELD_OUT)]
    return {
        "train": _counts(rows),
        "held_out": _counts(held),
        "train_pictures": len(set(trained) - twins),
        "held_out_pictures": len(shown),
        "pictures_left_out": len(twins),
        "mean_tokens": round(sum(map(sum, tokens)) / sum(map(len, tokens)), 1),
    }


def kind_of(answer: str) -> str:
    """yes/no, shape or color.

    Raises:
        SightlineError: easy-vqa has no such answer.
    """
    if answer not in _KIND_OF:
        raise SightlineError(f"easy-vqa has the unknown answer {answer!r}; the demo knows version 1.0")
    return _KIND_OF[answer]


def _converted(split: str, folder: Path) -> dict[str, list[Row]]:
    """The rows of a split by kind, through the same converter that a user's own data goes through."""
    path = folder / f"easy-vqa-{split}.jsonl"
    report = convert(f"easy-vqa:{split}", path)
    if report.bad or report.missing:
        raise SightlineError(
            f"easy-vqa is damaged ({len(report.bad)} faulty rows, {report.missing} missing pictures); "
            "install it again: pip install --force-reinstall easy-vqa"
        )
    found: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for _, row in read_rows(path):
        kind = kind_of(row["messages"][-1]["content"])
        found[kind].append({**row, "kind": kind})
    path.unlink()
    return found


def _proportional(rows: dict[str, list[Row]], count: int, rng: random.Random) -> list[Row]:
    """A sample in the mixture of `rows`: as many of each kind as its share says, largest remainders first."""
    total = sum(map(len, rows.values()))
    if count > total:
        raise UsageError(f"--questions {count} is more than the {total} of easy-vqa's test split")
    shares = {kind: count * len(rows[kind]) / total for kind in rows}
    wanted = {kind: int(share) for kind, share in shares.items()}
    for kind in sorted(rows, key=lambda kind: wanted[kind] - shares[kind])[: count - sum(wanted.values())]:
        wanted[kind] += 1
    return _drawn(rows, wanted, rng)


def _balanced(rows: dict[str, list[Row]], count: int, rng: random.Random) -> list[Row]:
    """A sample in the mixture `TRAINING_SHARES`, smaller than `count` where the rows do not suffice."""
    whole = sum(TRAINING_SHARES.values())
    count = min(count, *(int(len(rows[kind]) * whole / share) for kind, share in TRAINING_SHARES.items()))
    return _drawn(rows, {kind: int(count * share / whole) for kind, share in TRAINING_SHARES.items()}, rng)


def _drawn(rows: dict[str, list[Row]], wanted: dict[str, int], rng: random.Random) -> list[Row]:
    chosen = [row for kind in KINDS for row in rng.sample(rows[kind], wanted[kind])]
    rng.shuffle(chosen)
    return chosen


def _pictures(rows: list[Row], folder: Path) -> list[str]:
    """What the picture of each row is, byte by byte: its sha256."""
    paths = [str(row["images"][0]) for row in rows]  # from `folder`, as the converter writes them
    sums = {path: file_sha256(folder / path) for path in set(paths)}
    return [sums[path] for path in paths]


def _check(path: Path, counter: Callable[[Conversation], Any]) -> list[int]:
    """Token counts of a file without fault."""
    report = check_file(path, counter=counter)
    if report.faults:
        raise SightlineError(f"{len(report.faults)} faults in the demo's data, first {report.faults[0]}")
    return report.tokens


def _counts(rows: Iterable[Row]) -> dict[str, int]:
    found = Counter(row["kind"] for row in rows)
    return {"rows": sum(found.values()), **{kind: found[kind] for kind in KINDS}}


def read_json_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file that a step has finished."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
