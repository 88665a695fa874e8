"""One token of each row: the most likely, or one drawn by a number between 0 and 1.

Drawing is the inverse of the cumulated probabilities: number 0.3 takes the token at which their sum passes 0.3. The
tokens that may be drawn are those of temperature, then min_p, then top_k, then top_p; by definition the tokens are
ordered from the most likely down, equal ones by id, and each setting keeps a beginning of that order. Sums are
float64, where the device has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sightline.engine.sampling import penalties
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.sampling.penalties import LARGEST

MOST_SELECTED = 1024
"""Up to this top_k the tokens are selected; above, the row is treated like one without top_k."""
_LEAST_TEMPERATURE = 0.01  # below, float32 logits overflow; vLLM clamps at the same value
_BLOCK = 1024  # a row's cumulated sum is searched in two steps: among blocks, then inside one
_LOOKS = (128, 4096)  # most likely tokens that are looked at for top_p, before all are sorted
_ROWS_ON_DEVICE = 256  # rows in float32 at a time

Found = tuple[list[int], list[float]]
"""A token of each row, and the row's largest logit, which tells whether there could be one."""
Changes = Sequence["penalties.Change | None"]


def most_likely(logits: torch.Tensor) -> Found:
    """Each row's largest logit: its place (the first of equal ones) and its value, nan where a row holds one.

    Args:
        logits: float [R, V] in any dtype.
    """
    width = logits.shape[1]
    if logits.device.type != "cpu" or width < 2 * _BLOCK:
        tokens = logits.argmax(-1)
        return tokens.tolist(), logits.gather(1, tokens[:, None])[:, 0].tolist()
    # torch's argmax visits bfloat16 one by one; the maxima of blocks are vectorised, and nan is the largest there.
    whole = width // _BLOCK * _BLOCK
    maxima = logits[:, :whole].unflatten(1, (-1, _BLOCK)).amax(-1)
    if whole < width:
        maxima = torch.cat([maxima, logits[:, whole:].amax(-1, keepdim=True)], 1)
    tokens_found, peaks = [], []
    for row, block in enumerate(maxima.float().argmax(-1).tolist()):
        part = logits[row, block * _BLOCK : (block + 1) * _BLOCK].float()
        place = int(part.argmax())
        tokens_found.append(block * _BLOCK + place)
        peaks.append(float(part[place]))
    return tokens_found, peaks


