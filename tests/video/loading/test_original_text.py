"""The text encoder of transformers, with the authors' weights in it, computes what theirs does."""

from __future__ import annotations

import math
from pathlib import Path

import original_wan
import pytest
import torch
import torch.nn.functional as F

from sightline.errors import SightlineError
from sightline.video.loading.load import open_text_encoder

HEADS, BUCKETS = 3, 8


def bucket(distance: torch.Tensor) -> torch.Tensor:
    """T5's bucket of a distance from query to key: half of them for keys behind, half of each half exact,
    and the rest by the logarithm up to 128."""
    half = BUCKETS // 2
    exact = half // 2
    size = distance.abs()
    far = exact + (torch.log(size.clamp(min=1) / exact) / math.log(128 / exact) * (half - exact)).long()
    return (distance > 0) * half + torch.where(size < exact, size, far.clamp(max=half - 1))


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def encoded(state: dict[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The encoder's definition (wan/modules/t5.py), a head at a time. ids, mask [L]; gives [L, D]."""
    x = state["token_embedding.weight"][ids]
    place = torch.arange(len(ids))
    buckets = bucket(place[None, :] - place[:, None])
    for block in range(2):
        own = {
            name.split(".", 2)[2]: value
            for name, value in state.items()
            if name.startswith(f"blocks.{block}.")
        }
        inside = norm(x, own["norm1.weight"])
        query, key, value = (F.linear(inside, own[f"attn.{name}.weight"]).chunk(HEADS, -1) for name in "qkv")
        heads = []
        for head in range(HEADS):
            scores = query[head] @ key[head].T + own["pos_embedding.embedding.weight"][buckets, head]
            scores = scores.masked_fill(mask[None, :] == 0, torch.finfo(scores.dtype).min)
            heads.append(scores.softmax(-1) @ value[head])
        x = x + F.linear(torch.cat(heads, -1), own["attn.o.weight"])
        inside = norm(x, own["norm2.weight"])
        gate = F.gelu(F.linear(inside, own["ffn.gate.0.weight"]), approximate="tanh")
        x = x + F.linear(F.linear(inside, own["ffn.fc1.weight"]) * gate, own["ffn.fc2.weight"])
    return norm(x, state["norm.weight"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(original_wan.text_state(original_wan.make_text_encoder()), tmp_path / "text.pth")
    return tmp_path / "text.pth"


def test_transformers_encodes_as_the_definition_does(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    model = open_text_encoder(file, None, torch.float32).fill(torch.device("cpu"))
    ids = torch.randint(0, original_wan.TOKENS, (300,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(300) < 260).long()
    with torch.no_grad():
        given = model(ids[None], attention_mask=mask[None]).last_hidden_state[0]
    expected = encoded(state, ids, mask)
    torch.testing.assert_close(given[:260], expected[:260], rtol=1e-4, atol=5e-5)
    # It would not be so with gate and linear part the wrong way round.
    for block in range(2):
        names = [f"blocks.{block}.ffn.{name}.weight" for name in ("gate.0", "fc1")]
        state[names[0]], state[names[1]] = state[names[1]], state[names[0]]
    assert (encoded(state, ids, mask)[:260] - expected[:260]).abs().max() > 0.01


def test_the_embedding_is_there_once(file: Path) -> None:
    model = open_text_encoder(file, None, torch.bfloat16).fill(torch.device("cpu"))
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.shared.weight.abs().sum() > 0
    assert not any(weights.requires_grad for weights in model.parameters())
    assert not model.training


def test_sizes_that_do_not_fit_one_another(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    name = "blocks.0.pos_embedding.embedding.weight"
    torch.save({**state, name: torch.zeros(8, 5)}, file)
    with pytest.raises(SightlineError, match="5 heads do not divide the 24 rows"):
        open_text_encoder(file, None, torch.float32)
    torch.save({**state, name: torch.zeros(8)}, file)
    with pytest.raises(SightlineError, match="should have 2 dimensions"):
        open_text_encoder(file, None, torch.float32)
    torch.save({key: value for key, value in state.items() if key != name}, file)
    with pytest.raises(SightlineError, match="has no tensor encoder.block.0.*it is not the file"):
        open_text_encoder(file, None, torch.float32)


def test_one_table_of_positions_for_all_blocks_is_another_encoder(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    torch.save({**state, "pos_embedding.embedding.weight": torch.zeros(8, 3)}, file)
    with pytest.raises(SightlineError, match="no tensor of Wan's text encoder"):
        open_text_encoder(file, None, torch.float32)
