"""Pictures: equal to transformers' own processor, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

from sightline.data.conversation import Image
from sightline.data.vision import image_grid, patch_image, smart_resize, tokens
from sightline.data.vision_spec import VisionSpec
from sightline.errors import SightlineError

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# Families with small limits, so that both ends are met by small pictures.
SPECS = [
    VisionSpec(
        name, patch_size=patch, min_pixels=64 * 64, max_pixels=200 * 200, image_mean=mean, image_std=std
    )
    for name, patch, (mean, std) in (("qwen2_vl", 14, CLIP), ("qwen2_5_vl", 14, CLIP), ("qwen3_vl", 16, HALF))
]
families = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.model_type)

sides = st.integers(1, 400)


def their_processor(spec: VisionSpec) -> reference.Qwen2VLImageProcessorPil:
    return reference.Qwen2VLImageProcessorPil(
        size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels},
        patch_size=spec.patch_size,
        temporal_patch_size=spec.temporal_patch_size,
        merge_size=spec.merge_size,
        image_mean=list(spec.image_mean),
        image_std=list(spec.image_std),
        rescale_factor=spec.rescale_factor,
        resample=spec.resample,
    )


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def check_equal(spec: VisionSpec, picture: PIL.Image.Image) -> None:
    patches, grid = patch_image(spec, picture)
    theirs = their_processor(spec)(picture)
    assert list(grid) == theirs["image_grid_thw"][0].tolist()
    assert patches.dtype == np.float32
    assert patches.flags.c_contiguous
    np.testing.assert_array_equal(patches, theirs["pixel_values"])
    assert grid == image_grid(spec, *picture.size)


@given(
    st.integers(1, 20_000),
    st.integers(1, 20_000),
    st.sampled_from([28, 32, 14, 48]),
    st.integers(1, 2_000_000),
    st.integers(1, 16_777_216),
)
def test_smart_resize_equals_reference(height: int, width: int, factor: int, least: int, most: int) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    theirs = reference.smart_resize(height, width, factor, least, most)
    assert smart_resize(height, width, factor, least, most) == theirs


@given(st.integers(1, 5_000), st.integers(1, 5_000), st.sampled_from([28, 32]))
def test_smart_resize_keeps_its_promise(height: int, width: int, factor: int) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    least, most = 16 * factor**2, 1024 * factor**2
    new_height, new_width = smart_resize(height, width, factor, least, most)
    assert new_height % factor == new_width % factor == 0
    assert least <= new_height * new_width
    # A side shorter than a token is not shrunk further, so only such a picture may exceed the limit.
    assert new_height * new_width <= most or factor in (new_height, new_width)


@families
@given(width=st.integers(1, 8_000), height=st.integers(1, 8_000))
def test_grid_and_tokens_from_the_size_alone(spec: VisionSpec, width: int, height: int) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    grid = image_grid(spec, width, height)
    patches = their_processor(spec).get_number_of_image_patches(height, width)
    assert grid[0] * grid[1] * grid[2] == patches
    assert tokens(spec, grid) == patches // 4


@families
@settings(max_examples=40, deadline=None)
@given(width=sides, height=sides, seed=st.integers(0, 9))
def test_patches_equal_reference(spec: VisionSpec, width: int, height: int, seed: int) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    check_equal(spec, noise(width, height, seed))


@families
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (2, 399), (600, 3), (28, 28), (224, 160)])
def test_patches_of_extreme_shapes(spec: VisionSpec, size: tuple[int, int]) -> None:
    check_equal(spec, noise(*size))


@pytest.mark.parametrize("changed", [{"resample": 2}, {"rescale_factor": 1 / 127.5}, {"merge_size": 1}])
def test_patches_follow_other_settings(changed: dict[str, float]) -> None:
    spec = replace(SPECS[0], **changed)
    check_equal(spec, noise(131, 77))
    before, _ = patch_image(SPECS[0], noise(131, 77))
    assert not np.array_equal(before, patch_image(spec, noise(131, 77))[0])


@families
@pytest.mark.parametrize("limits", [(3136, 3136), (12_544, 602_112), (1, 1), (401_408, 401_408)])
def test_patches_at_other_limits(spec: VisionSpec, limits: tuple[int, int]) -> None:
    check_equal(replace(spec, min_pixels=limits[0], max_pixels=limits[1]), noise(301, 173))


def test_order_of_patches_from_first_principles() -> None:
    """Four windows of two by two patches of two by two pixels, each pixel naming its place."""
    spec = VisionSpec("qwen2_vl", patch_size=2, min_pixels=1, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    spec = replace(spec, rescale_factor=1.0)
    rows, columns = np.mgrid[0:8, 0:8]
    pixels = np.stack([rows, columns, rows * 8 + columns], axis=-1).astype(np.uint8)
    patches, grid = patch_image(spec, PIL.Image.fromarray(pixels))
    assert grid == (1, 4, 4)
    expected = []
    for window_row in (0, 4):
        for window_column in (0, 4):
            for row in (0, 2):
                for column in (0, 2):
                    top, left = window_row + row, window_column + column
                    patch = pixels[top : top + 2, left : left + 2]
                    expected.append(
                        [
                            value
                            for channel in range(3)
                            for _ in range(2)
                            for value in patch[..., channel].flat
                        ]
                    )
    assert patches.tolist() == expected


@families
def test_aspect_ratio_of_200_is_the_last_accepted(spec: VisionSpec) -> None:
    assert image_grid(spec, 200, 1)[0] == 1
    assert image_grid(spec, 3, 600)[0] == 1
    with pytest.raises(SightlineError, match=r"aspect ratio 201.0 of a 201x1 picture is above 200"):
        image_grid(spec, 201, 1)
    with pytest.raises(SightlineError, match="aspect ratio"):
        patch_image(spec, noise(3, 601))


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(SightlineError, match="0x5 picture has no pixels"):
        image_grid(SPECS[0], 0, 5)


def test_a_pictures_own_limits_come_first() -> None:
    spec = SPECS[0]
    picture = noise(500, 500)
    small = Image(picture, max_pixels=28 * 28)
    assert patch_image(spec, picture, small)[1] == image_grid(spec, 500, 500, small) == (1, 2, 2)
    large = Image(picture, max_pixels=448 * 448)
    assert image_grid(spec, 500, 500, large) == (1, 32, 32)
    wide = Image(picture, min_pixels=280 * 280, max_pixels=448 * 448)
    assert image_grid(spec, 100, 100, wide) == (1, 20, 20)


def test_other_modes_are_made_rgb() -> None:
    grey = noise(64, 64).convert("L")
    patches, _ = patch_image(SPECS[0], grey)
    np.testing.assert_array_equal(patches, patch_image(SPECS[0], grey.convert("RGB"))[0])
