"""The loss at supervised tokens is the plain model's loss at all of them, whatever the batching."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import draw
from tiny import FAMILIES, make_model_folder
from torch import nn

from sightline.data.conversation import Conversation, Image, Message, Text, Video
from sightline.models import attention
from sightline.models.loading import load_model
from sightline.models.prompt import IGNORED
from sightline.training import loss as loss_module
from sightline.training.dataset import collate
from sightline.training.loss import install_token_loss, token_loss


def conversations(folder: Path) -> list[Conversation]:
    """Two images of other sizes, a clip of three frames, no medium, and two turns: all of other lengths."""
    first, second = (
        Image(str(folder / draw(folder / f"{n}.png", 56 + 28 * n, 84, "red", n))) for n in (0, 1)
    )
    frames = tuple(str(folder / draw(folder / f"f{n}.png", 56, 56, "blue", n)) for n in range(3))

    def talk(*parts: Any, answer: str) -> list[Message]:
        return [Message("user", list(parts)), Message("assistant", [Text(answer)])]

    return [
        Conversation(talk(first, Text("what?"), answer="a red circle on the left, the lazy dog" * 2)),
        Conversation(talk(Text("compare "), second, first, answer="no")),
        Conversation(talk(Text("hello"), answer="the quick brown fox")),
        Conversation(talk(Video(frames, fps=2.0), Text("what moves?"), answer="blue square")),
        Conversation(talk(first, Text("one"), answer="yes") + talk(Text("two"), answer="no no no")),
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(plain transformers model, the same with our loss and attention, encoded samples)"""
    folder = tmp_path_factory.mktemp(request.param)
    model_folder = make_model_folder(folder / "model", request.param)
    loaded = load_model(model_folder, device="cpu", dtype="fp32", attention=attention.register())
    plain = loaded.processor.family.model_class().from_pretrained(model_folder, dtype=torch.float32).eval()
    install_token_loss(loaded.module)
    encoded = [loaded.processor.encode(item, supervise=True) for item in conversations(folder)]
    return plain, loaded.module, encoded


def plain_sum(model: Any, item: Any) -> torch.Tensor:
    """The summed loss of one sample by the model's own forward, which works out its own positions."""
    inputs = {
        name: getattr(item, name)
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
        if getattr(item, name) is not None
    }
    if item.second_per_grid_ts and model.config.model_type == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor(item.second_per_grid_ts)
    result = model(
        input_ids=item.input_ids[None],
        attention_mask=torch.ones_like(item.input_ids)[None],
        mm_token_type_ids=item.kinds[None],
        labels=item.labels[None],
        **inputs,
    )
    assert result.logits.shape[1] == len(item.input_ids)  # the head was computed at every position
    return result.loss * int((item.labels[1:] != IGNORED).sum())


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_padded_batch_equals_the_plain_model_one_by_one(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours, encoded = case
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 3)
    plain.zero_grad()
    ours.zero_grad()
    expected = sum(plain_sum(plain, item) for item in encoded)
    expected.backward()
    batch = collate(encoded)
    actual = ours(**batch, num_items_in_batch=1)["loss"]
    actual.backward()
    assert batch["input_ids"].shape[1] > min(len(item.input_ids) for item in encoded)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
    wanted, given = gradients(plain), gradients(ours)
    assert wanted.keys() == given.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max()) or 1.0
        torch.testing.assert_close(given[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_loss_without_count_is_the_mean(case: Any) -> None:
    _, ours, encoded = case
    batch = collate(encoded)
    tokens = sum(int((item.labels != IGNORED).sum()) for item in encoded)
    with torch.no_grad():
        mean = ours(**batch)["loss"]
        total = ours(**batch, num_items_in_batch=1)["loss"]
    torch.testing.assert_close(mean * tokens, total)


def test_other_samples_of_the_batch_change_nothing(case: Any) -> None:
    _, ours, encoded = case
    with torch.no_grad():
        alone = sum(ours(**collate([item]), num_items_in_batch=1)["loss"] for item in encoded)
        together = ours(**collate(encoded), num_items_in_batch=1)["loss"]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 7, 20, 1024])
def test_chunks_equal_one_cross_entropy(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", rows)
    head = nn.Linear(8, 50)
    hidden = torch.randn(2, 10, 8, requires_grad=True)
    targets = torch.randint(0, 50, (2, 10))
    targets[0, 3:7] = targets[1, -1] = IGNORED
    expected = nn.functional.cross_entropy(
        head(hidden).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED
    )
    wanted = torch.autograd.grad(expected, [hidden, *head.parameters()])
    actual = token_loss(hidden, targets, head)
    given = torch.autograd.grad(actual, [hidden, *head.parameters()])
    torch.testing.assert_close(actual, expected)
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_head_meets_supervised_rows_only_and_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 4)
    seen: list[int] = []

    class Head(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            seen.append(len(states))
            return super().forward(states)

    targets = torch.full((3, 20), IGNORED)
    targets[1, 5:14] = 1
    with torch.no_grad():
        token_loss(torch.randn(3, 20, 8), targets, Head(8, 5))
    assert seen == [4, 4, 1]


def test_no_supervised_row_gives_a_loss_of_zero_with_gradient_path() -> None:
    head = nn.Linear(8, 5)
    total = token_loss(torch.randn(1, 3, 8), torch.full((1, 3), IGNORED), head)
    assert float(total) == 0.0


def test_bf16_head_is_scored_in_float32() -> None:
    head = nn.Linear(16, 300).bfloat16()
    hidden = torch.randn(1, 6, 16).bfloat16()
    targets = torch.randint(0, 300, (1, 6))
    expected = nn.functional.cross_entropy(head(hidden).float()[0], targets[0], reduction="sum")
    actual = token_loss(hidden, targets, head)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)


def test_forward_survives_a_deep_copy_of_inputs(case: Any) -> None:
    _, ours, encoded = case
    batch = collate(encoded[:2])
    before = {name: tensor.clone() for name, tensor in copy.copy(batch).items()}
    with torch.no_grad():
        ours(**batch)
    assert all(batch[name].equal(before[name]) for name in before)
