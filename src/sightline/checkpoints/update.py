"""A tensor of a base with the changes of adapters in it, some rows at a time.

A linear map changes by `scale * B @ A`, which has rows where B has; maps that are stored as [in, out], and embeddings,
by its transpose. DoRA then gives every output the length that was trained, `m / |W + scale * B @ A|` (PEFT's
tuners/lora/dora.py, variants.py). All of it is done in float32, in float64 for a base in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.checkpoints.adapter import Adapter, Change, token_ids
from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch

Rows = Callable[[int, int], "torch.Tensor"]

_ROWS = 4096  # looked at together where lengths of columns are needed


@dataclass(frozen=True)
class Part:
    """What one adapter does to the tensor. `weight` 1 is the adapter as it was trained."""

    adapter: Adapter
    change: Change
    weight: float = 1.0


class Update:
    """
    Args:
        base: gives rows of the base's tensor, [last - first, columns], in its dtype.
        count: its rows.
        device: where the sums are made; None is the CPU.

    Raises:
        SightlineError: DoRA with another adapter on the same tensor, or with a weight.
    """

    def __init__(
        self, base: Rows, count: int, parts: Sequence[Part], device: torch.device | None = None
    ) -> None:
        self._base = base
        self._count = count
        self._terms = [_Term(part, device) for part in parts]
        self._device = device
        self._factors: torch.Tensor | None = None
        for term in self._terms:
            if term.magnitude is not None and (len(parts) > 1 or term.weight != 1):
                raise SightlineError(
                    f"{term.folder} is a DoRA adapter, which can only be merged alone and with weight 1; merge it "
                    "first, then the other adapters"
                )

    def rows(self, first: int, last: int) -> torch.Tensor:
        """[last - first, columns] in the base's dtype, on the CPU."""
        base = self._base(first, last)
        summed = self._summed(base, first, last)
        magnitude = next((term for term in self._terms if term.magnitude is not None), None)
        if magnitude is not None:
            summed = summed * self._lengths(magnitude, summed, first, last)
        return summed.to(base.dtype).cpu()

    def _summed(self, base: torch.Tensor, first: int, last: int) -> torch.Tensor:
        import torch

        kind = torch.float64 if base.dtype == torch.float64 else torch.float32
        total = base.to(self._device, kind, copy=True)
        for term in self._terms:
            term.add(total, base, first, last, alone=len(self._terms) == 1)
        return total

    def _lengths(self, term: _Term, summed: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """What DoRA multiplies rows by: [rows, 1], or [1, columns] where the outputs are columns."""
        import torch

        assert term.magnitude is not None
        if not term.turned:
            return (term.magnitude[first:last] / summed.norm(dim=1)).unsqueeze(1)
        if self._factors is None:
            squares = torch.zeros(summed.shape[1], device=summed.device, dtype=summed.dtype)
            for start in range(0, self._count, _ROWS):
                end = min(start + _ROWS, self._count)
                squares = squares + self._summed(self._base(start, end), start, end).square().sum(0)
            self._factors = (term.magnitude / squares.sqrt()).unsqueeze(0)
        return self._factors


class _Term:
    """The tensors of one part, in float32 on the device where sums are made."""

    def __init__(self, part: Part, device: torch.device | None) -> None:
        import torch

        adapter, change = part.adapter, part.change
        self.folder, self.weight = adapter.folder, part.weight
        self.turned = change.embedding or adapter.turned
        self._device = device
        self._scale = part.weight * change.scale

        def loaded(name: str | None) -> torch.Tensor | None:
            return None if name is None else adapter.store.get(name).to(device, torch.float32)

        down, up, magnitude = loaded(change.a), loaded(change.b), loaded(change.magnitude)
        self._down = None if down is None else down.reshape(len(down), -1)
        self._up = None if up is None else up.reshape(len(up), -1)
        self.magnitude = None if magnitude is None else magnitude.reshape(-1)
        self._tokens = loaded(change.tokens)
        self._ids = None if change.tokens is None else torch.tensor(token_ids(adapter, change))
        self._whole: Rows | None = None
        if change.whole is not None:
            entry = adapter.store.entries[change.whole]
            descriptor = adapter.store.descriptor(entry.file)
            self._whole = lambda first, last: entry.read_rows(descriptor, first, last)

    def add(self, total: torch.Tensor, base: torch.Tensor, first: int, last: int, *, alone: bool) -> None:
        """Add this part to `total`, in place. `base` are the same rows of the base; `alone` there is no other part."""
        if self._whole is not None:
            whole = self._whole(first, last).to(total.device, total.dtype)
            if alone and self.weight == 1:
                total.copy_(whole)
            else:
                total.add_(whole.sub_(base.to(total.device)), alpha=self.weight)
        if self._down is not None and self._up is not None:
            up, down = self._up.to(total.dtype), self._down.to(total.dtype)
            if self.turned:
                total.addmm_(down[:, first:last].T, up.T, alpha=self._scale)
            else:
                total.addmm_(up[first:last], down, alpha=self._scale)
        if self._ids is not None and self._tokens is not None:
            inside = (self._ids >= first) & (self._ids < last)
            places = self._ids[inside] - first
            trained = self._tokens[inside.to(total.device)].to(total.dtype)
            old = base[places].to(total.device, total.dtype)
            total[places.to(total.device)] += self.weight * (trained - old)
