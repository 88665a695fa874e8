"""Measures of fidelity against values worked out by hand and figures of other libraries."""

from __future__ import annotations

import json
import math

import pytest
import torch

from sightline.errors import SightlineError
from sightline.video.fidelity import (
    Fidelity,
    compare,
    cosine,
    flicker_ratio,
    psnr,
    relative_error,
    ssim,
    temporal_errors,
)
from sightline.video.haarpsi import haarpsi

# Of `distorted(patterns())`, frame by frame; see `test_figures_of_other_libraries`.
PIQ_HAARPSI = [0.863067, 0.880463, 0.877885, 0.875678]
PIQ_HAARPSI_GREY = [0.901738, 0.905192, 0.867629, 0.903134]
SKIMAGE_SSIM = [0.910439, 0.913721, 0.80042, 0.786124]


def patterns(frames: int = 4, channels: int = 3, height: int = 48, width: int = 64) -> torch.Tensor:
    """Pictures of stripes and discs, the same everywhere: no random numbers, so that figures can be written down."""
    y, x = torch.meshgrid(torch.arange(height) / 16, torch.arange(width) / 16, indexing="ij")
    pictures = []
    for frame in range(frames):
        planes = [
            torch.sin((2 + channel) * x + frame) * torch.cos((3 - channel) * y - 0.5 * frame)
            + ((x - 1 - 0.3 * frame) ** 2 + (y - 1.5) ** 2 < 0.5).float()
            for channel in range(channels)
        ]
        pictures.append(torch.stack(planes))
    return (torch.stack(pictures) * 0.25 + 0.4).clamp(0, 1)


def distorted(video: torch.Tensor) -> torch.Tensor:
    """Shifted by a pixel, a little darker, and with fine stripes on the later frames."""
    moved = torch.roll(video, 1, dims=3) * 0.95
    stripes = 0.05 * (torch.arange(video.shape[3]) % 2)
    moved[2:] += stripes
    return moved.clamp(0, 1)


def test_psnr_by_hand() -> None:
    reference = torch.zeros(3, 1, 2, 2)
    video = reference.clone()
    video[0] += 0.1
    video[1, 0, 0, 0] = 0.5
    # Errors of 0.01, 0.25 / 4 and 0.
    assert psnr(video, reference).tolist() == pytest.approx([20.0, -10 * math.log10(0.0625), math.inf])


def test_latent_error_and_cosine_by_hand() -> None:
    reference = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 7.0]), reference) == pytest.approx(3 / 5)
    assert cosine(torch.tensor([4.0, -3.0]), reference) == pytest.approx(0)
    assert cosine(2 * reference, reference) == pytest.approx(1)
    nothing = torch.zeros(2)
    assert (relative_error(nothing, nothing), cosine(nothing, nothing)) == (0, 1)
    assert (relative_error(reference, nothing), cosine(reference, nothing)) == (math.inf, 0)


def test_temporal_error_and_flicker_by_hand() -> None:
    # Two pixels; the reference brightens by 0.1, 0.1 and then by 0.3, 0.1.
    reference = torch.tensor([[0.0, 0.0], [0.1, 0.1], [0.4, 0.2]])[:, None, None]
    video = torch.tensor([[0.0, 0.0], [0.1, 0.1], [0.2, 0.2]])[:, None, None]
    # The changes differ by (0, 0) and by (0.2, 0); the reference's are 0.1, 0.1, 0.3, 0.1.
    moved = math.sqrt((0.01 + 0.01 + 0.09 + 0.01) / 4)
    assert temporal_errors(video, reference).tolist() == pytest.approx([0, math.sqrt(0.04 / 2) / moved])
    assert flicker_ratio(video, reference) == pytest.approx(0.4 / 0.6)


def test_a_video_that_stands_still_has_lost_all_motion_and_one_that_trembles_flickers() -> None:
    reference = patterns()
    assert flicker_ratio(reference[:1].expand(4, -1, -1, -1), reference) == 0
    trembling = reference + 0.2 * (torch.arange(4) % 2)[:, None, None, None]
    assert flicker_ratio(trembling, reference) > 1.5
    still = torch.full((3, 3, 16, 16), 0.5)
    assert flicker_ratio(still, still) == 1
    found = compare(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), still)
    assert (found.flicker, found.temporal_error_worst) == (1000.0, 1000.0)


def test_ssim_of_flat_pictures_by_hand() -> None:
    one, other = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25)
    # Without structure what remains is the term of light: (2ab + C1) / (a^2 + b^2 + C1).
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    assert ssim(one, other).tolist() == pytest.approx([expected], abs=1e-5)


def test_ssim_of_one_window_by_hand() -> None:
    """A picture of 11x11 has one window, whose sums can be written out."""
    video, reference = patterns(1, 1, 11, 11), distorted(patterns(1, 1, 11, 11))
    x, y = video[0, 0].double(), reference[0, 0].double()
    line = torch.tensor([math.exp(-(place**2) / (2 * 1.5**2)) for place in range(-5, 6)], dtype=torch.float64)
    window = torch.outer(line, line) / line.sum() ** 2
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
    both = (window * (x - mean_x) * (y - mean_y)).sum()
    top = (2 * mean_x * mean_y + 1e-4) * (2 * both + 9e-4)
    expected = top / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4))
    assert float(ssim(video, reference)) == pytest.approx(float(expected), abs=1e-5)


