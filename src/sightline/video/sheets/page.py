"""Runs side by side as one HTML page that needs nothing else: it plays them in step and tells the figures."""

from __future__ import annotations

import base64
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UsageError
from sightline.files import replacing
from sightline.video.sheets.comparison import Comparison, Line, difference

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.video.fidelity import Fidelity

_WIDEST = 416  # pixels; larger frames are shown smaller
_LOSSLESS = (
    128  # pixels; wider frames are shown as JPEG, for a page of a hundred large PNGs opens in no browser
)
_PSNR_TOP = 60.0
# As the table has them: head, decimals.
_MEASURES = {
    "psnr": ("PSNR, dB", 2),
    "psnr_worst": ("worst frame", 2),
    "ssim": ("SSIM", 4),
    "ssim_worst": ("worst frame", 4),
    "haarpsi": ("HaarPSI", 4),
    "haarpsi_worst": ("worst frame", 4),
    "temporal_error": ("temporal error", 3),
    "temporal_error_worst": ("worst pair", 3),
    "flicker": ("flicker", 3),
}


def write_page(
    comparisons: Sequence[Comparison],
    path: str | Path,
    *,
    title: str,
    lead: str = "",
    amplify: float = 4.0,
    front_png: str | Path | None = None,
    lines: Sequence[Line] | None = None,
) -> None:
    """Write the page.

    Args:
        lead: a sentence below the title.
        amplify: what differences are multiplied with; the page says so.
        front_png: a plot that is put in front, as `front` draws it.
        lines: of all runs, where only some of them are shown.

    Raises:
        UsageError: nothing to show.
        SightlineError: the plot cannot be read, or the page not be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not comparisons:
        raise UsageError("no runs to show; give at least one comparison")
    pages = Environment(
        loader=PackageLoader("sightline.video.sheets", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    if lines is None:
        lines = [line for comparison in comparisons for line in comparison.lines()]
    page = pages.get_template("sheet.html").render(
        title=title,
        lead=lead,
        amplify=f"{amplify:g}",
        front=None if front_png is None else _png_url(Path(front_png)),
        overall=overall(lines) if len({line.title for line in lines}) > 1 else [],
        shown=sum(len(comparison.others) for comparison in comparisons),
        lines=[(line, _figures(line.fidelity)) for line in lines],
        measures=_MEASURES,
        parts=[_part(comparison, amplify) for comparison in comparisons],
        lossy=any(comparison.reference.frames.shape[3] > _LOSSLESS for comparison in comparisons),
    )
    with replacing(path) as file:
        file.write(page)


def overall(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """For every run: how often it was compared, PSNR and SSIM at the worst and the median, and how much faster."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.run, []).append(line)
    rows = []
    for name, its in found.items():
        worst = min(its, key=lambda line: line.fidelity.psnr)
        faster = [line.faster for line in its if line.faster is not None]
        rows.append(
            {
                "name": name,
                "count": len(its),
                "psnr_worst": worst.fidelity.psnr,
                "psnr_median": statistics.median(line.fidelity.psnr for line in its),
                "ssim_worst": min(line.fidelity.ssim for line in its),
                "worst": worst.title,
                "faster": statistics.median(faster) if len(faster) == len(its) else None,
            }
        )
    return rows


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, each with its values; `-` where a run does not tell it.

    A setting that is an object is told by its parts, as `setting.steps`.
    """
    flat = [_flattened(one) for one in settings]
    names = dict.fromkeys(name for one in flat for name in one)
    table = {name: [_told(one[name]) if name in one else "-" for one in flat] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


def _part(comparison: Comparison, amplify: float) -> dict[str, Any]:
    """What the template shows of a comparison."""
    count, _, height, width = comparison.reference.frames.shape
    shown = [_run(comparison, number) for number in range(len(comparison.runs))]
    for number, other in enumerate(comparison.others):
        changed = difference(other.frames, comparison.reference.frames, amplify)
        shown[number + 1]["difference"] = sprite(changed)
    top, ticks = _scale([value for line in comparison.psnr for value in line])
    return {
        "title": comparison.title,
        "runs": shown,
        "count": count,
        "columns": sprite_columns(count),
        "lines": [_points(line, top) for line in comparison.psnr],
        "ticks": [(100 * tick / top, f"{tick:g}") for tick in ticks],
        "psnr": json.dumps([[round(value, 1) for value in line] for line in comparison.psnr]),
        "width": width,
        "height": height,
        "fps": comparison.fps,
        "differing": differing([run.settings for run in comparison.runs]),
    }


def _run(comparison: Comparison, number: int) -> dict[str, Any]:
    run = comparison.runs[number]
    found = comparison.fidelity[number - 1] if number else None
    return {
        "name": run.name,
        "note": run.note,
        "frames": sprite(run.frames),
        "difference": None,
        "seconds": run.seconds,
        "faster": comparison.faster(run) if number else None,
        "figures": None if found is None else _figures(found),
        "worst_frame": None if found is None else found.worst_frame,
    }


def _figures(found: Fidelity) -> dict[str, str]:
    numbers = {each.name: getattr(found, each.name) for each in fields(found)}
    return {name: f"{numbers[name]:.{digits}f}" for name, (_, digits) in _MEASURES.items()}


def sprite_columns(count: int) -> int:
    """Frames beside one another in a sprite, which is about square."""
    return math.ceil(math.sqrt(count))


def sprite(frames: Tensor) -> str:
    """All frames in one picture, row by row, as a data URL: PNG of small frames, JPEG of wider ones."""
    from PIL import Image

    from sightline.video.sheets.picture import to_picture

    width = min(frames.shape[3], _WIDEST)
    pictures = [to_picture(frame, width) for frame in frames]
    columns = sprite_columns(len(pictures))
    height = pictures[0].height
    whole = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % columns * width, number // columns * height))
    data = io.BytesIO()
    if width > _LOSSLESS:
        whole.save(data, "JPEG", quality=90)
        return _data_url("image/jpeg", data.getvalue())
    whole.save(data, "PNG", optimize=True)
    return _data_url("image/png", data.getvalue())


def _scale(values: Sequence[float]) -> tuple[float, list[float]]:
    """The top of the PSNR axis, which begins at 0, and its ticks."""
    highest = min(max(values, default=_PSNR_TOP), _PSNR_TOP)
    top = max(20.0, 10.0 * math.ceil(highest / 10))
    return top, [float(tick) for tick in range(0, int(top) + 1, 10 if top <= 40 else 20)]


def _points(line: Sequence[float], top: float) -> str:
    """A polyline in a box of 100 x 100: a frame is as wide as its share."""
    return " ".join(
        f"{100 * (number + 0.5) / len(line):.2f},{100 - 100 * min(value, top) / top:.2f}"
        for number, value in enumerate(line)
    )


def _flattened(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flattened(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _png_url(path: Path) -> str:
    try:
        return _data_url("image/png", path.read_bytes())
    except OSError as error:
        raise SightlineError(f"cannot read {path}: {error.strerror or error}") from error


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
