"""The patch embedding as a matrix product gives the convolution's numbers, and the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, make_model
from torch import nn

from sightline.models.loading import load_model
from sightline.models.rewrites import LinearPatchEmbed, apply_rewrites


@pytest.mark.parametrize("model_type", FAMILIES)
def test_linear_equals_convolution_with_gradients(model_type: str) -> None:
    model = make_model(model_type)
    convolution = model.model.visual.patch_embed
    linear = LinearPatchEmbed(convolution)
    patches = torch.randn(24, 3 * 2 * 14 * 14)
    weight = torch.randn(24, 32)
    expected, actual = convolution(patches), linear(patches)
    assert actual.shape == (24, 32)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
    parameters = list(convolution.parameters())
    wanted = torch.autograd.grad((expected * weight).sum(), parameters)
    given = torch.autograd.grad((actual * weight).sum(), list(linear.parameters()))
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_and_output_of_the_model_stay(model_type: str) -> None:
    model = make_model(model_type)
    names = list(model.state_dict())
    grid = torch.tensor([[1, 4, 6]])
    patches = torch.randn(24, 3 * 2 * 14 * 14)
    with torch.no_grad():
        before = model.model.get_image_features(patches, grid).pooler_output
        apply_rewrites(model)
        after = model.model.get_image_features(patches, grid).pooler_output
    assert isinstance(model.model.visual.patch_embed, LinearPatchEmbed)
    assert list(model.state_dict()) == names
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    apply_rewrites(model)  # a second time changes nothing
    assert isinstance(model.model.visual.patch_embed.proj, nn.Conv3d)


def test_saved_model_is_the_checkpoint_again(family_folder: Path, tmp_path: Path) -> None:
    load_model(family_folder, device="cpu", dtype="fp32").module.save_pretrained(tmp_path)
    before = load_file(family_folder / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("changes", [{"stride": 1}, {"padding": 1}])
def test_other_convolutions_are_refused(changes: dict[str, int]) -> None:
    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv3d(3, 8, kernel_size=2, **{"stride": 2, **changes})

    with pytest.raises(TypeError, match="steps by its kernel size"):
        LinearPatchEmbed(Embed())
