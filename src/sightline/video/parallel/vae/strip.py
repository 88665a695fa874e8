"""A rank's strip of the picture, and what strips ask of one another.

The picture is cut across its longer side: of a 832x480 picture every rank holds some columns. The borders are shorter
that way, and the longer side divides more evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UsageError
from sightline.video.parallel.layout import shares

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

Borders = Sequence["Tensor"]  # before the strip and after it
ROWS, COLUMNS = -2, -1


def longer_side(shape: Sequence[int]) -> int:
    """The axis that is cut: `COLUMNS`, or `ROWS` of a picture that is higher than wide."""
    return ROWS if shape[ROWS] > shape[COLUMNS] else COLUMNS


def check_strips(width: int, height: int, size: int) -> None:
    """Refuse latents that are smaller than the ranks are many.

    Raises:
        UsageError: with the number of ranks that works.
    """
    if max(width, height) < size:
        raise UsageError(
            f"latents of {width}x{height} cannot be decoded by {size} ranks, for each takes a strip of the longer "
            f"side; leave out --vae-parallel, or take {max(width, height)} ranks or fewer or a larger picture"
        )


class Strip:
    """The part of one rank, for the length of a decoding.

    Args:
        latents: [B, C, F, H, W], the same on every rank.
        group: ranks of torch.distributed that decode together; None is all there are.
        rank, size: this rank's number among them, and how many they are.

    Attributes:
        axis: `ROWS` or `COLUMNS`.
        lengths: rows or columns of the latents that each rank holds.
        sent: bytes that this rank sent so far, by purpose: "borders", "attention", "pictures".

    Raises:
        UsageError: there are more ranks than rows or columns.
        SightlineError: the ranks hold latents of different shapes or dtypes.
    """

    def __init__(self, latents: Tensor, group: ProcessGroup | None, rank: int, size: int) -> None:
        self.group, self.rank, self.size = group, rank, size
        _agree(latents, group, size)
        self.axis = longer_side(latents.shape)
        check_strips(latents.shape[COLUMNS], latents.shape[ROWS], size)
        self.lengths = shares(latents.shape[self.axis], size)
        self.sent = {"borders": 0, "attention": 0, "pictures": 0}

    def own(self, whole: Tensor) -> Tensor:
        """This rank's strip of a whole picture, at the resolution of the latents."""
        return whole.narrow(self.axis, sum(self.lengths[: self.rank]), self.lengths[self.rank])

    def borders(self, strip: Tensor) -> Borders:
        """The neighbours' lines next to this strip, before it and after it; zeros at the edge of the picture.

        Args:
            strip: [..., H, W]; the lines have one row or column of it.
        """
        import torch

        first = strip.narrow(self.axis, 0, 1).contiguous()
        last = strip.narrow(self.axis, strip.shape[self.axis] - 1, 1).contiguous()
        before, after = torch.zeros_like(first), torch.zeros_like(last)
        sends, receives = {}, {}
        if self.rank > 0:
            sends[self.rank - 1], receives[self.rank - 1] = first, before
        if self.rank < self.size - 1:
            sends[self.rank + 1], receives[self.rank + 1] = last, after
        self._exchange("borders", sends, receives)
        return before, after

    def gathered(self, strip: Tensor, purpose: str, *, everywhere: bool = True) -> Tensor:
        """The whole picture of everyone's strips, at any resolution.

        Args:
            everywhere: on every rank; otherwise on rank 0 alone, and the others are given a tensor of no frames.
        """
        import torch

        strip = strip.contiguous()
        scale = strip.shape[self.axis] // self.lengths[self.rank]
        others = [rank for rank in range(self.size) if rank != self.rank]
        takers = others if everywhere else [rank for rank in others if rank == 0]
        receives = {}
        if everywhere or self.rank == 0:
            for rank in others:
                shape = list(strip.shape)
                shape[self.axis] = self.lengths[rank] * scale
                receives[rank] = strip.new_empty(shape)
        self._exchange(purpose, dict.fromkeys(takers, strip), receives)
        if not everywhere and self.rank != 0:
            shape = list(strip.shape)
            shape[2], shape[self.axis] = 0, sum(self.lengths) * scale
            return strip.new_empty(shape)
        return torch.cat(
            [strip if rank == self.rank else receives[rank] for rank in range(self.size)], self.axis
        )

    def _exchange(self, purpose: str, sends: dict[int, Tensor], receives: dict[int, Tensor]) -> None:
        import torch.distributed as dist

        group = self.group or dist.group.WORLD
        assert group is not None

        def transfers(operation: Callable[..., Any], tensors: dict[int, Tensor]) -> list[dist.P2POp]:
            return [
                dist.P2POp(operation, tensor, dist.get_global_rank(group, rank), group)
                for rank, tensor in tensors.items()
            ]

        wanted = transfers(dist.isend, sends) + transfers(dist.irecv, receives)
        for request in dist.batch_isend_irecv(wanted) if wanted else ():
            request.wait()
        self.sent[purpose] += sum(each.numel() * each.element_size() for each in sends.values())


def _agree(latents: Tensor, group: ProcessGroup | None, size: int) -> None:
    """Ranks with latents of different shapes would wait for lines that never come."""
    import torch
    import torch.distributed as dist

    own = torch.tensor([*latents.shape, latents.element_size()], device=latents.device)
    every = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(every, own, group=group)
    shapes = [tuple(each.tolist()) for each in every]
    for rank, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise SightlineError(
                f"rank 0 decodes latents of shape {list(shapes[0][:-1])} with {shapes[0][-1]} bytes a number and rank "
                f"{rank} of {list(shape[:-1])} with {shape[-1]}; give every rank the same"
            )
