"""Pictures of videos side by side: a row a video, every other frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def strip(clips: list[np.ndarray], captions: list[str], path: Path, frames: int = 9, zoom: int = 2) -> None:
    """Write a PNG of clips uint8 [F, H, W], each under its caption, `frames` pictures of each."""
    size, gap, line = clips[0].shape[1] * zoom, 2, 16
    sheet = Image.new("L", (frames * (size + gap) - gap, len(clips) * (size + line + gap)), 64)
    pen = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        top = row * (size + line + gap)
        pen.text((2, top + 2), caption, fill=255)
        for column, frame in enumerate(np.linspace(0, len(clip) - 1, frames).round().astype(int)):
            picture = Image.fromarray(clip[frame]).resize((size, size), Image.Resampling.BICUBIC)
            sheet.paste(picture, (column * (size + gap), top + line))
    sheet.save(path, optimize=True)
