"""Many prompts into a folder: the model is loaded once, and a second run goes on where the first one ended."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError
from sightline.files import only_user, replacing
from sightline.progress import note
from sightline.video.making import Maker, Order
from sightline.video.parallel.agree import as_said
from sightline.video.prompts import BadRow, Row
from sightline.video.seeds import seeds_of
from sightline.video.writing.record import Record
from sightline.video.writing.save import check_target, made, remove_leftovers

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.video.pipeline import OnStep

RESULTS = "results.jsonl"
_ENCODED_AHEAD = (
    32  # prompts: 4 MB of text each with Wan2.1, and the text encoder comes to the device once for all
)

# Stands around the making of each video: given the video, its number from 1, and how many are made.
OnVideo = Callable[["Item", int, int], "AbstractContextManager[OnStep | None]"]


@dataclass
class Item:
    """One video of a batch.

    Attributes:
        row: what it comes from.
        path: of the video.
        order: what is made, once it is known to be right.
        status: `waiting`, `skipped` (there already), `done` or `failed`.
        error: why it failed.
        record: of the video that is there.
    """

    row: Row
    path: Path
    order: Order | None = None
    status: str = "waiting"
    error: str = ""
    record: Record | None = None

    def line(self) -> dict[str, Any]:
        """As results.jsonl has it."""
        request = {} if self.order is None else self.order.request.to_json()
        said: dict[str, Any] = {
            "line": self.row.line,
            "file": self.path.name,
            "status": self.status,
            "prompt": self.row.prompt,
            "seed": request.get("seed"),
        }
        if self.record is not None:
            seconds = {part: round(value, 4) for part, value in self.record.seconds.items()}
            said |= {"seconds": seconds, "frames_sha256": self.record.frames_sha256}
        return said | ({"error": self.error} if self.error else {})


@dataclass
class Batch:
    """All videos of a file of prompts, and the lines that are none.

    Attributes:
        folder: where they go.
        bad: lines that cannot be read.
    """

    folder: Path
    items: list[Item]
    bad: list[BadRow] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Videos of a status; bad lines count as failed."""
        found = sum(item.status == status for item in self.items)
        return found + (len(self.bad) if status == "failed" else 0)

    @property
    def failures(self) -> list[str]:
        """`line 3: why`, in the file's order."""
        failed = [(bad.line, bad.reason) for bad in self.bad]
        failed += [(item.row.line, item.error) for item in self.items if item.status == "failed"]
        return [f"line {line}: {reason}" for line, reason in sorted(failed)]

    def write_results(self) -> None:
        """Write results.jsonl anew: a line a video, and one a bad line."""
        lines = [item.line() for item in self.items]
        lines += [{"line": bad.line, "status": "failed", "error": bad.reason} for bad in self.bad]
        with replacing(self.folder / RESULTS) as file:
            for line in sorted(lines, key=lambda line: line["line"]):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def run_batch(
    maker: Maker,
    rows: Sequence[Row],
    bad: Sequence[BadRow],
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    count: int = 1,
    on_video: OnVideo | None = None,
) -> Batch:
    """Make every video that is not there yet.

    A row that cannot be made is noted with its line, and the others go on. What an interrupted run finished is kept if
    it was made with the same settings.

    Args:
        settings: fields of `Request` for rows that do not set them. A seed of -1, here or in a row, draws one, or takes
            that of the videos that are there unless they are to be replaced.
        count: videos a row, with the seeds after the row's own.
        on_video: stands around each video that is made, and may give what is told of each of its steps.

    Raises:
        SightlineError: there is a video made with other settings, or nothing can be written.
    """
    with _held(folder, maker.writes):
        batch = Batch(folder, _items(maker, rows, folder, settings or {}, count), list(bad))
        for text in batch.failures:
            note(text)
        if maker.writes:
            _take_what_is_there(batch, maker)
        # Rank 0 sees the folder; all ranks make the same ones.
        statuses = as_said(maker.pipeline.layout, [item.status for item in batch.items])
        for item, status in zip(batch.items, statuses, strict=True):
            item.status = status
        _make_all(batch, maker, on_video)
        if maker.writes:
            batch.write_results()
    return batch


