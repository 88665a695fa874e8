"""What a model generates where nothing else is asked for, and which sizes it has."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError
from sightline.files import read_object
from sightline.video.request import SCHEDULERS, Request

FILE = "sightline.json"

# `sample_neg_prompt` of Wan-Video/Wan2.1, wan/configs/shared_config.py: what the authors' generate.py keeps away from
# in every video. The model was tuned with it, in Chinese.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
# The authors' generate.py, for those who come with its flags (the same for 1.3B and 14B, text to video).
ORIGINAL = {"steps": 50, "guidance": 5.0, "shift": 5.0, "frames": 81, "fps": 16}

_SIZE = {"width": 832, "height": 480}
_SHIFT_480, _SHIFT_720 = 3.0, 5.0
# Halfway between 832 x 480 and 1280 x 720.
_BETWEEN = (832 * 480 + 1280 * 720) // 2
_SMALL_WIDTH = 1536  # of Wan2.1's 1.3B


@dataclass(frozen=True)
class Defaults:
    """What one model does without being told.

    Attributes:
        width, height: pixels.
        frames: pictures.
        steps, guidance, scheduler: of the denoising.
        fps: pictures a second.
        negative_prompt: what to keep away from.
        text_length: tokens that a prompt is padded or cut to.
        multiple: what both sides are multiples of: pixels of one token of the transformer.
        temporal: pictures in one step of the latents in time, 4: a video has 4n + 1.
        positions: that the transformer tells apart in each direction.
        fixed_shift: flow shift of every size, where the model has one of its own.
    """

    multiple: int
    temporal: int = 4
    positions: int = 1024
    width: int = 832
    height: int = 480
    frames: int = 81
    steps: int = 50
    guidance: float = 5.0
    fps: int = 16
    negative_prompt: str = NEGATIVE_PROMPT
    scheduler: str = "unipc"
    text_length: int = 512
    fixed_shift: float | None = None

    def shift(self, width: int, height: int) -> float:
        """The flow shift for a size in pixels: the model's own, else 3 up to about 480p and 5 above."""
        if self.fixed_shift is not None:
            return self.fixed_shift
        return _SHIFT_480 if width * height < _BETWEEN else _SHIFT_720

    def check(self, request: Request) -> None:
        """`Request.check` against this model; raises as it does."""
        request.check(self.multiple, self.temporal, self.positions)


def defaults_of(transformer: Any, vae: Any, scheduler: Any, folder: Path | None) -> Defaults:
    """The defaults of a model: those of its size, and over them those of its folder's `sightline.json`.

    The 1.3B has guidance 6 and shift 8, which its authors advise for it (README of Wan-Video/Wan2.1: shift 8 to 12);
    every other size has guidance 5 as their generate.py, and diffusers' shift of 3 at 480p and 5 at 720p. A folder's
    scheduler with a flow shift other than 1 and 3 is of a model tuned for that one, which then holds.

    Raises:
        SightlineError: `sightline.json` has a field that is unknown or wrong.
    """
    config = transformer.config
    values: dict[str, Any] = {
        "multiple": multiple_of(transformer, vae),
        "temporal": temporal_of(vae),
        "positions": config.rope_max_seq_len,
    }
    if config.num_attention_heads * config.attention_head_dim == _SMALL_WIDTH:
        values |= {"guidance": 6.0, "fixed_shift": 8.0}
    # 1 is diffusers' own default and 3 is in every folder that Wan's authors published, whatever the model's size.
    given = scheduler.config.get("flow_shift", scheduler.config.get("shift"))
    if isinstance(given, (int, float)) and given not in (1, 3):
        values["fixed_shift"] = float(given)
    rounded = {name: size // values["multiple"] * values["multiple"] for name, size in _SIZE.items()}
    frames = (Defaults.frames - 1) // values["temporal"] * values["temporal"] + 1
    defaults = Defaults(**values, **rounded, frames=frames)
    if folder is None or not (folder / FILE).exists():
        return defaults
    return _checked(replace(defaults, **_own(folder / FILE)), folder / FILE)


def multiple_of(transformer: Any, vae: Any) -> int:
    """Pixels that one token of the transformer stands for in each direction."""
    _, high, wide = transformer.config.patch_size
    return spatial_of(vae) * math.lcm(high, wide)


def spatial_of(vae: Any) -> int:
    """Pixels that one latent of the VAE stands for in each direction."""
    return int(2 ** (len(vae.config.dim_mult) - 1) * (vae.config.get("patch_size") or 1))


def temporal_of(vae: Any) -> int:
    """Pictures in one step of the VAE's latents in time; the first one stands alone."""
    return int(2 ** sum(map(bool, vae.config.temperal_downsample)))


_WHOLE = {
    "width": 16384,
    "height": 16384,
    "frames": 100_000,
    "fps": 1000,
    "steps": 1000,
    "text_length": 100_000,
}
_REAL = ("guidance", "shift")
_TEXT = ("negative_prompt", "scheduler", "name")


def _own(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in read_object(path).items():
        if name in _WHOLE:
            good, form = (
                type(value) is int and 1 <= value <= _WHOLE[name],
                f"whole number from 1 to {_WHOLE[name]}",
            )
        elif name in _REAL:
            least = 0.0 if name == "guidance" else 1e-6
            good, form = type(value) in (int, float) and least <= value <= 1000, "number from 0 to 1000"
        elif name == "scheduler":
            good, form = value in SCHEDULERS, f"name of {', '.join(SCHEDULERS)}"
        elif name in _TEXT:
            good, form = isinstance(value, str), "text"
        else:
            known = ", ".join((*_WHOLE, *_REAL, *_TEXT))
            raise SightlineError(f"{path} has an unknown field {name!r}; it may have {known}")
        if not good:
            raise SightlineError(f"{path}: {name} must be a {form}, not {value!r}")
        found["fixed_shift" if name == "shift" else name] = value
    found.pop("name", None)
    return found


def name_of(folder: Path) -> str:
    """A model's name for people: what its `sightline.json` says, else its folder's."""
    if (folder / FILE).exists():
        name = read_object(folder / FILE).get("name")
        if isinstance(name, str) and name:
            return name
    return folder.resolve().name


def _checked(defaults: Defaults, path: Path) -> Defaults:
    for name in ("width", "height"):
        if getattr(defaults, name) % defaults.multiple:
            raise SightlineError(
                f"{path}: {name} {getattr(defaults, name)} is no multiple of {defaults.multiple}, which this model's "
                "sides are"
            )
    if (defaults.frames - 1) % defaults.temporal:
        raise SightlineError(f"{path}: frames {defaults.frames} are not {defaults.temporal}n + 1")
    return defaults
