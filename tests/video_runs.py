"""Runs on disk as `sightline video generate` leaves them, without generating."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from films import film

from sightline.video.builders import fixed_interval
from sightline.video.request import Request
from sightline.video.result import Video
from sightline.video.setting import Setting
from sightline.video.writing.record import Record
from sightline.video.writing.save import save

REQUEST = Request("a disc moving right", 32, 32, 5, 10, 5.0, 3.0)


def write_run(
    path: Path,
    noise: float = 0.0,
    *,
    seconds: float = 4.0,
    frames: bool = True,
    planned: bool = False,
    seed: int = 0,
) -> torch.Tensor:
    """Save a film with its record; gives what a reader of its PNG frames gets."""
    setting = Setting(10, "tiny", "abc", "unipc", 3.0, 32, 32, 5, 5.0, "float32", "cpu")
    plan = fixed_interval(Setting(10), 2, start=2) if planned else None
    pictures, request = film(noise, seed=seed), replace(REQUEST, seed=seed)
    times = {"text": 0.5, "denoise": seconds, "decode": 0.25}
    video = Video(pictures, torch.zeros(1, 4, 2, 4, 4), request, setting, plan, times)
    record = Record(request, {"model": "tiny"}, setting, plan, seconds=times)
    save(video, path, record, save_frames=frames)
    return (pictures * 255).round() / 255
