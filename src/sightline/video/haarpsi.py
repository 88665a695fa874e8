"""HaarPSI, a perceptual index of two pictures that needs no trained network.

R. Reisenhofer, S. Bosse, G. Kutyniok, T. Wiegand: A Haar wavelet-based perceptual similarity index for image quality
assessment, Signal Processing: Image Communication 61 (2018), arXiv:1607.06140. Written from sections 2 and 3 there:
C = 30 and alpha = 4.2 for values of 0 to 255, pictures halved first, three scales of Haar wavelets, colour in YIQ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# The coarsest filter has 8 pixels and looks at a picture of half the size.
SMALLEST = 16
_C = 30.0
_ALPHA = 4.2
# Y, I and Q of the NTSC standard from R, G and B.
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def haarpsi(pictures: Tensor, reference: Tensor) -> Tensor:
    """The index of each picture, 1 where it is the reference.

    Args:
        pictures, reference: [N, C, H, W] in [0, 1], C 3 (RGB) or 1, H and W at least 16.

    Returns:
        [N], float32.
    """
    import torch

    planes = [_planes(each) for each in (pictures, reference)]
    fine = [[_haar(each[:, :1], 2**scale).abs() for scale in (1, 2)] for each in planes]
    coarse = [_haar(each[:, :1], 8).abs() for each in planes]
    weights = torch.maximum(coarse[0], coarse[1])
    local = (
        sum((_similarity(one, other) for one, other in zip(fine[0], fine[1], strict=True)), start=weights * 0)
        / 2
    )
    if planes[0].shape[1] == 3:
        one, other = (_mean_of_four(each[:, 1:]).abs() for each in planes)
        local = torch.cat([local, _similarity(one, other).mean(1, keepdim=True)], 1)
        weights = torch.cat([weights, weights.mean(1, keepdim=True)], 1)
    # Two empty pictures have no edges that could weigh.
    empty = weights.sum((1, 2, 3), keepdim=True) == 0
    weights = torch.where(empty, torch.ones_like(weights), weights).double()
    squashed = (torch.sigmoid(_ALPHA * local.double()) * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))
    return ((torch.logit(squashed) / _ALPHA) ** 2).float()


def _planes(pictures: Tensor) -> Tensor:
    """Y (and I, Q) of 0 to 255, at half the size: what is seen from the usual distance."""
    import torch
    import torch.nn.functional as F

    scaled = pictures.float() * 255
    if scaled.shape[1] == 3:
        scaled = torch.einsum("ic,nchw->nihw", torch.tensor(_YIQ, device=scaled.device), scaled)
    return F.avg_pool2d(scaled, 2, ceil_mode=True, count_include_pad=False)


def _haar(plane: Tensor, size: int) -> Tensor:
    """[N, 1, H, W] -> [N, 2, H, W]: the 2D Haar filters of `size` pixels, horizontal and vertical edges."""
    import torch
    import torch.nn.functional as F

    kernel = torch.full((size, size), 1 / size, device=plane.device)
    kernel[size // 2 :] *= -1
    before, after = size // 2 - 1, size // 2
    padded = F.pad(plane, (before, after, before, after))
    return F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])


def _mean_of_four(planes: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.avg_pool2d(F.pad(planes, (0, 1, 0, 1)), 2, stride=1)


def _similarity(one: Tensor, other: Tensor) -> Tensor:
    return (2 * one * other + _C) / (one**2 + other**2 + _C)