class Drawer:
    """Draws tokens from rows of `width` logits on `device`."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._width = width
        self._device = device
        # On a CPU one row at a time: it stays in the core's cache, and its sums are the same in any batch.
        self._rows = 1 if device.type == "cpu" else _ROWS_ON_DEVICE
        # An NPU has no float64 to speak of.
        self._wide = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
        self._room = torch.zeros(0, 0, device=device)

    def most_likely(self, logits: torch.Tensor, changes: Changes) -> Found:
        """The largest of each row of [R, V] after its changes."""
        if not any(changes):
            return most_likely(logits)
        return _joined([most_likely(part) for part, _ in self._parts(logits, changes)])

    def among_top(
        self, logits: torch.Tensor, changes: Changes, settings: list[SamplingParams], numbers: list[float]
    ) -> Found:
        """Draw from rows that all have a `top_k` of at most MOST_SELECTED.

        Args:
            logits: float [R, V] in any dtype; not changed.
            changes: R of penalties.Change or None.
            numbers: R of [0, 1).
        """
        top_k = [min(params.top_k, self._width) for params in settings]
        values, ids = self._select(logits, changes, top_k)
        peaks = values[:, 0].tolist()
        places = torch.arange(values.shape[1], device=self._device)
        values.clamp_(max=LARGEST).masked_fill_(places >= self._column(top_k), -torch.inf)
        # topk leaves the order of equal ones open; by definition it is that of their ids.
        ids, order = ids.sort(-1)
        values, order = values.gather(1, order).sort(stable=True, dim=-1, descending=True)
        ids = ids.gather(1, order)
        weights = self._weigh(values, values[:, :1].clone(), settings)
        sums = weights.cumsum(-1)
        behind = sums - weights >= self._column([params.top_p for params in settings]) * sums[:, -1:]
        weights.masked_fill_(behind, 0)
        place = _find(weights.cumsum(-1), self._column(numbers))
        return ids.gather(1, place)[:, 0].tolist(), peaks

    def among_all(
        self, logits: torch.Tensor, changes: Changes, settings: list[SamplingParams], numbers: list[float]
    ) -> Found:
        """Draw from rows with any settings; arguments as `among_top`."""
        found = []
        for part, rows in self._parts(logits, changes):
            own = settings[rows]
            peak = part.amax(-1, keepdim=True)
            if bool((peak > LARGEST).any()):
                peak = part.clamp_(max=LARGEST).amax(-1, keepdim=True)
            weights = self._weigh(part, peak, own)
            for row, params in enumerate(own):
                if params.top_k > 0:
                    _keep_count(weights[row : row + 1], params.top_k)
            if any(params.top_p < 1 for params in own):
                self._keep_mass(weights, self._column([params.top_p for params in own]))
            found.append((self._drawn(weights, self._column(numbers[rows])), peak[:, 0].tolist()))
        return _joined(found)

    def _parts(self, logits: torch.Tensor, changes: Changes) -> Iterator[tuple[torch.Tensor, slice]]:
        """Rows in float32 with their changes, in room that the next part takes again, and which rows they are."""
        for start in range(0, len(logits), self._rows):
            rows = slice(start, min(start + self._rows, len(logits)))
            part = self._padded(rows.stop - start)[:, : self._width]
            part.copy_(logits[rows])
            own = {row: change for row, change in enumerate(changes[rows]) if change is not None}
            if own:
                penalties.apply(part, own)
            yield part, rows

    def _padded(self, rows: int) -> torch.Tensor:
        """float32 [rows, whole blocks]; behind the row's end there are zeros."""
        if len(self._room) < rows:
            width = -(-self._width // _BLOCK) * _BLOCK
            self._room = torch.zeros(rows, width, device=self._device)
        return self._room[:rows]

    def _select(
        self, logits: torch.Tensor, changes: Changes, top_k: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's most likely tokens, the first `top_k` of which are right: values and ids, [R, n]."""
        # One more than asked for shows whether equal ones were left out.
        size = min(max(top_k) + 1, self._width)
        values, ids = [], []
        whole = [(logits, slice(0, len(logits)))]
        for part, rows in self._parts(logits, changes) if any(changes) else whole:
            found = part.topk(size, dim=-1)
            for row in self._undecided(found.values, top_k[rows]):
                _take_first_of_equal(part[row], found.values[row], found.indices[row], top_k[rows][row])
            values.append(found.values.to(self._wide))
            ids.append(found.indices)
        return torch.cat(values), torch.cat(ids)

    def _undecided(self, values: torch.Tensor, top_k: list[int]) -> list[int]:
        """Rows in which a token behind the last one that counts is as likely as that one."""
        last = self._column(top_k).long().clamp(max=values.shape[1] - 1)
        cut = values.gather(1, last - 1)
        # What cannot come needs no order.
        equal = (values.gather(1, last) == cut) & (cut > -torch.inf)
        return [
            row
            for row, (same, count) in enumerate(zip(equal[:, 0].tolist(), top_k, strict=True))
            if same and count < values.shape[1]
        ]

    def _weigh(
        self, logits: torch.Tensor, peak: torch.Tensor, settings: list[SamplingParams]
    ) -> torch.Tensor:
        """Probabilities as shares of the most likely token's, [R, n], in the place of `logits`."""
        temperatures = [max(params.temperature, _LEAST_TEMPERATURE) for params in settings]
        logits.sub_(peak)
        if any(temperature != 1 for temperature in temperatures):
            logits.div_(self._column(temperatures).to(logits.dtype))
        weights = _exp_(logits)
        if any(params.min_p > 0 for params in settings):
            least = self._column([params.min_p for params in settings])
            weights.masked_fill_(weights < least.to(weights.dtype), 0)
        return weights

    def _keep_mass(self, weights: torch.Tensor, top_p: torch.Tensor) -> None:
        """Set to 0 what is behind the smallest set that reaches `top_p`, [R, 1], of each row's sum."""
        mass = top_p * self._block_sums(weights)[1].sum(-1, keepdim=True)
        for size in (*_LOOKS, self._width):
            top = _largest(weights, size).to(self._wide)
            sums = top.cumsum(-1)
            if size >= self._width or bool(((sums[:, -1:] >= mass) | (top_p >= 1)).all()):
                break
        kept = (sums - top < mass).sum(-1, keepdim=True).clamp(min=1)
        cut = top.gather(1, kept - 1)
        equal = kept - (top > cut).sum(-1, keepdim=True)
        _zero_behind(weights, cut.masked_fill(top_p >= 1, -1).float(), equal)

    def _drawn(self, weights: torch.Tensor, numbers: torch.Tensor) -> list[int]:
        """Tokens by weight, in the order of their ids."""
        blocks, sums = self._block_sums(weights)
        ends = sums.cumsum(-1)
        block = _find(ends, numbers)
        own = sums.gather(1, block)
        # How far into the block the number points: its own sums have other roundings than those of the blocks.
        share = ((numbers * ends[:, -1:] - (ends.gather(1, block) - own)) / own).clamp(0, 1)
        rows = torch.arange(len(weights), device=self._device)
        inner = blocks[rows, block[:, 0]].cumsum(-1, dtype=self._wide)
        return (block * _BLOCK + _find(inner, share))[:, 0].tolist()

    def _block_sums(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of `_parts` as [R, n, block], and their sums [R, n]."""
        blocks = self._padded(len(weights)).unflatten(1, (-1, _BLOCK))
        return blocks, blocks.sum(-1).to(self._wide)

    def _column(self, values: list[float] | list[int]) -> torch.Tensor:
        """[R, 1] in the width of sums."""
        return torch.tensor(values, dtype=self._wide, device=self._device)[:, None]


def _joined(found: list[Found]) -> Found:
    return [token for tokens, _ in found for token in tokens], [peak for _, peaks in found for peak in peaks]


def _exp_(values: torch.Tensor) -> torch.Tensor:
    """Exponentials in place. On a CPU numpy's: torch's are ten to fifty times as slow where they come near zero."""
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.exp_()
    numbers = values.numpy()
    np.exp(numbers, out=numbers)
    return values


def _find(sums: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """int64 [R, 1]: the first place at which `sums` [R, n] passes its number's share of the last one.

    It is never a place that adds nothing. Where a row is nan, any place.
    """
    # Below 1 by more than the product's rounding, so that the target lies before the end.
    target = numbers.clamp(max=1 - 4 * torch.finfo(sums.dtype).eps) * sums[:, -1:]
    return torch.searchsorted(sums, target, right=True).clamp(max=sums.shape[1] - 1)


def _take_first_of_equal(row: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, count: int) -> None:
    """Of tokens as likely as the last one selected, take those with the lowest ids, in place."""
    cut = values[count - 1]
    above = int((values > cut).sum())
    ids[above:count] = (row == cut).nonzero()[: count - above, 0]


def _keep_count(weights: torch.Tensor, count: int) -> None:
    """Set to 0 what is behind the `count` largest of [1, V]."""
    top = _largest(weights, min(count, weights.shape[1]))
    _zero_behind(weights, top[:, -1:], (top == top[:, -1:]).sum(-1, keepdim=True))


def _zero_behind(weights: torch.Tensor, cut: torch.Tensor, equal: torch.Tensor) -> None:
    """Set to 0 what is below `cut` [R, 1], and of those that equal it all but the first `equal` [R, 1]."""
    if weights.device.type != "cpu":
        return _zero_behind_together(weights, cut, equal)
    for row, least, count in zip(weights, cut[:, 0], equal[:, 0].tolist(), strict=True):
        _zero_row_behind(row, least, count)


def _zero_behind_together(weights: torch.Tensor, cut: torch.Tensor, equal: torch.Tensor) -> None:
    """The same without waiting for the device."""
    weights.masked_fill_(weights < cut, 0)
    same = weights == cut
    weights.masked_fill_(same & (same.cumsum(-1) > equal), 0)


def _zero_row_behind(weights: torch.Tensor, cut: torch.Tensor, equal: int) -> None:
    """The same for [V] on a CPU, where a masked fill takes ten times as long as a threshold."""
    below = float(torch.nextafter(cut, cut.new_tensor(-torch.inf)))
    torch.threshold_(weights, below, 0.0)
    places = np.flatnonzero(weights.numpy() == cut.item())
    if len(places) > equal:
        weights[torch.from_numpy(places[equal:])] = 0


def _largest(weights: torch.Tensor, size: int) -> torch.Tensor:
    """The `size` largest of each row, descending. numpy sorts with vector instructions, ten times as fast."""
    size = min(size, weights.shape[1])
    if weights.device.type != "cpu":
        return weights.topk(size).values if size < weights.shape[1] else weights.sort(descending=True).values
    values = weights.numpy()
    if size < weights.shape[1]:
        values = np.partition(values, weights.shape[1] - size)[:, -size:]
    return torch.from_numpy(np.sort(values)[:, ::-1].copy())
