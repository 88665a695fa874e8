"""Decoding over ranks is decoding in one process, to the last line of the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_pool import Pool
from split_vae import decode_strip, latents, make_vae, pipeline_frames, pipeline_refused, refused
from wan_folder import make_wan_folder

from sightline.errors import SightlineError, UsageError
from sightline.video.parallel.layout import Layout
from sightline.video.parallel.vae import split_decoder
from sightline.video.parallel.vae.traffic import traffic
from sightline.video.pipeline import VideoPipeline

TOLERANCE = 5e-6  # of numbers in [-1, 1], in float32, after some twenty convolutions of random weights


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    ranks = Pool(4)
    yield ranks
    ranks.close()


def check(pool: Pool, count: int, config: dict[str, Any], shape: tuple[int, ...]) -> torch.Tensor:
    vae = make_vae(**config)
    with torch.no_grad():
        expected = vae.decode(latents(*shape)).sample
    found = pool.run(count, decode_strip, config, shape)
    assert expected.std() > 0.05
    assert (expected.abs() < 1).float().mean() > 0.3  # most is clamped otherwise, and shows nothing
    for rank, (sample, sent, same) in enumerate(found):
        assert sample.shape == expected.shape
        assert (sample - expected).abs().max() <= TOLERANCE, f"rank {rank} of {count}"
        assert same
        planned = traffic(vae, shape, count)[rank]
        assert sent == {
            "borders": planned.borders,
            "attention": planned.attention,
            "pictures": planned.pictures,
        }
    return expected


@pytest.mark.parametrize(
    ("count", "shape"),
    [
        (2, (1, 4, 3, 4, 8)),  # columns
        (2, (1, 4, 3, 9, 4)),  # rows, uneven
        (3, (1, 4, 4, 5, 7)),  # uneven columns
        (4, (1, 4, 1, 6, 6)),  # a picture
        (4, (2, 4, 2, 3, 4)),  # two videos, one line each
    ],
)
def test_ranks_decode_what_one_process_decodes(pool: Pool, count: int, shape: tuple[int, ...]) -> None:
    check(pool, count, {}, shape)


@pytest.mark.parametrize("residual", [False, True])
def test_a_decoder_of_patches_is_split_too(pool: Pool, residual: bool) -> None:
    """The built-in model's has patches; Wan2.2's is of residual blocks besides."""
    config = {"is_residual": residual, "patch_size": 2, "in_channels": 12, "out_channels": 12}
    check(pool, 3, config | {"scale_factor_spatial": 8}, (1, 4, 3, 4, 7))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 4),
    frames=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(4, 8),
    blocks=st.integers(1, 2),
    upsample=st.lists(st.booleans(), min_size=1, max_size=2),
)
def test_any_small_decoder(
    pool: Pool, count: int, frames: int, height: int, width: int, blocks: int, upsample: list[bool]
) -> None:
    config = {
        "num_res_blocks": blocks,
        "temperal_downsample": upsample,
        "dim_mult": [1, 2, 2][: len(upsample) + 1],
    }
    check(pool, count, config, (1, 4, frames, height, width))


def test_rank_0_alone_has_the_video_by_option(pool: Pool) -> None:
    shape = (1, 4, 2, 4, 7)
    expected = check(pool, 3, {}, shape)
    (first, *_), *others = pool.run(3, decode_strip, {}, shape, False)
    assert (first - expected).abs().max() <= TOLERANCE
    vae = make_vae()
    for rank, (sample, sent, _) in enumerate(others, 1):
        assert sample.shape == (1, 3, 0, *expected.shape[3:])
        assert sent["pictures"] == traffic(vae, shape, 3, everywhere=False)[rank].pictures > 0


def test_a_strip_is_a_share_of_the_work() -> None:
    parts = traffic(make_vae(), (1, 4, 2, 4, 7), 3)
    assert [part.share for part in parts] == [3 / 7, 2 / 7, 2 / 7]
    assert parts[1].borders == 2 * parts[0].borders == 2 * parts[2].borders
    assert parts[0].total == parts[0].borders + parts[0].attention + parts[0].pictures


@pytest.mark.parametrize(
    ("case", "count", "says"),
    [
        ("narrow", 4, "latents of 3x2 cannot be decoded by 4 ranks"),
        ("shapes", 2, "rank 1 of [1, 4, 2, 2, 4] with 4; give every rank the same"),
        ("inside", 2, "call the VAE's decode, not the decoder"),
        ("tiles later", 2, "leave out --tile-vae"),
        ("foreign", 2, "replaced after the decoder was split"),
        ("twice", 2, "split over ranks already"),
    ],
)
def test_refused_on_every_rank_with_one_sentence(pool: Pool, case: str, count: int, says: str) -> None:
    assert all(says in text for text in pool.run(count, refused, case))


def test_what_is_no_wan_vae_is_refused() -> None:
    with pytest.raises(SightlineError, match="a Linear cannot be split over ranks"):
        split_decoder(torch.nn.Linear(1, 1), None, 0, 1)
    vae = make_vae()
    vae.enable_tiling()
    with pytest.raises(UsageError, match="--tile-vae"):
        split_decoder(vae, None, 0, 1)
    vae.disable_tiling()
    vae.decoder.conv_out._padding = (2, 2, 2, 2, 2, 0)
    with pytest.raises(SightlineError, match="decoder.conv_out is no convolution of 3x3"):
        split_decoder(vae, None, 0, 1)


def test_the_pipeline_decodes_over_ranks_when_asked(pool: Pool, tmp_path: Path) -> None:
    folder = str(make_wan_folder(tmp_path))
    (alone, split), *_ = pool.run(1, pipeline_frames, folder, (64, 48))
    assert not split
    assert alone.shape == (5, 3, 48, 64)
    for parallel in (True, False):
        for frames, split in pool.run(3, pipeline_frames, folder, (64, 48), parallel):
            assert split == parallel
            assert (frames - alone).abs().max() <= TOLERANCE


def test_the_pipeline_refuses_what_it_cannot_split_before_it_works(pool: Pool, tmp_path: Path) -> None:
    folder = make_wan_folder(tmp_path)
    said = pool.run(4, pipeline_refused, str(folder), (8, 8))
    assert all("latents of 2x2 cannot be decoded by 4 ranks" in text for text in said)
    with pytest.raises(UsageError, match="--vae-parallel"):
        VideoPipeline.load(
            folder, device="cpu", tile_vae=True, layout=Layout(world=2, ulysses=2), vae_parallel=True
        )
