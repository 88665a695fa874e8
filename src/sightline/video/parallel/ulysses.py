"""Ulysses in diffusers' Wan transformer, from outside: every rank holds a part of the tokens.

The sequence is cut behind the patch embedding and gathered behind the last projection, with hooks on these two, so the
blocks and whatever stands around them, a step cache for instance, only ever see this rank's tokens. Self-attention is
the one place where tokens meet; there the ranks exchange tokens for heads. Norms, feed-forward and cross-attention,
whose keys are the text, work a token at a time. Norms of queries and keys span all heads and come before the exchange.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UsageError
from sightline.video.parallel.exchange import Exchange
from sightline.video.parallel.layout import shares

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.video.parallel.layout import Layout


class Cut:
    """A transformer whose tokens are cut over the ranks of a layout, until `undo()`."""

    def __init__(self, transformer: Any, layout: Layout) -> None:
        self._handles: list[Any] = []
        self._processors: list[tuple[Any, Any]] = []
        if layout.ulysses == 1:
            return
        _check(transformer, layout.ulysses)
        heads = transformer.blocks[0].attn1.heads
        self.exchange = Exchange(layout.ulysses_group, layout.ulysses_rank, layout.ulysses, heads)
        self._handles = [
            transformer.rope.register_forward_hook(self._cut_positions),
            transformer.patch_embedding.register_forward_hook(self._cut_patches),
            transformer.condition_embedder.register_forward_hook(self._cut_times),
            transformer.proj_out.register_forward_hook(self._gather),
        ]
        for block in transformer.blocks:
            self._processors.append((block.attn1, block.attn1.processor))
            block.attn1.processor = _spread(block.attn1.processor, self.exchange)

    def undo(self) -> None:
        """Give the transformer back as it was. A second time does nothing."""
        for handle in self._handles:
            handle.remove()
        for attention, processor in self._processors:
            attention.processor = processor
        self._handles, self._processors = [], []

    def _cut_patches(self, module: Any, given: Any, patches: Tensor) -> Tensor:
        """[B, d, F, H, W] -> this rank's, [B, d, S_i, 1, 1], which the model flattens to a sequence."""
        if patches.requires_grad:
            raise SightlineError("Ulysses generates and does not train; call the model under torch.no_grad()")
        flat = patches.flatten(2)
        tokens, size = flat.shape[2], self.exchange.size
        if tokens < size:
            raise UsageError(
                f"a video of {tokens} tokens cannot be cut over {size} ranks; give --ulysses-size {tokens} or less"
            )
        self.exchange.rows = shares(tokens, size)
        return self._mine(flat, 2)[..., None, None]

    def _cut_positions(self, module: Any, given: Any, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Cosines and sines, [1, S, 1, D] each -> [1, S_i, 1, D]."""
        return tuple(self._mine(each, 1) for each in rotary)

    def _cut_times(self, module: Any, given: Any, embedded: tuple[Any, ...]) -> tuple[Any, ...]:
        """Time embeddings of each token, as Wan2.2 has them, [B, S, d]; those of a whole sample are left."""
        time, modulation, *texts = embedded
        if time.ndim == 3:
            time, modulation = self._mine(time, 1), self._mine(modulation, 1)
        return (time, modulation, *texts)

    def _mine(self, tensor: Tensor, dimension: int) -> Tensor:
        """This rank's part along the tokens' dimension, a view."""
        rows = shares(tensor.shape[dimension], self.exchange.size)
        return tensor.narrow(dimension, sum(rows[: self.exchange.rank]), rows[self.exchange.rank])

    def _gather(self, module: Any, given: Any, output: Tensor) -> Tensor:
        """What each rank made of its tokens, [B, S_i, C] -> [B, S, C] on every rank, the same bits."""
        import torch
        import torch.distributed as dist

        rows = self.exchange.rows
        # Gathering wants equal shapes: the shorter ones get a row behind.
        padded = torch.nn.functional.pad(output, (0, 0, 0, rows[0] - output.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded, group=self.exchange.group)
        return torch.cat([part[:, :count] for part, count in zip(parts, rows, strict=True)], dim=1)


def cut(transformer: Any, layout: Layout) -> Cut:
    """Cut the tokens of a `WanTransformer3DModel` over the ranks of `layout.ulysses_group`.

    Every rank calls the model with the same arguments and gets the same result, that of the whole model to rounding.
    A step cache may be attached before or after.

    Raises:
        UsageError: more ranks than heads, with the sizes that work; at a call, more ranks than tokens.
        SightlineError: the model is of another kind, or is cut already.
    """
    return Cut(transformer, layout)


def _across(exchange: Exchange, attend: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of this rank's heads over all tokens, between the two exchanges."""
    return exchange.to_tokens(attend(*exchange.to_heads(query, key, value)))


def _spread(processor: Any, exchange: Exchange) -> Any:
    """A processor like this one whose attention is spread; the one given stays as it is, blocks may share it."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    from sightline.video.wan_blocks import WanAttention

    if isinstance(processor, WanAttnProcessor):
        # diffusers' own calls attention by name; ours computes the same and takes the attention as a part.
        backend = processor._attention_backend
        spread = WanAttention(attend=functools.partial(dispatch_attention_fn, backend=backend))
    elif isinstance(processor, WanAttention):
        spread = copy.copy(processor)
    else:
        raise SightlineError(
            f"self-attention with a {type(processor).__name__} cannot be spread over ranks; use diffusers' or "
            f"sightline.video.wan_blocks' processor"
        )
    spread.attend = functools.partial(_across, exchange, spread.attend)
    return spread


def _check(transformer: Any, size: int) -> None:
    needed = ("rope", "patch_embedding", "condition_embedder", "blocks", "proj_out")
    missing = [name for name in needed if not hasattr(transformer, name)]
    if missing:
        raise SightlineError(
            f"a {type(transformer).__name__} has no {missing[0]}, as diffusers' Wan transformer has"
        )
    if getattr(transformer, "_parallel_config", None) is not None:
        raise SightlineError(
            "diffusers' enable_parallelism has cut the transformer; take one of the two, --ulysses-size or that"
        )
    heads = transformer.blocks[0].attn1.heads
    if size > heads:
        even = [str(each) for each in range(1, heads + 1) if heads % each == 0]
        raise UsageError(
            f"{heads} heads cannot be spread over {size} ranks; give --ulysses-size {heads} or less "
            f"({', '.join(even)} give each rank as many), and --cfg-size 2 for twice the cards"
        )
    attend = getattr(transformer.blocks[0].attn1.processor, "attend", None)
    if getattr(attend, "func", None) is _across:
        raise SightlineError("the transformer is cut already; undo() that first")
