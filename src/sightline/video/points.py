"""A part of the model in the current step: the plain fields that say what it does, and the arithmetic of doing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sightline.errors import SightlineError
from sightline.video.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

Values = tuple["Tensor", ...]


class Point:
    """One part of the model in the current step and branch.

    What is kept from step to step is the `StepCache`'s; in here are the fields of one step, set before it and read
    after it, so that a compiled model has few variants: it runs and stores, runs only, or is stood in for.

    Attributes:
        computes: whether it runs; if not, `predicted()` takes its place.
        stores: whether what it computes is kept.
        value: what this step computed, one tensor a stream.
        held: what earlier steps computed, oldest first, as far as this step asks for it.
        weights: of all of `held` but the newest, see `Directive`; of all of them where it is fitted.
        fitted: whether the value is the weighted sum of what is held.
    """

    def __init__(self, part: Site) -> None:
        self.part = part
        self.rest()

    def rest(self) -> None:
        """Outside of a step: run, keep nothing."""
        self.computes, self.stores, self.fitted = True, False, False
        self.value: Values = ()
        self.held: tuple[Values, ...] = ()
        self.weights: tuple[Tensor, ...] = ()
        self.entering: Values = ()

    def store(self, value: Values) -> None:
        """Keep what this step computed, if a later step asks for it."""
        if self.stores:
            self.value = value

    def predicted(self) -> Values:
        """What stands in for computing: the newest value, moved along the polynomial through the older ones; or the
        sum that was fitted, added up in float32 at least and rounded once."""
        if self.fitted:
            return tuple(_summed(stream, self.weights) for stream in zip(*self.held, strict=True))
        *older, newest = self.held
        result = []
        for stream, value in enumerate(newest):
            moved = value
            for weight, earlier in zip(self.weights, older, strict=True):
                moved = moved + weight * (earlier[stream] - value)
            result.append(moved)
        return tuple(result)

    def enter(self, streams: Values) -> None:
        """A range of blocks that will be computed begins, with this input."""
        if self.stores:
            self.entering = streams

    def leave(self, streams: Values) -> None:
        """It ends with this output: what is kept is the change."""
        if self.stores:
            if [each.shape for each in streams] != [each.shape for each in self.entering]:
                raise SightlineError(
                    f"{self.part} turns {_shapes(self.entering)} into {_shapes(streams)}, so its change cannot be "
                    f"kept; let the range begin where the sequence is already cut (attach the cache first, then "
                    f"what cuts the sequence)"
                )
            self.value = tuple(out - into for out, into in zip(streams, self.entering, strict=True))
            self.entering = ()

    def moved(self, streams: Values) -> Values:
        """A range of blocks that is not computed: its input and the change that stands in for it."""
        changes = self.predicted()
        if [each.shape for each in streams] != [each.shape for each in changes]:
            raise SightlineError(
                f"{self.part} holds a change of {_shapes(changes)} but is entered with {_shapes(streams)}; one "
                f"generation has one size"
            )
        return tuple(into + change for into, change in zip(streams, changes, strict=True))


class SharedAttention:
    """The first block's self-attention, which knows nothing of the prompt: one branch computes it for both."""

    def __init__(self) -> None:
        self.rest()

    def rest(self) -> None:
        self.gives, self.takes = False, False
        self.value: Tensor | None = None
        self.input: Tensor | None = None

    def see(self, latents: Tensor) -> None:
        """The model is called with these. Another tensor than the first branch's is not trusted to be equal."""
        if self.gives:
            self.input = latents
        elif self.input is not latents:
            self.takes = False


def _summed(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    import torch

    wide = torch.promote_types(values[0].dtype, torch.float32)
    total = weights[0] * values[0].to(wide)
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value.to(wide)
    return total.to(values[0].dtype)


def _shapes(streams: Sequence[Tensor]) -> str:
    return " and ".join("x".join(map(str, each.shape)) for each in streams)
