"""Runs side by side as one PNG: a line of frames for each, and below it what differs, amplified."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import UsageError
from sightline.files import replacing
from sightline.video.sheets.comparison import Comparison, Shown, chosen_frames, difference

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from sightline.video.fidelity import Fidelity

_GROUND, _INK, _MUTED = "#ffffff", "#1b1f24", "#5c6570"
_CELL = 180  # pixels; the width that a frame is shown at, where its own is not a multiple
_GAP, _MARGIN, _BESIDE, _LINE = 4, 16, 190, 17


def side_by_side(
    comparisons: Sequence[Comparison], path: str | Path, *, columns: int = 6, amplify: float = 4.0
) -> None:
    """Write the picture: for each comparison its title, the reference's frames, and of every other run the frames
    and the differences. The worst frame of the worst run is always among them.

    Args:
        amplify: what differences are multiplied with; it is written beside them.

    Raises:
        UsageError: nothing to show.
        SightlineError: the file cannot be written, or frames are too small to be compared.
    """
    if not comparisons:
        raise UsageError("no runs to show; give at least one comparison")
    parts = [_comparison(comparison, columns, amplify) for comparison in comparisons]
    sheet = _stacked(parts, gap=2 * _MARGIN, border=_MARGIN)
    with replacing(path, "wb") as file:
        sheet.save(file, "PNG", optimize=True)


def to_picture(frame: Tensor, width: int | None = None) -> Image:
    """A frame [3, H, W] in [0, 1] as Pillow has it; with `width` as wide, small frames with their pixels seen."""
    from PIL import Image

    values = (frame.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    picture = Image.fromarray(values)
    if width is None or width == picture.width:
        return picture
    how = Image.Resampling.NEAREST if width % picture.width == 0 else Image.Resampling.LANCZOS
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), how)


def shown_width(width: int) -> int:
    """Small frames grow by a whole number, large ones shrink."""
    return width * max(1, round(_CELL / width)) if width < _CELL else _CELL


def _comparison(comparison: Comparison, columns: int, amplify: float) -> Image:
    count = len(comparison.reference.frames)
    worst = min(comparison.fidelity, key=lambda found: found.psnr_worst, default=None)
    chosen = chosen_frames(count, columns, None if worst is None else worst.worst_frame)
    lines = [_frames(comparison.reference.frames, chosen, _about(comparison, comparison.reference, None))]
    for other, found in zip(comparison.others, comparison.fidelity, strict=True):
        changed = difference(other.frames, comparison.reference.frames, amplify)
        lines.append(_frames(other.frames, chosen, _about(comparison, other, found)))
        lines.append(_frames(changed, chosen, [("", f"difference times {amplify:g}")]))
    whole = _stacked(lines, gap=2 * _GAP)
    heads = [f"frame {frame}" for frame in chosen]
    if worst is not None:
        heads[chosen.index(worst.worst_frame)] += " (worst)"
    return _titled(whole, comparison.title, heads, shown_width(comparison.reference.frames.shape[3]))


def _about(comparison: Comparison, run: Shown, found: Fidelity | None) -> list[tuple[str, str]]:
    """(style, line) of the words beside a run."""
    lines = [("bold", run.name)]
    if run.seconds is not None:
        faster = comparison.faster(run) if found is not None else None
        lines.append(("", f"{run.seconds:.3g} s" + (f", {faster:.2f}x" if faster else "")))
    if found is not None:
        lines.append(("", f"PSNR {found.psnr:.1f} dB"))
        lines.append(("", f"worst frame {found.psnr_worst:.1f} dB"))
        lines.append(("", f"SSIM {found.ssim:.3f}"))
    return lines


def _frames(frames: Tensor, chosen: Sequence[int], words: Sequence[tuple[str, str]]) -> Image:
    from PIL import Image, ImageDraw

    width = shown_width(frames.shape[3])
    pictures = [to_picture(frames[frame], width) for frame in chosen]
    lines = [(style, part) for style, text in words for part in _wrapped(text, style, _BESIDE - 14)]
    height = max(pictures[0].height, _LINE * len(lines))
    sheet = Image.new("RGB", (_BESIDE + len(pictures) * (width + _GAP) - _GAP, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (style, text) in enumerate(lines):
        draw.text((0, number * _LINE), text, fill=_INK if style else _MUTED, font=_font(style))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (_BESIDE + number * (width + _GAP), 0))
    return sheet


def _titled(sheet: Image, title: str, heads: Sequence[str], width: int) -> Image:
    from PIL import Image, ImageDraw

    titles = _wrapped(title, "bold", sheet.width)
    above = _LINE * len(titles) + _GAP if titles else 0
    whole = Image.new("RGB", (sheet.width, sheet.height + above + _LINE), _GROUND)
    draw = ImageDraw.Draw(whole)
    for number, line in enumerate(titles):
        draw.text((0, number * _LINE), line, fill=_INK, font=_font("bold"))
    for number, head in enumerate(heads):
        draw.text((_BESIDE + number * (width + _GAP), above), head, fill=_MUTED, font=_font(""))
    whole.paste(sheet, (0, above + _LINE))
    return whole


def _stacked(parts: Sequence[Image], *, gap: int, border: int = 0) -> Image:
    """One below the other."""
    from PIL import Image

    size = (max(part.width for part in parts), sum(part.height + gap for part in parts) - gap)
    whole = Image.new("RGB", (size[0] + 2 * border, size[1] + 2 * border), _GROUND)
    top = border
    for part in parts:
        whole.paste(part, (border, top))
        top += part.height + gap
    return whole


def _wrapped(text: str, style: str, width: int) -> list[str]:
    """The text in lines that fit, broken at blanks, and in a word where it is too long for a line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _length(longer, style) <= width:
            lines[-1] = longer
            continue
        while _length(word, style) > width:
            fitting = next(
                end for end in range(len(word), 0, -1) if end == 1 or _length(word[:end], style) <= width
            )
            lines.append(word[:fitting])
            word = word[fitting:]
        lines.append(word)
    return [line for line in lines if line]


def _length(text: str, style: str) -> float:
    return float(_font(style).getlength(text))


@cache
def _font(style: str) -> Any:
    """The font that matplotlib brings, which has more letters than Pillow's own."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if style == "bold" else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), 12)