def test_haarpsi_of_flat_pictures_by_hand() -> None:
    """Grey 16x16 of one value each: halved to 8x8, a filter answers only where it hangs over the edge."""
    one, other = 0.6 * 255, 0.2 * 255
    found = haarpsi(torch.full((1, 1, 16, 16), 0.6), torch.full((1, 1, 16, 16), 0.2))

    def answers(size: int) -> torch.Tensor:
        """Of a plane of ones, written out: the sum of what lies in the upper half less the lower, over the size."""
        found = torch.zeros(8, 8, dtype=torch.float64)
        for y in range(8):
            for x in range(8):
                for dy in range(size):
                    for dx in range(size):
                        inside = 0 <= y + dy - size // 2 + 1 < 8 and 0 <= x + dx - size // 2 + 1 < 8
                        found[y, x] += inside * (1 if dy < size // 2 else -1) / size
        return found.abs()

    def similarity(size: int) -> torch.Tensor:
        edge = answers(size)
        return (2 * one * other * edge**2 + 30) / ((one**2 + other**2) * edge**2 + 30)

    # One value for both directions: the other is the same, turned.
    weight, local = one * answers(8), (similarity(2) + similarity(4)) / 2
    squashed = (torch.sigmoid(4.2 * local) * weight).sum() / weight.sum()
    expected = (torch.log(squashed / (1 - squashed)) / 4.2) ** 2
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_figures_of_other_libraries() -> None:
    """Found once with piq 0.8.0 (haarpsi, ssim without downsampling) and scikit-image 0.26 (Gaussian weights, sigma
    1.5, population covariance) for the same pictures. piq's matrix of YIQ has a digit more than the authors'."""
    reference = patterns()
    video = distorted(reference)
    assert haarpsi(video, reference).tolist() == pytest.approx(PIQ_HAARPSI, abs=2e-4)
    assert haarpsi(video[:, :1], reference[:, :1]).tolist() == pytest.approx(PIQ_HAARPSI_GREY, abs=2e-5)
    assert ssim(video, reference).tolist() == pytest.approx(SKIMAGE_SSIM, abs=2e-5)


def test_equal_videos_are_perfect_in_every_measure() -> None:
    video = patterns()
    found = compare(video, video.clone())
    assert found == Fidelity(
        psnr=100.0,
        psnr_worst=100.0,
        ssim=pytest.approx(1),
        ssim_worst=pytest.approx(1),
        haarpsi=pytest.approx(1, abs=1e-6),
        haarpsi_worst=pytest.approx(1, abs=1e-6),
        temporal_error=0.0,
        temporal_error_worst=0.0,
        flicker=1.0,
        worst_frame=0,
    )


def test_the_worst_frame_is_found() -> None:
    reference = patterns()
    video = reference.clone()
    video[2, :, 10:30, 10:30] = 0
    found = compare(video, reference)
    assert found.worst_frame == 2
    assert found.psnr_worst == pytest.approx(float(psnr(video, reference)[2]))
    # Of four equal frames one is wrong: a quarter of its error is the whole video's.
    assert found.psnr == pytest.approx(found.psnr_worst + 10 * math.log10(4), abs=1e-4)
    assert found.ssim_worst == pytest.approx(float(ssim(video, reference)[2]))
    assert found.ssim == pytest.approx((3 + found.ssim_worst) / 4, abs=1e-6)
    assert found.haarpsi_worst < found.haarpsi < 1
    # Two of the three changes are wrong.
    errors = temporal_errors(video, reference)
    assert (errors > 0).tolist() == [False, True, True]
    assert found.temporal_error_worst == float(errors.max())


def test_measures_become_worse_as_the_video_does() -> None:
    reference = patterns()
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(3))
    rows = [compare((reference + scale * noise).clamp(0, 1), reference) for scale in (0.01, 0.05, 0.2)]
    for name in ("psnr", "psnr_worst", "ssim", "ssim_worst", "haarpsi", "haarpsi_worst"):
        values = [getattr(row, name) for row in rows]
        assert values == sorted(values, reverse=True), name
    for name in ("temporal_error", "temporal_error_worst", "flicker"):
        values = [getattr(row, name) for row in rows]
        assert values == sorted(values), name


def test_all_numbers_are_finite_and_go_into_json() -> None:
    black, white = torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16)
    for video in (black, white):
        numbers = compare(video, black).numbers()
        assert all(math.isfinite(value) for value in numbers.values())
        assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert compare(black, black).haarpsi == pytest.approx(1)


def test_one_frame_has_no_motion_and_half_precision_is_welcome() -> None:
    picture = patterns(1, 1, 17, 19).half()
    found = compare(picture, picture)
    assert (found.temporal_error, found.flicker, found.psnr) == (0.0, 1.0, 100.0)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ((2, 3, 16, 16), (3, 3, 16, 16), r"shapes \(2, 3, 16, 16\) and \(3, 3, 16, 16\) cannot be compared"),
        ((3, 16, 16), (3, 16, 16), r"a video must be \[frames, channels, height, width\], not \(3, 16, 16\)"),
        ((0, 3, 16, 16), (0, 3, 16, 16), r"a video must be"),
        (
            (2, 3, 15, 20),
            (2, 3, 15, 20),
            "frames of 20x15 are too small to compare; this needs 16 pixels a side",
        ),
        ((2, 2, 16, 16), (2, 2, 16, 16), "a video has 1 or 3 channels, not 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    one: tuple[int, ...], other: tuple[int, ...], message: str
) -> None:
    with pytest.raises(SightlineError, match=message):
        compare(torch.zeros(one), torch.zeros(other))
