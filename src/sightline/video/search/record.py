"""What one probe of the model found out, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sightline.errors import SightlineError

WINDOW = 60  # steps whose outputs are related to one another; fits need 21, the sum of a plan's errors all
LONGEST = 6  # steps in a row that may be skipped


@dataclass(frozen=True)
class ProbeRecord:
    """One exact generation, looked at while it ran. B branches, S steps, N blocks.

    Attributes:
        outputs: mean products of the branches' velocities, [B, S, B, S]; NaN further apart than `WINDOW`.
        blocks: by branch, gap from 1 to `LONGEST` and step j, the mean products of how much what each block changes
            in its input moved from step j - gap to j: [B, LONGEST, S, N, N]. How far the change of the blocks a to b
            moved is the sum over that square. NaN where there is no step j - gap.
        attention: how much each block's self-attention output moved, mean squares, [B, LONGEST, S, N].
        sigmas: of the start of each step and of the end, [S + 1].
        final: mean square of the final latents, [1].
        call_seconds: of one call of the model by branch, [B].
        rest_seconds: of the loop outside of calls, [1].
        block_seconds: each block's share of a call, [N].
        attention_seconds: each block's self-attention's share of a call, [N].
    """

    outputs: np.ndarray
    blocks: np.ndarray
    attention: np.ndarray
    sigmas: np.ndarray
    final: np.ndarray
    call_seconds: np.ndarray
    rest_seconds: np.ndarray
    block_seconds: np.ndarray
    attention_seconds: np.ndarray

    def __post_init__(self) -> None:
        for each in fields(self):
            values = getattr(self, each.name)
            if np.isinf(values).any():
                raise SightlineError(
                    f"the exact generation is not finite ({each.name} of the probe); generate one video without a "
                    f"plan and look at it, and use --dtype fp32 if it is broken"
                )

    @property
    def steps(self) -> int:
        return int(self.outputs.shape[1])

    @property
    def block_count(self) -> int:
        return int(self.block_seconds.shape[0])

    def arrays(self) -> dict[str, np.ndarray]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> ProbeRecord:
        return cls(**{each.name: np.asarray(arrays[each.name]) for each in fields(cls)})
