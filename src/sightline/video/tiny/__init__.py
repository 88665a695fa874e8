"""The tiny Wan: a real text-to-video model of Wan's classes that travels with the package.

It was trained from nothing on moving MNIST digits by the recipe in `examples/tiny-wan/`, and shows prompts such as "a
three moving left and a seven moving up". `tiny_wan_folder` is a diffusers folder that WanPipeline loads offline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sightline.errors import SightlineError


@dataclass(frozen=True)
class TinyWan:
    """What the model was trained for and gives good videos with it; the folder's `sightline.json` says the same."""

    width: int = 64  # pixels
    height: int = 64
    frames: int = 17
    fps: int = 8
    steps: int = 30
    guidance: float = 6.0
    shift: float = 5.0  # of the noise levels, as at training
    text_length: int = 32  # WanPipeline's max_sequence_length; 512, its default, works too and takes longer
    scheduler: str = "unipc"
    negative_prompt: str = ""
    name: str = "tiny Wan"


PROMPT = "a three moving left and a seven moving up"
SPEC = TinyWan()


def tiny_wan_folder() -> Path:
    """The packaged model's folder.

    Raises:
        SightlineError: This installation came without package data.
    """
    folder = Path(__file__).parent / "model"
    if not (folder / "model_index.json").is_file():
        raise SightlineError(
            f"{folder} has no model_index.json; install sightline again, with its package data"
        )
    return folder
