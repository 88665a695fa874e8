"""One token of each row: the most likely, or one drawn by a number between 0 and 1.

Drawing is the inverse of the cumulated probabilities: number 0.3 takes the token at which their sum passes 0.3. The
tokens that may be drawn are those of temperature, then min_p, then top_k, then top_p; by definition the tokens are
ordered from the most likely down, equal ones by id, and each setting keeps a beginning of that order. What is summed
is summed in float64.
"""

from __future__ import annotations

import numpy as np
import torch

from sightline.engine.penalties import LARGEST
from sightline.engine.sampling import SamplingParams

MOST_SELECTED = 1024
"""Up to this top_k the tokens are selected; above, the row is treated like one without top_k."""
_LEAST_TEMPERATURE = 0.01  # below, float32 logits overflow; vLLM clamps at the same value
_BLOCK = 1024  # a row's cumulated sum is searched in two steps: among blocks, then inside one
_FIRST_LOOK = 128  # most likely tokens that are looked at first for top_p
_ALMOST_ONE = 1 - 2.0**-40  # so that a number never falls behind the last token by rounding


def most_likely(logits: torch.Tensor) -> tuple[list[int], list[float]]:
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

    def among_top(
        self, logits: torch.Tensor, settings: list[SamplingParams], numbers: list[float]
    ) -> tuple[list[int], list[float]]:
        """Draw from rows that all have a `top_k` of at most MOST_SELECTED.

        Args:
            logits: float32 [R, V].
            numbers: R of [0, 1).

        Returns:
            R tokens, and the largest logit of each row.
        """
        top_k = [min(params.top_k, self._width) for params in settings]
        # One more than asked for shows whether equal ones were left out.
        values, ids = logits.topk(min(max(top_k) + 1, self._width), dim=-1)
        peaks = values[:, 0].tolist()
        for row in self._undecided(values, top_k):
            _take_first_of_equal(logits[row], values[row], ids[row], top_k[row])
        places = torch.arange(values.shape[1], device=self._device)
        values.clamp_(max=LARGEST).masked_fill_(places >= self._column(top_k), -torch.inf)
        # topk leaves the order of equal ones open; by definition it is that of their ids.
        ids, order = ids.sort(-1)
        values, order = values.gather(1, order).sort(stable=True, dim=-1, descending=True)
        ids = ids.gather(1, order)
        weights = self._weights(values, values[:, :1].clone(), settings)
        top_p = self._column([params.top_p for params in settings])
        sums = weights.cumsum(-1, dtype=torch.float64)
        weights.masked_fill_(sums - weights >= top_p * sums[:, -1:], 0)
        place = _find(weights.cumsum(-1, dtype=torch.float64), self._column(numbers))
        return ids.gather(1, place)[:, 0].tolist(), peaks

    def among_all(
        self, logits: torch.Tensor, settings: list[SamplingParams], numbers: list[float]
    ) -> tuple[list[int], list[float]]:
        """Draw from rows with any settings; arguments and results as `among_top`; changes `logits`."""
        peak = logits.amax(-1, keepdim=True)
        if bool((peak > LARGEST).any()):
            peak = logits.clamp_(max=LARGEST).amax(-1, keepdim=True)
        weights = self._weights(logits, peak, settings)
        for row, params in enumerate(settings):
            if params.top_k > 0 or params.top_p < 1:
                _keep_beginning(weights[row], params.top_k, params.top_p)
        return self._drawn(weights, self._column(numbers)), peak[:, 0].tolist()

    def _undecided(self, values: torch.Tensor, top_k: list[int]) -> list[int]:
        """Rows in which a token behind the last one that counts is as likely as that one."""
        last = self._column(top_k).long().clamp(max=values.shape[1] - 1)
        equal = values.gather(1, last) == values.gather(1, last - 1)
        return [
            row
            for row, (same, count) in enumerate(zip(equal[:, 0].tolist(), top_k, strict=True))
            if same and count < values.shape[1]
        ]

    def _weights(
        self, logits: torch.Tensor, peak: torch.Tensor, settings: list[SamplingParams]
    ) -> torch.Tensor:
        """Probabilities as shares of the most likely token's, [R, n], in the place of `logits`."""
        temperatures = [max(params.temperature, _LEAST_TEMPERATURE) for params in settings]
        weights = logits.sub_(peak).div_(self._column(temperatures).float()).exp_()
        if any(params.min_p > 0 for params in settings):
            least = self._column([params.min_p for params in settings]).float()
            weights.masked_fill_(weights < least, 0)
        return weights

    def _drawn(self, weights: torch.Tensor, numbers: torch.Tensor) -> list[int]:
        """Tokens by weight, in the order of their ids."""
        blocks = -(-self._width // _BLOCK)
        padded = torch.nn.functional.pad(weights, (0, blocks * _BLOCK - self._width)).unflatten(
            1, (-1, _BLOCK)
        )
        sums = padded.sum(-1).double()
        ends = sums.cumsum(-1)
        block = _find(ends, numbers)
        own = sums.gather(1, block)
        # How far into the block the number points: its own sums have other roundings than those of the blocks.
        share = ((numbers * ends[:, -1:] - (ends.gather(1, block) - own)) / own).clamp(0, 1)
        rows = torch.arange(len(weights), device=self._device)
        inner = padded[rows, block[:, 0]].cumsum(-1, dtype=torch.float64)
        return (block * _BLOCK + _find(inner, share))[:, 0].tolist()

    def _column(self, values: list[float] | list[int]) -> torch.Tensor:
        """float64 [R, 1]"""
        return torch.tensor(values, dtype=torch.float64, device=self._device)[:, None]


def _find(sums: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """int64 [R, 1]: the first place at which `sums` [R, n] passes its number's share of the last one.

    It is never a place that adds nothing. Where a row is nan, any place.
    """
    target = numbers.clamp(max=_ALMOST_ONE) * sums[:, -1:]
    return torch.searchsorted(sums, target, right=True).clamp(max=sums.shape[1] - 1)


def _take_first_of_equal(row: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, count: int) -> None:
    """Of tokens as likely as the last one selected, take those with the lowest ids, in place."""
    cut = values[count - 1]
    above = int((values > cut).sum())
    ids[above:count] = (row == cut).nonzero()[: count - above, 0]


def _keep_beginning(weights: torch.Tensor, top_k: int, top_p: float) -> None:
    """Set to 0 what is behind the `top_k` most likely (0, -1: all) or the smallest set that reaches `top_p`.

    Args:
        weights: float32 [V], at least 0; changed in place.
    """
    most = top_k if 0 < top_k < len(weights) else len(weights)
    total = None if most < len(weights) else float(weights.double().sum())
    for size in (_FIRST_LOOK, len(weights)):
        if size < most and total is None:
            continue
        top = _largest(weights, size)[:most].double()
        sums = top.cumsum(0)
        mass = top_p * (float(sums[-1]) if total is None else total)
        if size == len(weights) or float(sums[-1]) >= mass:
            break
    kept = max(1, int((sums - top < mass).sum()))
    cut = top[kept - 1]
    equal = kept - int((top > cut).sum())
    cut = cut.float()
    weights.masked_fill_(weights < cut, 0)
    places = (weights == cut).nonzero()[:, 0]
    if len(places) > equal:
        weights[places[equal:]] = 0


def _largest(weights: torch.Tensor, size: int) -> torch.Tensor:
    """The `size` largest values, descending. numpy sorts floats with vector instructions, 10 times as fast."""
    if weights.device.type != "cpu":
        return weights.topk(size).values if size < len(weights) else weights.sort(descending=True).values
    values = weights.numpy()
    if size < len(values):
        values = np.partition(values, len(values) - size)[-size:]
    return torch.from_numpy(np.sort(values)[::-1].copy())
