"""Splitting diffusers' Wan decoder over ranks from outside: no line of the model is copied but its attention.

The one idea: a convolution that looks one line over the edge of its strip is given that line by the neighbour. It keeps
its own forward and is only handed a strip that is wider by one on every side, with zeros where the picture ends, and
padding of its own in time alone. All else in the decoder looks at one position of the picture (norms are over channels,
the sampling up copies each position to four), except the attention of the middle block, which is given the whole
picture for its keys and values. So every number is computed from the same numbers as in one process, and the frames
come one chunk after the other as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UsageError
from sightline.video.parallel.vae.strip import ROWS, Borders, Strip

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from sightline.video.parallel.layout import Layout

Forward = Callable[..., Any]


def split_decoder(
    vae: Any, group: ProcessGroup | None, rank: int, size: int, *, everywhere: bool = True
) -> SplitDecoder:
    """Let `vae.decode` compute one strip of the picture on each rank; see `SplitDecoder`."""
    return SplitDecoder(vae, group, rank, size, everywhere=everywhere)


@contextmanager
def split_over(vae: Any, layout: Layout) -> Iterator[None]:
    """`SplitDecoder` over all ranks of a layout for the length of a `with`; alone, nothing is changed."""
    if layout.world == 1:
        yield
        return
    split = split_decoder(vae, layout.everyone, layout.rank, layout.world)
    try:
        yield
    finally:
        split.undo()


class SplitDecoder:
    """An `AutoencoderKLWan` whose `decode` is spread over ranks, until `undo()`.

    Each rank calls `vae.decode` with the same whole latents and is given the whole video. The encoder is as it was.

    Args:
        vae: diffusers' `AutoencoderKLWan`, of Wan2.1 or Wan2.2.
        group: the ranks, of torch.distributed; None is all there are.
        rank, size: this rank's number among them, and how many they are.
        everywhere: give the whole video to every rank. Otherwise rank 0 alone has it, and `decode` of the others gives
            one of no frames. 81 frames of 832x480 are 388 MB in float32: over four ranks 1.2 GB are sent in all, or
            0.3 GB to rank 0 alone.

    Attributes:
        sent: bytes that this rank sent in the last decoding, by purpose: "borders", "attention", "pictures".

    Raises:
        SightlineError: the model is of another kind, is split already, or decodes in tiles.
    """

    def __init__(
        self, vae: Any, group: ProcessGroup | None, rank: int, size: int, *, everywhere: bool = True
    ) -> None:
        import torch
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d

        check_decoder(vae)
        self.vae, self.group, self.rank, self.size, self.everywhere = vae, group, rank, size, everywhere
        self.sent: dict[str, int] = {}
        self._strip: Strip | None = None
        self._kept: dict[int, Borders] = {}
        self._replaced: list[tuple[Any, str, Any, bool]] = []
        # In a list: what is replaced below is not to be walked into.
        for module in list(vae.decoder.modules()):
            if isinstance(module, WanAttentionBlock):
                self._replace(module, "forward", self._attention(module))
            elif isinstance(module, WanCausalConv3d) and module.kernel_size[ROWS] > 1:
                self._replace(module, "forward", self._causal(module, module.forward))
                self._replace(module, "_padding", (0, 0, 0, 0, *module._padding[4:]))
            elif isinstance(module, torch.nn.Conv2d) and module.kernel_size[ROWS] > 1:
                self._replace(module, "forward", self._flat(module.forward))
                self._replace(module, "padding", (0, 0))
        self._replace(vae, "_decode", self._decode(vae._decode))

    def undo(self) -> None:
        """Give the model back as it was. A second time does nothing.

        Raises:
            SightlineError: something else replaced a forward meanwhile; it has to go first.
        """
        for owner, name, new, *_ in self._replaced:
            if owner.__dict__.get(name) is not new[0]:
                raise SightlineError(
                    f"{type(owner).__name__}.{name} was replaced after the decoder was split; take that away first"
                )
        for owner, name, (_, old), had in reversed(self._replaced):
            if had:
                setattr(owner, name, old)
            else:
                delattr(owner, name)
        self._replaced.clear()

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        self._replaced.append((owner, name, (new, owner.__dict__.get(name)), name in owner.__dict__))
        setattr(owner, name, new)

    def _decode(self, decode: Forward) -> Forward:
        def split(z: Tensor, return_dict: bool = True) -> Any:
            from diffusers.models.autoencoders.vae import DecoderOutput

            _refuse_tiles(self.vae)
            self._strip = strip = Strip(z, self.group, self.rank, self.size)
            try:
                part = decode(strip.own(z)).sample
                sample = strip.gathered(part, "pictures", everywhere=self.everywhere)
            finally:
                self._strip = None
                self._kept.clear()
            self.sent = strip.sent
            return DecoderOutput(sample=sample) if return_dict else (sample,)

        split.of_split_decoder = True  # type: ignore[attr-defined]
        return split

    def _causal(self, convolution: Any, forward: Forward) -> Forward:
        """The model keeps the last frames of this strip for the next chunk; the lines next to them are kept here, so
        that no line is sent twice."""
        import torch
        from diffusers.models.autoencoders.autoencoder_kl_wan import CACHE_T

        def widened(x: Tensor, cache_x: Tensor | None = None) -> Tensor:
            strip = self._inside()
            lines = history = strip.borders(x)
            if cache_x is not None:
                kept = self._kept[id(convolution)]
                cache_x = _framed(cache_x, [line[:, :, -cache_x.shape[2] :] for line in kept], strip.axis)
                history = [torch.cat(pair, 2) for pair in zip(kept, lines, strict=True)]
            self._kept[id(convolution)] = [line[:, :, -CACHE_T:] for line in history]
            return forward(_framed(x, lines, strip.axis), cache_x)

        return widened

    def _flat(self, forward: Forward) -> Forward:
        def widened(x: Tensor) -> Tensor:
            strip = self._inside()
            return forward(_framed(x, strip.borders(x), strip.axis))

        return widened

    def _attention(self, block: Any) -> Forward:
        """Queries of the own strip over keys and values of the whole frame.

        What is sent is the input, half as much as keys and values; their projection is a small part of the work.
        """
        from torch.nn.functional import scaled_dot_product_attention

        def forward(x: Tensor) -> Tensor:
            strip = self._inside()
            frames = strip.gathered(x, "attention").transpose(1, 2).flatten(0, 1)
            q, k, v = block.to_qkv(block.norm(frames)).chunk(3, dim=1)
            q = strip.own(q)
            q_tokens, k_tokens, v_tokens = (
                each.flatten(2).transpose(1, 2).unsqueeze(1) for each in (q, k, v)
            )
            attended = scaled_dot_product_attention(q_tokens, k_tokens, v_tokens)
            attended = attended.squeeze(1).transpose(1, 2).reshape(q.shape)
            return x + block.proj(attended).unflatten(0, (x.shape[0], -1)).transpose(1, 2)

        return forward

    def _inside(self) -> Strip:
        if self._strip is None:
            raise SightlineError("this decoder is split over ranks; call the VAE's decode, not the decoder")
        return self._strip


def _framed(x: Tensor, lines: Borders, axis: int) -> Tensor:
    """A strip with one line more on each of its four sides: the neighbours' where it was cut, else zeros."""
    from torch.nn.functional import pad

    wide = pad(x, (1, 1, 1, 1))
    along = ROWS if axis != ROWS else -1
    inner = wide.narrow(along, 1, x.shape[along])
    inner.narrow(axis, 0, 1).copy_(lines[0])
    inner.narrow(axis, wide.shape[axis] - 1, 1).copy_(lines[1])
    return wide


