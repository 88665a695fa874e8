"""How near a video is to the one that was computed exactly: no network, no file, on any device.

Videos are [F, C, H, W] in [0, 1], as decoded; through an encoded file the codec's noise would be measured as well.
A plan is judged by its worst frame and worst prompt: a good mean hides the frame in which a digit is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sightline.errors import SightlineError
from sightline.video.haarpsi import SMALLEST, haarpsi

if TYPE_CHECKING:
    from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5
# Equal frames have an infinite PSNR and a still reference an infinite flicker; JSON and tables want numbers.
MOST_PSNR, MOST_RATIO = 100.0, 1000.0


@dataclass(frozen=True)
class Fidelity:
    """A video against its reference.

    Attributes:
        psnr: dB, of all pixels together; `psnr_worst` of the worst frame. At most 100.
        ssim, haarpsi: mean over frames and the worst, 1 where equal.
        temporal_error: the change from frame to frame against the reference's, as the norm of the difference over
            the norm of the reference's change; `temporal_error_worst` of the worst pair of frames. 0 where equal.
        flicker: how much changes from frame to frame as a share of what changes in the reference: below 1 motion
            was lost, above 1 it flickers. Both at most 1000.
        worst_frame: the frame with the lowest PSNR, from 0.
    """

    psnr: float
    psnr_worst: float
    ssim: float
    ssim_worst: float
    haarpsi: float
    haarpsi_worst: float
    temporal_error: float
    temporal_error_worst: float
    flicker: float
    worst_frame: int

    def numbers(self) -> dict[str, float]:
        """All of them by name, finite."""
        return asdict(self)


def compare(video: Tensor, reference: Tensor) -> Fidelity:
    """Every measure of two videos, [F, C, H, W] in [0, 1].

    Raises:
        SightlineError: their shapes differ, or a side is shorter than 16 pixels.
    """
    _check(video, reference, SMALLEST)
    frames = psnr(video, reference)
    similar, perceived = ssim(video, reference), _by_frame(haarpsi, video, reference)
    errors = temporal_errors(video, reference)
    whole = _decibel(float((video.double() - reference.double()).square().mean()))
    return Fidelity(
        psnr=min(whole, MOST_PSNR),
        psnr_worst=min(float(frames.min()), MOST_PSNR),
        ssim=float(similar.mean()),
        ssim_worst=float(similar.min()),
        haarpsi=float(perceived.mean()),
        haarpsi_worst=float(perceived.min()),
        temporal_error=min(float(errors.square().mean().sqrt()) if len(errors) else 0.0, MOST_RATIO),
        temporal_error_worst=min(float(errors.max()) if len(errors) else 0.0, MOST_RATIO),
        flicker=min(flicker_ratio(video, reference), MOST_RATIO),
        worst_frame=int(frames.argmin()),
    )


def relative_error(latents: Tensor, reference: Tensor) -> float:
    """`||latents - reference|| / ||reference||`, the cheapest measure: no decoder. Any shape.

    Raises:
        SightlineError: the shapes differ.
    """
    _check_shapes(latents, reference)
    difference = float((latents.double() - reference.double()).norm())
    return _ratio(difference, float(reference.double().norm()), none=0.0)


def cosine(latents: Tensor, reference: Tensor) -> float:
    """The cosine of the angle between two tensors of any shape; 1 between two of zeros, 0 to one of zeros.

    Raises:
        SightlineError: the shapes differ.
    """
    _check_shapes(latents, reference)
    one, other = latents.double().flatten(), reference.double().flatten()
    norms = float(one.norm() * other.norm())
    if norms == 0:
        return float(bool(one.norm() == other.norm()))
    return float(one @ other) / norms


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """dB of each frame, [F]; infinite where equal.

    Raises:
        SightlineError: the shapes differ.
    """
    _check(video, reference, 1)
    return _by_frame(
        lambda one, other: -10 * (one - other).square().mean((1, 2, 3)).log10(), video, reference
    )


def ssim(video: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each frame, [F]: windows of 11x11 under a Gaussian of 1.5 pixels, those that lie
    whole in the picture, K1 = 0.01 and K2 = 0.03 (Z. Wang et al., IEEE TIP 13(4), 2004), mean over channels.

    Raises:
        SightlineError: the shapes differ, or a side is shorter than 11 pixels.
    """
    _check(video, reference, _WINDOW)
    return _by_frame(_ssim, video, reference)


