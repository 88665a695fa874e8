"""A checkpoint of MindSpeed-MM on disk: one file of torch.save for each tensor- and pipeline-parallel rank."""

from __future__ import annotations

import re
from pathlib import Path

from sightline.checkpoints.entry import Entry
from sightline.checkpoints.megatron.layout import Place, Rank
from sightline.checkpoints.opened import OpenFiles
from sightline.checkpoints.torch_file import read_torch_file
from sightline.errors import SightlineError

LATEST = "latest_checkpointed_iteration.txt"
FILE = "model_optim_rng.pt"
EXTRA = {"checkpoint_version": 3.0}

_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?")


class MegatronFiles:
    """The tensors of a checkpoint. Opening it reads no weights.

    Attributes:
        entries: by place; what is not a weight (optimizer, arguments, `_extra_state`) is left out.
        tensor_ranks, pipeline_ranks, chunks: as the files show them.

    Raises:
        SightlineError: no such checkpoint, or a rank is missing or unreadable.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = _iteration(Path(folder))
        self.entries: dict[Place, Entry] = {}
        self.files = _rank_files(self.folder)
        self._open = OpenFiles()
        chunks = 1
        for rank, file in self.files.items():
            places, rest = read_torch_file(file)
            found = [chunk for keys in [*places, *rest] if keys and (chunk := _chunk(keys[0])) is not None]
            if not found:
                raise SightlineError(f'{file} has no "model", so it is not a checkpoint of MindSpeed-MM')
            chunks = max(chunks, max(found) + 1)  # those without a layer count too
            for keys, entry in places.items():
                chunk = _chunk(keys[0])
                if chunk is None or len(keys) < 2 or keys[-1].endswith("_extra_state"):
                    continue
                self.entries[Place(rank, chunk, ".".join(keys[1:]))] = entry
        self.chunks = chunks
        self.tensor_ranks = max(rank.tensor for rank in self.files) + 1
        self.pipeline_ranks = max(rank.pipeline for rank in self.files) + 1
        missing = [
            file_name(Rank(tensor, pipeline), self.pipeline_ranks)
            for pipeline in range(self.pipeline_ranks)
            for tensor in range(self.tensor_ranks)
            if Rank(tensor, pipeline) not in self.files
        ]
        if missing:
            raise SightlineError(f"{self.folder} lacks {', '.join(missing)}; copy the files of every rank")

    def descriptor(self, entry: Entry) -> int:
        """An open file of this checkpoint."""
        return self._open.descriptor(entry.file)


def file_name(rank: Rank, pipeline_ranks: int) -> str:
    """Where a rank's weights stand in the folder of an iteration."""
    suffix = f"_{rank.pipeline:03d}" if pipeline_ranks > 1 else ""
    return f"mp_rank_{rank.tensor:02d}{suffix}/{FILE}"


def keys_of(place: Place, chunks: int) -> tuple[str, str]:
    """The keys that lead to a tensor in its file."""
    return f"model{place.chunk}" if chunks > 1 else "model", place.name


def _iteration(folder: Path) -> Path:
    """The folder of the iteration that `folder` or its note names."""
    if not folder.is_dir():
        raise SightlineError(f"{folder} is not a folder; give the one that holds {LATEST}")
    if (folder / LATEST).is_file():
        text = (folder / LATEST).read_text(encoding="utf-8").strip()
        name = f"iter_{int(text):07d}" if text.isdecimal() else text
        if not (folder / name).is_dir():
            raise SightlineError(f"{folder / LATEST} names {text}, but there is no folder {name} beside it")
        return folder / name
    if (folder / "release").is_dir():
        return folder / "release"
    return folder


def _rank_files(folder: Path) -> dict[Rank, Path]:
    files: dict[Rank, Path] = {}
    for path in sorted(folder.glob("mp_rank_*")):
        match = _RANK.fullmatch(path.name)
        if match is None:
            raise SightlineError(
                f"{path} is the rank of an expert-parallel checkpoint or no rank; the models known here have no "
                "experts"
            )
        if not (path / FILE).is_file():
            raise SightlineError(f"{path} has no {FILE}")
        files[Rank(int(match[1]), int(match[2] or 0))] = path / FILE
    if not files:
        raise SightlineError(
            f"{folder} has no mp_rank_* folders; give a checkpoint of MindSpeed-MM (the folder with {LATEST})"
        )
    return files


def _chunk(key: str) -> int | None:
    """The model chunk that a top key names, None for other keys."""
    match = re.fullmatch(r"model(\d*)", key)
    return None if match is None else int(match[1] or 0)