def _items(
    maker: Maker, rows: Sequence[Row], folder: Path, settings: Mapping[str, Any], count: int
) -> list[Item]:
    items: list[Item] = []
    taken: dict[str, int] = {}
    names = {row.line: [_copy_name(row, copy) for copy in range(count)] for row in rows}
    paths = {line: [folder / f"{name}.mp4" for name in own] for line, own in names.items()}
    # Rank 0 sees the folder, and draws for all.
    seeds = seeds_of(rows, paths, settings, afresh=maker.overwrite) if maker.writes else {}
    seeds = as_said(maker.pipeline.layout, seeds)
    for row in rows:
        for copy, name in enumerate(names[row.line]):
            item = Item(row, paths[row.line][copy])
            try:
                # Some file systems do not tell capitals apart, nor the ways to write an accent.
                first = taken.setdefault(unicodedata.normalize("NFC", name).casefold(), row.line)
                if first != row.line:
                    raise SightlineError(
                        f"name {name!r} is that of a video of line {first} too; give another"
                    )
                item.order = _order(maker, row, settings, copy, seeds.get(row.line))
            except SightlineError as error:
                item.status, item.error = "failed", str(error)
            items.append(item)
    return items


def _copy_name(row: Row, copy: int) -> str:
    # The first keeps the plain name, so that asking for more later keeps what is there.
    return row.name if copy == 0 else f"{row.name}-{copy + 1}"


def _order(maker: Maker, row: Row, settings: Mapping[str, Any], copy: int, drawn: int | None) -> Order:
    chosen = {**settings, **row.settings} | ({} if drawn is None else {"seed": drawn})
    order = maker.order(row.prompt, **chosen)
    if copy == 0:
        return order
    return maker.order_for(replace(order.request, seed=order.request.seed + copy))


def _take_what_is_there(batch: Batch, maker: Maker) -> None:
    """Mark what need not be made again; refuse to mix videos of different settings."""
    other = []
    for item in batch.items:
        if item.order is None:
            continue
        try:
            record = made(item.path, save_frames=maker.save_frames)
        except SightlineError:
            if not maker.overwrite:
                raise
            record = None
        if record is not None:
            order = item.order
            differences = record.differences(
                order.request, order.setting, maker.load, order.plan, maker.parts
            )
            if not differences:
                item.status, item.record = "skipped", record
                continue
            if not maker.overwrite:
                other.append(f"{item.path} was made with other settings: {'; '.join(differences)}")
        # A video that is not whole, or an order to replace it, stands in nobody's way.
        check_target(item.path, overwrite=True, save_frames=maker.save_frames, quality=maker.quality)
    if other:
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise SightlineError(f"{other[0]}{more}; choose another folder with -o, or give --overwrite")


def _make_all(batch: Batch, maker: Maker, on_video: OnVideo | None) -> None:
    # What is in the way is what is not whole, or may be replaced: that was checked.
    maker = replace(maker, overwrite=True)
    waiting = [item for item in batch.items if item.status == "waiting"]
    for number, (item, texts) in enumerate(_with_texts(waiting, maker), 1):
        with nullcontext() if on_video is None else on_video(item, number, len(waiting)) as on_step:
            _make(item, maker, texts, on_step)
        if maker.writes:
            batch.write_results()


def _make(item: Item, maker: Maker, texts: Mapping[str, Tensor] | None, on_step: OnStep | None) -> None:
    assert item.order is not None
    try:
        item.record = maker.make(item.order, item.path, texts=texts, on_step=on_step)
        item.status = "done"
    except SightlineError as error:
        # What cannot be written now cannot be written next; and a rank alone must not go on without the others.
        together = maker.pipeline.layout.world > 1
        if together or isinstance(error.__cause__, OSError):
            raise
        item.status, item.error = "failed", str(error)
        note(f"line {item.row.line}: {error}")


def _with_texts(items: Sequence[Item], maker: Maker) -> Iterator[tuple[Item, Mapping[str, Tensor] | None]]:
    """Each item, with its texts where the text encoder would otherwise come to the device for each of them."""
    if maker.pipeline.components.offload == "none":
        yield from ((item, None) for item in items)
        return
    for start in range(0, len(items), _ENCODED_AHEAD):
        chunk = items[start : start + _ENCODED_AHEAD]
        texts = [maker.pipeline.encode(item.order.request) for item in chunk if item.order is not None]
        yield from zip(chunk, texts, strict=True)


@contextmanager
def _held(folder: Path, writes: bool) -> Iterator[None]:
    """Keep the folder for this run, on the rank that writes, and free of what a killed one left."""
    if not writes:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SightlineError(f"cannot write {folder}: {error.strerror or error}") from error
    with only_user(
        folder, f"another process is making videos in {folder}; wait for it, or choose another folder"
    ):
        _check_results(folder / RESULTS)
        remove_leftovers(folder)
        for left in folder.glob(
            f".{RESULTS}.*"
        ):  # of a process killed while it wrote them; no other one does now
            left.unlink(missing_ok=True)
        yield


def _check_results(path: Path) -> None:
    """Refuse to replace a file of this name that no batch wrote."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline() or "{}")
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        first = None
    if not isinstance(first, dict) or (first and not {"line", "status"} <= set(first)):
        raise SightlineError(f"{path} is there and not of a batch of videos; choose another folder with -o")
