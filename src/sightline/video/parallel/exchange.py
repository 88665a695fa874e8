"""The two all-to-alls of Ulysses: from a rank's tokens with all heads to all tokens with the rank's heads, and back.

Source: DeepSpeed-Ulysses, https://arxiv.org/abs/2309.14509, section 3. Queries, keys and values travel together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sightline.errors import SightlineError
from sightline.video.parallel.layout import shares

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


class Exchange:
    """What one rank of a group sends and receives around self-attention.

    Numbers that do not divide are spread with `shares`: the first ranks hold one token or head more.

    Args:
        group: of the ranks, in the order of their tokens.
        rank, size: this one's number in it, and how many there are.
        heads: of the whole attention, at least `size`.

    Attributes:
        heads: of each rank.
        rows: tokens of each rank, set when a sequence is cut.
    """

    def __init__(self, group: ProcessGroup | None, rank: int, size: int, heads: int) -> None:
        self.group, self.rank, self.size = group, rank, size
        self.heads = shares(heads, size)
        self.rows: tuple[int, ...] = ()

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three [B, S_i, N, D] of this rank's tokens -> three [B, S, N_i, D] of its heads.

        They are copied once, into the buffer that is sent. What comes is in the order of the tokens as it arrives, so
        the results are views of it, contiguous only in their last two dimensions.
        """
        batch, rows, heads, width = query.shape
        self._check(rows, heads)
        packed = query.new_empty(3 * query.numel())
        for part, first, last in self._parts(packed, 3 * batch * rows * width):
            count, each = last - first, part.numel() // (3 * batch * rows * width * (last - first))
            chunks = part.view(count, rows, batch, 3, each, width)
            begin = sum(self.heads[:first])
            for which, tensor in enumerate((query, key, value)):
                chosen = tensor[:, :, begin : begin + count * each].unflatten(2, (count, each))
                chunks[:, :, :, which].copy_(chosen.permute(2, 1, 0, 3, 4))
        own = self.heads[self.rank]
        received = self._all_to_all(
            packed,
            [3 * batch * rows * width * each for each in self.heads],
            [3 * batch * own * width * each for each in self.rows],
        )
        whole = received.view(sum(self.rows), batch, 3, own, width).transpose(0, 1)
        return whole[:, :, 0], whole[:, :, 1], whole[:, :, 2]

    def to_tokens(self, output: Tensor) -> Tensor:
        """What attention gave for this rank's heads, [B, S, N_i, D] -> of its tokens with all heads, [B, S_i, N, D]."""
        batch, _, own, width = output.shape
        rows = self.rows[self.rank]
        received = self._all_to_all(
            output.transpose(0, 1).reshape(-1),
            [batch * own * width * each for each in self.rows],
            [batch * rows * width * each for each in self.heads],
        )
        whole = output.new_empty(batch, rows, sum(self.heads), width)
        for part, first, last in self._parts(received, batch * rows * width):
            count, each = last - first, part.numel() // (batch * rows * width * (last - first))
            begin = sum(self.heads[:first])
            chosen = whole[:, :, begin : begin + count * each].unflatten(2, (count, each))
            chosen.copy_(part.view(count, rows, batch, each, width).permute(2, 1, 0, 3, 4))
        return whole

    def _parts(self, buffer: Tensor, a_head: int) -> Iterator[tuple[Tensor, int, int]]:
        """The parts of a buffer whose ranks have equally many heads, so that one copy serves all of them: at most two.

        Yields (part, its first rank, the rank behind its last).
        """
        more = sum(each > self.heads[-1] for each in self.heads)
        for first, last in ((0, more), (more, self.size)):
            if last > first:
                begin, end = a_head * sum(self.heads[:first]), a_head * sum(self.heads[:last])
                yield buffer[begin:end], first, last

    def _all_to_all(self, packed: Tensor, sent: list[int], received: list[int]) -> Tensor:
        import torch.distributed as dist

        result = packed.new_empty(sum(received))
        dist.all_to_all_single(result, packed, received, sent, group=self.group)
        return result

    def _check(self, rows: int, heads: int) -> None:
        if heads != sum(self.heads) or not self.rows or rows != self.rows[self.rank]:
            raise SightlineError(
                f"rank {self.rank} has {rows} tokens with {heads} heads before self-attention, where the cut gave it "
                f"{self.rows[self.rank] if self.rows else 'none'} with {sum(self.heads)}; cut the model once, and "
                f"leave its sequence alone in between"
            )
