"""Runs on disk: a video with its JSON beside it, a folder of PNG frames, or a folder of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UsageError, first_line
from sightline.files import read_object
from sightline.video.sheets.comparison import Shown
from sightline.video.writing.formats import SUFFIXES
from sightline.video.writing.record import SCHEMA
from sightline.video.writing.save import frames_folder, record_path

if TYPE_CHECKING:
    import numpy as np

_VIDEOS = tuple(suffix for suffix in SUFFIXES if suffix != ".png")
_FRAMES = ".frames"
_BT709 = 1  # of FFmpeg's list of matrices
CODEC_NOISE = "frames were decoded from an encoded video, so the codec's noise is in the figures"


@dataclass(frozen=True)
class Run:
    """One run's files.

    Attributes:
        name: what it is called in tables.
        stem: its name among others, by which runs of two folders are paired.
        video: the encoded file; None where there are only pictures.
        pictures: the folder of PNG frames, which are taken before the video; None where there is none.
        record: the JSON beside it as it is; empty where there is none.
        note: what is wrong with the JSON; empty where nothing is.
    """

    name: str
    stem: str
    video: Path | None
    pictures: Path | None
    record: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def seconds(self) -> dict[str, float]:
        """By part, as far as the record tells them."""
        told = self.record.get("seconds")
        if not isinstance(told, Mapping):
            return {}
        return {str(part): float(value) for part, value in told.items() if type(value) in (int, float)}

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with, each thing once; a plan by its name and what it computes."""
        request, setting = (_mapping(self.record.get(name)) for name in ("request", "setting"))
        told = {**request, **{name: value for name, value in setting.items() if name not in request}}
        plan = self.record.get("plan")
        told["plan"] = _plan_in_words(plan) if isinstance(plan, Mapping) else "none"
        for name in ("load", "parallel"):
            told |= {f"{name}.{key}": value for key, value in _mapping(self.record.get(name)).items()}
        return told if self.record else {}

    @property
    def title(self) -> str:
        """The prompt, where the record has it."""
        prompt = _mapping(self.record.get("request")).get("prompt")
        return prompt if isinstance(prompt, str) else ""

    @property
    def fps(self) -> int:
        """Frames a second; 16, as Wan has it, where the record does not tell."""
        told = _mapping(self.record.get("request")).get("fps")
        return told if type(told) is int and told > 0 else 16

    def shown(self) -> Shown:
        """Read its frames.

        Raises:
            SightlineError: a file cannot be read, or frames differ in size.
        """
        import torch

        note = self.note
        if self.pictures is not None:
            frames = _read_pictures(self.pictures)
        else:
            assert self.video is not None
            frames = _decoded(self.video)
            note = "; ".join(filter(None, (note, CODEC_NOISE)))
        values = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        return Shown(self.name, values, self.seconds.get("denoise"), self.settings, note)


@dataclass(frozen=True)
class Paired:
    """Two runs, or those of two batches that have the same name.

    Attributes:
        pairs: (reference, other).
        only: names of the first and of the second that have no partner.
    """

    pairs: tuple[tuple[Run, Run], ...]
    only: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def pair(first: str | Path, second: str | Path) -> Paired:
    """Find what is to be compared.

    Raises:
        SightlineError: nothing is there, or it is no run.
        UsageError: one is a batch and the other not, or no names are the same.
    """
    paths = Path(first), Path(second)
    batches = [_batch(path) for path in paths]
    if batches[0] is None and batches[1] is None:
        one, other = (_run(path) for path in paths)
        if one.name == other.name:
            one, other = (_named(run, str(path)) for run, path in zip((one, other), paths, strict=True))
        return Paired(((one, other),))
    for here, (batch, path) in enumerate(zip(batches, paths, strict=True)):
        if batch is None:
            raise UsageError(
                f"{paths[1 - here]} is a folder of videos and {path} one run; compare two runs or two folders"
            )
    mine, theirs = batches
    assert mine is not None
    assert theirs is not None
    both = [name for name in mine if name in theirs]
    if not both:
        raise UsageError(
            f"no video in {paths[0]} has the name of one in {paths[1]}; runs of two folders are paired by name"
        )
    # Of two folders, runs of the same name are told apart by where they are.
    places = (
        [path.name for path in paths] if paths[0].name != paths[1].name else [str(path) for path in paths]
    )
    return Paired(
        tuple((_named(mine[name], places[0]), _named(theirs[name], places[1])) for name in both),
        (
            tuple(name for name in mine if name not in theirs),
            tuple(name for name in theirs if name not in mine),
        ),
    )


