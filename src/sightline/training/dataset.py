"""Training samples: rows checked and measured before the first step, decoded and encoded when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset

from sightline.data.check import CheckReport, check_file
from sightline.data.conversation import Conversation
from sightline.errors import SightlineError
from sightline.models.processor import Encoded, Processor, TokenCount
from sightline.models.prompt import IGNORED
from sightline.progress import note

_FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Sample:
    conversation: Conversation
    tokens: TokenCount


class SampleDataset(Dataset[Encoded]):
    """Encodes samples one by one; loader processes may hold copies of it."""

    def __init__(self, samples: Sequence[Sample], processor: Processor) -> None:
        self.samples = samples
        self.processor = processor

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded:
        conversation = self.samples[index].conversation
        try:
            return self.processor.encode(conversation, supervise=True)
        except SightlineError as error:
            # The check before the run reads headers only; this file is broken behind its header, or new.
            place = f"{conversation.origin}: " if conversation.origin else ""
            raise SightlineError(place + str(error).removeprefix(place)) from error

    @property
    def lengths(self) -> list[int]:
        return [sample.tokens.total for sample in self.samples]


def read_samples(
    path: Path,
    processor: Processor,
    *,
    media_root: Path | None = None,
    max_samples: int | None = None,
    max_length: int | None = None,
    on_bad_row: str = "stop",
) -> list[Sample]:
    """Read, check and measure the rows of a file; media are known by their headers alone.

    Raises:
        SightlineError: a row is faulty and `on_bad_row` is "stop" (the report names file, line and cause of each),
            or no good row is left.
    """
    report = check_file(
        path,
        counter=processor.count,
        media_root=media_root,
        max_samples=max_samples,
        max_length=max_length,
    )
    if report.faults:
        _list_faults(report, "faulty rows" if on_bad_row == "stop" else "left out as faulty")
        if on_bad_row == "stop":
            raise SightlineError(
                f"{path}: {report.faulty_rows} of {report.rows} rows are faulty, first {report.faults[0]}; mend "
                "them, or set on_bad_row: skip to train without them"
            )
    if not report.good:
        raise SightlineError(f"{path} holds no row to learn from")
    counted = zip(report.good, report.tokens, report.vision_tokens, strict=True)
    return [Sample(conversation, TokenCount(total, vision)) for conversation, total, vision in counted]


def _list_faults(report: CheckReport, title: str) -> None:
    shown = report.faults[:_FAULTS_SHOWN]
    more = len(report.faults) - len(shown)
    lines = [f"{report.file}: {report.faulty_rows} of {report.rows} rows: {title}", *map(str, shown)]
    note("\n  ".join(lines + [f"... and {more} more; see sightline data check"] * bool(more)))


def split(samples: list[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(training, validation): `share` of the samples, at least one, drawn by `seed`, are held out."""
    if not share:
        return samples, []
    if len(samples) < 2:
        raise SightlineError("validation_split needs at least two samples")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    held = min(max(1, round(len(samples) * share)), len(samples) - 1)
    out = set(order[:held])
    training = [sample for index, sample in enumerate(samples) if index not in out]
    return training, [samples[index] for index in sorted(out)]


def collate(batch: list[Encoded]) -> dict[str, torch.Tensor]:
    """Pad sequences on the right and join their media.

    Padding stands behind every real token, so a causal mask alone keeps it from being seen: no padding mask is
    needed and attention takes its fast path. `shift_labels[b, t]` is what position t must predict.

    Returns:
        input_ids, shift_labels, labels int64 [B, T]; position_ids int64 [3, B, T]; kinds int64 [B, T], -1 on
        padding; and the media tensors of the batch, where there are any.
    """
    width = max(len(item.input_ids) for item in batch)

    def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.stack(
            [torch.nn.functional.pad(row, (0, width - row.shape[-1]), value=value) for row in rows]
        )

    targets = [torch.cat([item.labels[1:], item.labels.new_full((1,), IGNORED)]) for item in batch]
    result = {
        "input_ids": padded([item.input_ids for item in batch], 0),
        "shift_labels": padded(targets, IGNORED),
        "position_ids": padded([item.position_ids for item in batch], 0).transpose(0, 1),
        "kinds": padded([item.kinds for item in batch], -1),
    }
    result["labels"] = result["shift_labels"]
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        parts = [getattr(item, name) for item in batch if getattr(item, name) is not None]
        if parts:
            result[name] = torch.cat(parts)
    return result
