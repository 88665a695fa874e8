"""How much a generation computes and moves at least, by part, from configurations and shapes alone.

Operations are those of matrix products and convolutions, two for a multiplication with its addition; what is not one
of these is under a hundredth of them and is limited by memory: it is counted in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sightline.errors import UsageError
from sightline.video.plan import Plan
from sightline.video.sites import BRANCHES, OUTPUT, Action, Kind, Site


@dataclass(frozen=True)
class Work:
    """Operations, and bytes that are read and written if everything that can be fused is."""

    operations: int = 0
    bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Work:
        return Work(self.operations * times, self.bytes * times)

    def seconds(self, rate: float, bandwidth: float = math.inf) -> float:
        """What a machine of `rate` operations and `bandwidth` bytes a second needs at least."""
        return max(self.operations / rate, self.bytes / bandwidth)


Parts = dict[str, Work]

#: The parts of a block that its self-attention consists of, and with it goes.
SELF = ("self_projections", "self_attention")


def block_work(config: Any, tokens: int, text: int = 512, *, batch: int = 1, size: int = 2) -> Parts:
    """One Wan block.

    Args:
        config: of a `WanTransformer3DModel`.
        tokens: S, of one video after patching.
        text: L, tokens of the prompt with their padding.
        size: bytes of a number.

    Returns:
        By part. `self_projections` moves what the norms of queries and keys and the rotary embedding move besides,
        `elementwise` what the other norms, the modulation and the residuals do; neither computes with it.
    """
    d, f = config.num_attention_heads * config.attention_head_dim, config.ffn_dim
    rows, words = batch * tokens, batch * text
    parts = {
        "self_projections": (8 * rows * d * d, 4 * d * d + 14 * rows * d),
        "self_attention": (4 * rows * tokens * d, 4 * rows * d),
        "cross_projections": (4 * (rows + words) * d * d, 4 * d * d + 6 * rows * d + 5 * words * d),
        "cross_attention": (4 * rows * text * d, 2 * (rows + words) * d),
        "ffn": (4 * rows * d * f, 2 * d * f + 2 * rows * (d + f)),
        "elementwise": (0, 15 * rows * d),
    }
    return {name: Work(operations, size * numbers) for name, (operations, numbers) in parts.items()}


def ends_work(config: Any, shape: Sequence[int], text: int = 512, *, size: int = 2) -> Parts:
    """What a forward computes before and behind its blocks: `embeddings` and `head`.

    Args:
        shape: of the latents, [B, C, F, H, W].
    """
    d = config.num_attention_heads * config.attention_head_dim
    batch, volume = shape[0], math.prod(config.patch_size)
    rows, words = batch * tokens_of(config, shape), batch * text
    patch, head = config.in_channels * volume, (config.out_channels or config.in_channels) * volume
    time = config.freq_dim * d + d * d + 6 * d * d
    prompt = config.text_dim * d + d * d
    embedded = Work(
        2 * (rows * patch * d + batch * time + words * prompt),
        size * (patch * d + time + prompt + rows * (patch + d) + words * (config.text_dim + 3 * d)),
    )
    return {
        "embeddings": embedded,
        "head": Work(2 * rows * d * head, size * (d * head + rows * (3 * d + head))),
    }


def forward_work(config: Any, shape: Sequence[int], text: int = 512, *, size: int = 2) -> Parts:
    """One call of the transformer, all of it.

    Args:
        config: of a `WanTransformer3DModel`.
        shape: of the latents, [B, C, F, H, W].
        text: tokens of the prompt with their padding.
        size: bytes of a number.
    """
    block = block_work(config, tokens_of(config, shape), text, batch=shape[0], size=size)
    blocks = {name: work * config.num_layers for name, work in block.items()}
    return blocks | ends_work(config, shape, text, size=size)


def tokens_of(config: Any, shape: Sequence[int]) -> int:
    """S of latents [B, C, F, H, W]."""
    return math.prod(side // patch for side, patch in zip(shape[2:], config.patch_size, strict=True))


def latents_of(config: Any, width: int, height: int, frames: int, vae: Any = None) -> tuple[int, ...]:
    """The shape of a video's latents, [1, C, F, H, W].

    Args:
        config: of the transformer.
        vae: configuration of the VAE; Wan2.1's factors of 8 in space and 4 in time without it.
    """
    space = 8 if vae is None else vae.scale_factor_spatial
    time = 4 if vae is None else vae.scale_factor_temporal
    return (1, config.in_channels, (frames - 1) // time + 1, height // space, width // space)


def denoising_work(
    config: Any,
    shape: Sequence[int],
    steps: int,
    text: int = 512,
    *,
    branches: Sequence[str] = BRANCHES,
    plan: Plan | None = None,
    share: bool = True,
    size: int = 2,
) -> Parts:
    """All calls of the transformer in a generation.

    Args:
        shape: of the latents, [1, C, F, H, W].
        branches: of guidance; only the first without it.
        plan: whose skipped parts are not counted.
        share: the first block's self-attention is computed once where both branches compute it, as a `StepCache`
            does.

    Raises:
        UsageError: the plan has another number of steps.
    """
    if plan is not None and plan.steps != steps:
        raise UsageError(
            f"the plan has {plan.steps} steps and the generation {steps}; count it with {plan.steps}"
        )
    block = block_work(config, tokens_of(config, shape), text, batch=shape[0], size=size)
    ends = ends_work(config, shape, text, size=size)
    counted = dict.fromkeys((*block, *ends), 0)
    for step in range(steps):
        ran = [_blocks_run(plan, branch, step, config.num_layers) for branch in branches]
        shared = share and len(ran) > 1 and all(attention and attention[0] for _, attention in ran)
        for whole, attention in ran:
            for name in block:
                counted[name] += sum(attention if name in SELF else whole)
            for name in ends:
                counted[name] += bool(whole)
        for name in SELF:
            counted[name] -= shared * (len(ran) - 1)
    return {name: work * counted[name] for name, work in (block | ends).items()}


def text_work(config: Any, tokens: int = 512, *, batch: int = 1, size: int = 2) -> Work:
    """A UMT5 encoder over prompts padded to `tokens`.

    Args:
        config: of transformers' `UMT5EncoderModel`.
    """
    inner = config.num_heads * config.d_kv
    products = 4 * config.d_model * inner + (3 if config.is_gated_act else 2) * config.d_model * config.d_ff
    rows = batch * tokens
    layer = Work(2 * rows * products + 4 * rows * tokens * inner, size * products)
    return layer * config.num_layers


def decode_work(config: Any, shape: Sequence[int], *, size: int = 4) -> Work:
    """Decoding latents with Wan2.1's VAE, frame after frame as it does, not in tiles.

    Args:
        config: of an `AutoencoderKLWan`.
        shape: of the latents, [B, C, F, H, W].

    Raises:
        UsageError: it is the VAE of Wan2.2, which is built otherwise.
    """
    if getattr(config, "is_residual", False):
        raise UsageError("the operations of Wan2.2's VAE are not counted; count Wan2.1's")
    layers = _Layers(size)
    batch, _, frames, height, width = shape
    area, base = height * width, getattr(config, "decoder_base_dim", None) or config.base_dim
    widths = [base * factor for factor in (config.dim_mult[-1], *config.dim_mult[::-1])]
    layers.convolve(config.z_dim, config.z_dim, 1, frames * area)
    layers.convolve(config.z_dim, widths[0], 27, frames * area)
    layers.residual(widths[0], widths[0], frames * area)
    layers.attend(widths[0], frames, area)
    layers.residual(widths[0], widths[0], frames * area)
    doubled = config.temperal_downsample[::-1]
    last = len(config.dim_mult) - 1
    for level, (given, made) in enumerate(pairwise(widths)):
        given = given if level == 0 else given // 2
        for number in range(config.num_res_blocks + 1):
            layers.residual(given if number == 0 else made, made, frames * area)
        if level == last:
            break
        if doubled[level]:
            layers.convolve(made, 2 * made, 3, (frames - 1) * area)  # the first frame stays one
            frames = 2 * frames - 1
        area *= 4
        layers.convolve(made, made // 2, 9, frames * area)
    layers.convolve(widths[-1], config.out_channels, 27, frames * area)
    return layers.work * batch


def total(parts: Mapping[str, Work]) -> Work:
    """All parts together."""
    return sum(parts.values(), Work())


class _Layers:
    """Adds up the layers of a decoder."""

    def __init__(self, size: int) -> None:
        self.size, self.work = size, Work()

    def convolve(self, given: int, made: int, kernel: int, places: int) -> None:
        """A convolution with `kernel` numbers for each pair of channels, at so many places of its output."""
        moved = given * made * kernel + (given + made) * places
        self.work += Work(2 * given * made * kernel * places, self.size * moved)

    def residual(self, given: int, made: int, places: int) -> None:
        self.convolve(given, made, 27, places)
        self.convolve(made, made, 27, places)
        if given != made:
            self.convolve(given, made, 1, places)

    def attend(self, width: int, frames: int, area: int) -> None:
        """Attention of each frame's places to each other, one head."""
        self.convolve(width, 3 * width, 1, frames * area)
        self.work += Work(4 * frames * area * area * width, self.size * 4 * frames * area * width)
        self.convolve(width, width, 1, frames * area)


def _blocks_run(plan: Plan | None, branch: str, step: int, layers: int) -> tuple[list[bool], list[bool]]:
    """Which blocks run in a step, and which of their self-attentions; empty lists where the model is not run."""
    skipped = [
        site
        for site, actions in (plan.actions.get(branch, {}) if plan is not None else {}).items()
        if actions[step] is not Action.COMPUTE
    ]
    if OUTPUT in skipped:
        return [], []
    whole = [not _within(block, skipped, Kind.BLOCKS) for block in range(layers)]
    return whole, [ran and not _within(block, skipped, Kind.ATTENTION) for block, ran in enumerate(whole)]


def _within(block: int, sites: Sequence[Site], kind: Kind) -> bool:
    return any(site.kind is kind and site.start <= block < site.stop for site in sites)
