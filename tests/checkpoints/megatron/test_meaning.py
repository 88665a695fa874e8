"""What the numbers mean: ranks that multiply their own parts and add up give what the transformers layer gives.

The reference knows nothing of the conversion: it takes MindSpeed-MM's files apart as Megatron does, every group of
`linear_qkv` as queries, one key, one value, and every `linear_fc1` as gate and up. It computes in float64; transformers
takes norms and softmax in float32, which is all that may differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_parts import FAMILIES, make_layout, rank_file
from tiny import make_config, make_model

from sightline.checkpoints.megatron.convert import hf_to_mm

Weights = dict[str, torch.Tensor]
RANKS = 2


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """[tokens, width] of one head; every token sees every one, and nothing is rotated."""
    return torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=-1) @ v


def attended(x: torch.Tensor, ranks: list[Weights], head_dim: int, queries: int) -> torch.Tensor:
    """Self-attention over tensor-parallel ranks; a group has `queries` heads of queries for one key and value."""
    total = torch.zeros_like(x)
    for rank in ranks:
        qkv = x @ rank["linear_qkv.weight"].T + rank["linear_qkv.bias"]
        heads = []
        for group in qkv.split((queries + 2) * head_dim, dim=1):
            *q, k, v = group.split(head_dim, dim=1)
            heads += [attention(one, k, v) for one in q]
        total += torch.cat(heads, dim=1) @ rank["linear_proj.weight"].T
    return total + ranks[0].get("linear_proj.bias", 0)


def gated(x: torch.Tensor, ranks: list[Weights]) -> torch.Tensor:
    total = torch.zeros_like(x)
    for rank in ranks:
        inner = x @ rank["linear_fc1.weight"].T + rank.get("linear_fc1.bias", 0)
        gate, up = inner.chunk(2, dim=1)
        total += (torch.nn.functional.silu(gate) * up) @ rank["linear_fc2.weight"].T
    return total + ranks[0].get("linear_fc2.bias", 0)


def plain(x: torch.Tensor, ranks: list[Weights]) -> torch.Tensor:
    total = torch.zeros_like(x)
    for rank in ranks:
        inner = x @ rank["linear_fc1.weight"].T + rank["linear_fc1.bias"]
        total += (inner * torch.sigmoid(1.702 * inner)) @ rank["linear_fc2.weight"].T
    return total + ranks[0]["linear_fc2.bias"]


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def parts(files: list[Weights], prefix: str) -> list[Weights]:
    return [
        {
            name.removeprefix(prefix): tensor.double()
            for name, tensor in file.items()
            if name.startswith(prefix)
        }
        for file in files
    ]


def within(ranks: list[Weights], prefix: str) -> list[Weights]:
    return parts(ranks, prefix)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("meaning")
    torch.manual_seed(3)
    model = make_model(request.param, seed=5)
    with torch.no_grad():  # norms that do something
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.resize_token_embeddings(396)  # two ranks share it
    # Freshly saved by the installed transformers: also the names that it writes today.
    model.save_pretrained(root / "hf")
    hf_to_mm(root / "hf", root / "mm", make_layout("1,1", "2,0", tp=RANKS))
    model = model.double()
    model.set_attn_implementation("eager")
    return request.param, model, root / "mm", make_config(request.param)


def files(folder: Path, stage: int) -> list[Weights]:
    return [rank_file(folder, f"mp_rank_0{rank}_00{stage}")["model"] for rank in range(RANKS)]


@torch.no_grad()
def test_a_layer_of_the_language_model(case: Any) -> None:
    _, model, folder, config = case
    text = config.text_config
    head_dim = text.hidden_size // text.num_attention_heads
    x = torch.randn(5, text.hidden_size, dtype=torch.float64)
    still = (
        torch.ones(1, 5, head_dim, dtype=torch.float64),
        torch.zeros(1, 5, head_dim, dtype=torch.float64),
    )
    layer = model.model.language_model.layers[1]
    expected = layer(x[None], position_embeddings=still, attention_mask=None)
    expected = (expected[0] if isinstance(expected, tuple) else expected)[0]
    ranks = parts(files(folder, 1), "text_decoder.decoder.layers.0.")  # the second layer, counted anew
    queries = text.num_attention_heads // text.num_key_value_heads
    eps = text.rms_norm_eps
    y = rms(x, ranks[0]["input_layernorm.weight"], eps)
    y = x + attended(y, within(ranks, "self_attention."), head_dim, queries)
    y = y + gated(rms(y, ranks[0]["pre_mlp_layernorm.weight"], eps), within(ranks, "mlp."))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_block_of_the_tower_and_the_projector(case: Any) -> None:
    family, model, folder, config = case
    vision, tower = config.vision_config, model.model.visual
    width = vision.embed_dim if family == "qwen2_vl" else vision.hidden_size
    head_dim = width // vision.num_heads
    x = torch.randn(8, width, dtype=torch.float64)
    still = (torch.ones(8, head_dim, dtype=torch.float64), torch.zeros(8, head_dim, dtype=torch.float64))
    expected = tower.blocks[1](x, cu_seqlens=torch.tensor([0, 8]), position_embeddings=still)
    ranks = parts(files(folder, 0), "image_encoder.encoder.blocks.layers.1.")
    eps = 1e-6

    def norm(value: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
        if family == "qwen2_5_vl":
            return rms(value, weights[f"{name}.weight"])
        shape = (value.shape[-1],)
        return torch.nn.functional.layer_norm(
            value, shape, weights[f"{name}.weight"], weights[f"{name}.bias"], eps
        )

    y = x + attended(norm(x, ranks[0], "input_layernorm"), within(ranks, "self_attention."), head_dim, 1)
    mlp = gated if family == "qwen2_5_vl" else plain
    y = y + mlp(norm(y, ranks[0], "pre_mlp_layernorm"), within(ranks, "mlp."))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)

    projected = tower.merger(x)
    ranks = parts(files(folder, 0), "image_encoder.projector.")
    y = norm(x, ranks[0], "layernorm").reshape(2, -1)
    total = torch.zeros(2, config.text_config.hidden_size, dtype=torch.float64)
    for rank in ranks:
        inner = y @ rank["encoder.linear_fc1.weight"].T + rank["encoder.linear_fc1.bias"]
        total += torch.nn.functional.gelu(inner) @ rank["encoder.linear_fc2.weight"].T
    torch.testing.assert_close(total + ranks[0]["encoder.linear_fc2.bias"], projected, atol=1e-5, rtol=1e-5)