def temporal_errors(video: Tensor, reference: Tensor) -> Tensor:
    """How wrongly each frame follows from the one before it, [F - 1]: root mean square of the difference between
    the two videos' changes, over that of the reference's changes in the whole video (a still moment has none)."""
    _check(video, reference, 1)
    wrong = (_changes(video) - _changes(reference)).square().mean((1, 2, 3)).sqrt()
    moved = float(_changes(reference).square().mean().sqrt()) if len(video) > 1 else 0.0
    return wrong / moved if moved else wrong.masked_fill(wrong > 0, math.inf)


def flicker_ratio(video: Tensor, reference: Tensor) -> float:
    """Mean absolute change from frame to frame, as a share of the reference's; 1 where both stand still."""
    _check(video, reference, 1)
    if len(video) == 1:
        return 1.0
    return _ratio(float(_changes(video).abs().mean()), float(_changes(reference).abs().mean()), none=1.0)


def _ssim(one: Tensor, other: Tensor) -> Tensor:
    mean_one, mean_other = _blurred(one), _blurred(other)
    var_one = _blurred(one * one) - mean_one**2
    var_other = _blurred(other * other) - mean_other**2
    both = _blurred(one * other) - mean_one * mean_other
    light, contrast = 0.01**2, 0.03**2
    top = (2 * mean_one * mean_other + light) * (2 * both + contrast)
    bottom = (mean_one**2 + mean_other**2 + light) * (var_one + var_other + contrast)
    return (top / bottom).mean((1, 2, 3))


def _blurred(frames: Tensor) -> Tensor:
    """The Gaussian window over each channel, one axis after the other."""
    import torch
    import torch.nn.functional as F

    channels = frames.shape[1]
    places = torch.arange(_WINDOW, dtype=frames.dtype, device=frames.device) - _WINDOW // 2
    line = torch.exp(-(places**2) / (2 * _SIGMA**2))
    kernel = (line / line.sum()).expand(channels, 1, 1, _WINDOW)
    return F.conv2d(F.conv2d(frames, kernel, groups=channels), kernel.transpose(2, 3), groups=channels)


def _by_frame(measure: Callable[[Tensor, Tensor], Tensor], video: Tensor, reference: Tensor) -> Tensor:
    """One frame at a time: a whole video times its intermediate pictures would not fit beside the model."""
    import torch

    pairs = zip(video.split(1), reference.split(1), strict=True)
    return torch.cat([measure(one.float(), other.float()) for one, other in pairs])


def _changes(video: Tensor) -> Tensor:
    video = video.float()
    return video[1:] - video[:-1]


def _decibel(error: float) -> float:
    return -10 * math.log10(error) if error else math.inf


def _ratio(top: float, bottom: float, *, none: float) -> float:
    """`none` where there is nothing on either side."""
    if bottom:
        return top / bottom
    return math.inf if top else none


def _check_shapes(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise SightlineError(
            f"two tensors of shapes {tuple(one.shape)} and {tuple(other.shape)} cannot be compared; generate both alike"
        )


def _check(video: Tensor, reference: Tensor, smallest: int) -> None:
    _check_shapes(video, reference)
    if video.ndim != 4 or not len(video):
        raise SightlineError(f"a video must be [frames, channels, height, width], not {tuple(video.shape)}")
    if video.shape[1] not in (1, 3):
        raise SightlineError(
            f"a video has 1 or 3 channels, not {video.shape[1]}; give [frames, channels, height, width]"
        )
    if min(video.shape[2:]) < smallest:
        raise SightlineError(
            f"frames of {video.shape[3]}x{video.shape[2]} are too small to compare; this needs {smallest} pixels a side"
        )