def check_decoder(vae: Any) -> None:
    """Refuse a VAE that cannot be split.

    Raises:
        SightlineError: it is of another kind, is split already, or decodes in tiles.
    """
    import torch

    if type(vae).__name__ != "AutoencoderKLWan":
        raise SightlineError(
            f"a {type(vae).__name__} cannot be split over ranks, only diffusers' AutoencoderKLWan; decode on one rank"
        )
    if getattr(vae.__dict__.get("_decode"), "of_split_decoder", False):
        raise SightlineError("this VAE is split over ranks already; undo that first")
    _refuse_tiles(vae)
    for name, module in vae.decoder.named_modules():
        if not isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)) or set(module.kernel_size[-2:]) == {1}:
            continue
        # A causal convolution has its padding in an attribute of its own, from the last axis on.
        padding = tuple(getattr(module, "_padding", module.padding * 2)[:4])
        if (*module.kernel_size[-2:], *module.stride[-2:], *padding) != (3, 3, 1, 1, 1, 1, 1, 1):
            raise SightlineError(
                f"the VAE's decoder.{name} is no convolution of 3x3 with padding 1, as all of Wan's are; decode on one "
                f"rank"
            )


def _refuse_tiles(vae: Any) -> None:
    if vae.use_tiling:
        raise UsageError(
            "tiles of the VAE blend over seams, which decoding over ranks does not have, and both save memory: leave "
            "out --tile-vae (vae.disable_tiling()) or --vae-parallel"
        )
