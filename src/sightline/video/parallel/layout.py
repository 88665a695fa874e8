"""Which rank of a group does what: guidance branches outermost, Ulysses inside.

With `ulysses` u and `cfg` 2, ranks 0 to u-1 compute the branch `cond` and ranks u to 2u-1 `uncond`; of each half every
rank holds a part of the tokens. Neighbouring ranks are the ones that send most to one another, and they are those of
one machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.errors import UsageError
from sightline.video.sites import BRANCHES

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Layout:
    """The place of this process. `Layout()` is a process alone, for which nothing is ever sent.

    Attributes:
        rank, world: number of this process among those that make the video, and how many there are.
        ulysses, cfg: over how many ranks tokens and guidance branches are spread; their product is `world`.
        everyone: all `world` ranks. None, as the other two, where it would hold this rank alone.
        ulysses_group: the ranks that share this rank's branch, in the order of their tokens.
        cfg_group: the two ranks that hold the same tokens, `cond` first.
    """

    rank: int = 0
    world: int = 1
    ulysses: int = 1
    cfg: int = 1
    everyone: ProcessGroup | None = None
    ulysses_group: ProcessGroup | None = None
    cfg_group: ProcessGroup | None = None

    @property
    def branches(self) -> tuple[str, ...]:
        """The guidance branches that this rank computes."""
        return BRANCHES if self.cfg == 1 else (BRANCHES[self.rank // self.ulysses],)

    @property
    def ulysses_rank(self) -> int:
        """Number of this rank in `ulysses_group`."""
        return self.rank % self.ulysses

    @property
    def leads(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def check_branches(self, branches: Collection[str]) -> None:
        """Refuse a generation in which a group of cards has nothing to compute.

        Raises:
            UsageError: there are two groups, and without guidance one branch.
        """
        if self.cfg > 1 and set(branches) != set(BRANCHES):
            raise UsageError(
                "without guidance there is one branch and nothing for the second group of cards: give "
                "--cfg-size 1, or a guidance scale above 1"
            )

    def mine(self, texts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the branches that this rank computes; raises what `check_branches` does."""
        self.check_branches(texts)
        return {branch: text for branch, text in texts.items() if branch in self.branches}

    def gather_branches(self, velocities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The velocities of all branches, of this rank's; on every rank the same, bit for bit.

        Args:
            velocities: by branch, [1, C, F, H, W].
        """
        if self.cfg == 1:
            return dict(velocities)
        from sightline.video.parallel.guidance import exchanged

        return exchanged(velocities, self)


def arranged(members: Sequence[int], ulysses: int, cfg: int) -> Layout | None:
    """Make the groups of a layout. Every process of torch.distributed's world calls this, in the same order where
    there are several layouts, as its groups are made by all together.

    Args:
        members: ranks of the world, which is initialised.

    Returns:
        This process's place; None if it is not a member.

    Raises:
        UsageError: there are not as many members as the sizes need.
    """
    import torch.distributed as dist

    check_sizes(len(members), ulysses, cfg)
    members = sorted(members)  # as torch.distributed orders a group
    halves = [members[start : start + ulysses] for start in range(0, len(members), ulysses)]
    pairs = [list(pair) for pair in zip(*halves, strict=True)]
    made: dict[tuple[int, ...], ProcessGroup | None] = {}
    for ranks in (members, *halves, *pairs):
        # Not a second connection between the same ranks: each holds memory on the card.
        if len(ranks) > 1 and tuple(ranks) not in made:
            whole = ranks == list(range(dist.get_world_size()))
            made[tuple(ranks)] = dist.group.WORLD if whole else dist.new_group(ranks)
    if dist.get_rank() not in members:
        return None
    rank = members.index(dist.get_rank())
    return Layout(
        rank=rank,
        world=len(members),
        ulysses=ulysses,
        cfg=cfg,
        everyone=made.get(tuple(members)),
        ulysses_group=made.get(tuple(halves[rank // ulysses])),
        cfg_group=made.get(tuple(pairs[rank % ulysses])),
    )


def check_sizes(world: int, ulysses: int, cfg: int) -> None:
    """Refuse sizes that `world` processes cannot be laid out in.

    Raises:
        UsageError: with the sizes that work.
    """
    if cfg not in (1, 2):
        raise UsageError(f"--cfg-size is 1 or 2, for there are two guidance branches, not {cfg}")
    if ulysses < 1:
        raise UsageError(f"--ulysses-size is a number of cards, 1 or more, not {ulysses}")
    if ulysses * cfg != world:
        choices = [f"--ulysses-size {world} --cfg-size 1"]
        if world % 2 == 0:
            choices.append(f"--ulysses-size {world // 2} --cfg-size 2")
        raise UsageError(
            f"--ulysses-size {ulysses} times --cfg-size {cfg} is {ulysses * cfg}, but there "
            f"{'is 1 process' if world == 1 else f'are {world} processes'}: give {' or '.join(choices)}, or start "
            f"{ulysses * cfg}"
        )


def shares(count: int, parts: int) -> tuple[int, ...]:
    """`count` things over `parts` ranks: the first ranks hold one more where it does not divide."""
    each, more = divmod(count, parts)
    return tuple(each + (part < more) for part in range(parts))
