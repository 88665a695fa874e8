"""How much Ulysses sends, from the shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.video.parallel.layout import shares


@dataclass(frozen=True)
class Volume:
    """Elements that one rank puts into the all-to-alls of one self-attention.

    Attributes:
        elements: all of them: `4 * S * d / p` where tokens and heads divide.
        leaving: those for other ranks; `(p - 1) / p` of them.
    """

    elements: int
    leaving: int


def of_attention(tokens: int, heads: int, head_dim: int, size: int, rank: int = 0, batch: int = 1) -> Volume:
    """The volume of one layer and one call of the model.

    Args:
        tokens, heads, head_dim: S, N and D of the whole attention; d is N * D.
        size, rank: p, and which of the ranks.
    """
    rows, own = shares(tokens, size)[rank], shares(heads, size)[rank]
    into = 3 * batch * rows * head_dim  # queries, keys and values of the rank's tokens, a head
    back = batch * own * head_dim  # outputs of the rank's heads, a token
    return Volume(
        elements=into * heads + back * tokens,
        leaving=into * (heads - own) + back * (tokens - rows),
    )