def _batch(path: Path) -> dict[str, Run] | None:
    """The runs in a folder by name, or None where the path is one run itself.

    Raises:
        SightlineError: nothing is there, or a folder without videos and frames.
    """
    if not path.exists():
        raise SightlineError(
            f"{path} does not exist; give a video, a folder of PNG frames or a folder of videos"
        )
    if not path.is_dir():
        return None
    inside = sorted(path.iterdir())
    if any(one.suffix.lower() == ".png" for one in inside):
        return None
    found: dict[str, Run] = {}
    for one in inside:
        if one.name.startswith("."):
            continue
        if (one.suffix.lower() in _VIDEOS and one.is_file()) or (one.suffix == _FRAMES and one.is_dir()):
            found.setdefault(one.stem, _run(one))
    if not found:
        raise SightlineError(
            f"{path} holds neither videos nor PNG frames; give a video or a folder of either"
        )
    return found


def _run(path: Path) -> Run:
    """The run that a video, its JSON, or a folder of frames belongs to."""
    if path.is_dir():
        beside = record_path(path) if path.suffix == _FRAMES else path / "record.json"
        record, note = _record(beside)
        name = path.stem if path.suffix == _FRAMES else path.name
        return Run(name, name, None, path, record, note)
    if path.suffix.lower() == ".json":
        record, note = _record(path)
        named = record.get("file")
        if not isinstance(named, str) or not named:
            raise SightlineError(f"{path} names no video; give the video itself")
        path = path.parent / named
        if not path.is_file():
            raise SightlineError(f"{path} does not exist, which its JSON names; give a video that is there")
    if path.suffix.lower() not in _VIDEOS:
        raise SightlineError(
            f"{path} is no video; give one ({', '.join(_VIDEOS)}), a folder of PNG frames or a folder of videos"
        )
    record, note = _record(record_path(path))
    pictures = frames_folder(path)
    whole = pictures.is_dir() and any(pictures.glob("*.png"))
    return Run(path.stem, path.stem, path, pictures if whole else None, record, note)


def _record(path: Path) -> tuple[dict[str, Any], str]:
    """What a JSON says, and why it is not used where it is not: a comparison needs none."""
    if not path.is_file():
        return {}, ""
    try:
        record = read_object(path)
    except SightlineError as error:
        return {}, f"its settings and seconds are not known: {error}"
    if record.get("schema") != SCHEMA:
        return {}, f"its settings and seconds are not known: {path} is no record of a video"
    return record, ""


def _named(run: Run, name: str) -> Run:
    return replace(run, name=name)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _plan_in_words(plan: Mapping[str, Any]) -> str:
    """Its name, and how much of each site is computed."""
    parts = []
    for branch, sites in _mapping(plan.get("actions")).items():
        for site, row in _mapping(sites).items():
            if isinstance(row, str) and row:
                parts.append(f"{branch} {site} {row.count('C')} of {len(row)}")
    name = plan.get("name") or "without a name"
    return f"{name} ({', '.join(parts)})" if parts else f"{name}"


def _read_pictures(folder: Path) -> np.ndarray:
    """All PNG files of a folder by name, [F, H, W, 3] in uint8."""
    import numpy as np
    from PIL import Image

    files = sorted(one for one in folder.iterdir() if one.suffix.lower() == ".png")
    if not files:
        raise SightlineError(f"{folder} holds no PNG frames")
    frames = []
    for file in files:
        try:
            with Image.open(file) as picture:
                frames.append(np.asarray(picture.convert("RGB")))
        except (OSError, SyntaxError, ValueError) as error:
            raise SightlineError(f"cannot read {file}: {first_line(error)}") from error
        if frames[-1].shape != frames[0].shape:
            sizes = [f"{one.shape[1]}x{one.shape[0]}" for one in (frames[0], frames[-1])]
            raise SightlineError(
                f"{file} is {sizes[1]} and {files[0].name} {sizes[0]}; frames must have one size"
            )
    return np.stack(frames)


def _decoded(path: Path) -> np.ndarray:
    """All frames of an encoded file, [F, H, W, 3] in uint8, by the colours that it says it has."""
    import av
    import numpy as np

    frames = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                space = av.video.reformatter.Colorspace
                matrix = space.ITU709 if int(frame.colorspace) == _BT709 else space.DEFAULT
                frames.append(frame.to_ndarray(format="rgb24", src_colorspace=matrix))
    except av.FFmpegError as error:
        # Its own words name FFmpeg's functions and number its errors.
        reason = (error.strerror or "it cannot be decoded").lower()
        raise SightlineError(
            f"cannot read {path} as a video: {reason}; it is damaged or of another format, so make it again"
        ) from error
    except IndexError as error:
        raise SightlineError(f"cannot read {path} as a video: it has no pictures; give another") from error
    except (OSError, ValueError) as error:
        raise SightlineError(f"cannot read {path} as a video: {first_line(error)}") from error
    if not frames:
        raise SightlineError(f"{path} holds no frames; it is damaged or empty, so make it again")
    return np.stack(frames)
