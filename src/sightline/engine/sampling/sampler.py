"""From rows of logits to tokens, all rows of a step together.

A row's token depends on nothing but the row, its answer's settings and past, and one number drawn from the
answer's own generator: not on its neighbours, and not on whether the row was computed for a speculated token.

V is 151,936 here, and sorting one such row takes 8 ms on a CPU core. So nothing is sorted in full: the most likely
tokens are found by selection, and a token is drawn by its place in the cumulated probabilities
(`sightline.engine.sampling.draw`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sightline.engine.outputs import Logprob
from sightline.engine.sampling import draw, penalties
from sightline.engine.sampling.logprobs import describe

if TYPE_CHECKING:
    from sightline.engine.sampling.answer import Answer


@dataclass(slots=True)
class Choice:
    """One chosen token.

    Attributes:
        token: its id; -1 where none can be chosen.
        logprob: of the token, where the answer asks for logprobs.
        top: by id, the token and then the most likely ones, as many as were asked for.
        fault: why there is no token: one sentence.
        forbidden: the answer's own settings are why.
    """

    token: int
    logprob: float | None = None
    top: dict[int, Logprob] | None = None
    fault: str | None = None
    forbidden: bool = False


class Sampler:
    """Chooses tokens of a model.

    Args:
        vocab_size: columns of its logits.
        device: where the logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._drawer = draw.Drawer(vocab_size, self.device)

    @torch.inference_mode()
    def choose(self, logits: torch.Tensor, answers: list[Answer]) -> list[Choice]:
        """The next token of each answer.

        Args:
            logits: float [R, V] in any dtype on the sampler's device, one row an answer; not changed.
        """
        return [choices[0] for choices in self.choose_runs(logits, [(answer, []) for answer in answers])]

    @torch.inference_mode()
    def choose_drafted(self, logits: torch.Tensor, answer: Answer, drafts: list[int]) -> list[Choice]:
        """The next tokens of one answer whose next `drafts` were guessed: `choose_runs` for one."""
        return self.choose_runs(logits, [(answer, drafts)])[0]

    @torch.inference_mode()
    def choose_runs(self, logits: torch.Tensor, runs: list[tuple[Answer, list[int]]]) -> list[list[Choice]]:
        """The next tokens of each answer, going on while the chosen token is the draft that was computed.

        Exactly the tokens that steps without drafts would choose: each row takes the same number from the
        answer's generator that it would take then, and knows the same past.

        Args:
            logits: float [R, V]; answer after answer, 1 + len(drafts) rows each: row i follows the first i drafts.

        Returns:
            For each answer 1 to 1 + len(drafts) choices; the last one is the only one that is no draft or a fault.
        """
        rows = _rows_of(runs)
        tokens, peaks = self._tokens(logits, rows)
        results, start = [], 0
        for answer, drafts in runs:
            end = start + 1 + len(drafts)
            used = _agreeing(tokens[start:end], drafts)
            choices = [
                Choice(token, fault=_fault(peak, logits.dtype, answer), forbidden=peak == -torch.inf)
                for token, peak in zip(tokens[start : start + used], peaks[start : start + used], strict=True)
            ]
            choices = _up_to_fault(choices)
            if not answer.params.greedy:
                answer.draws.use(len(choices))
            count = answer.params.logprobs
            if count is not None:
                _describe(logits[start : start + len(choices)], choices, count)
            results.append(choices)
            start = end
        return results

    def _tokens(self, logits: torch.Tensor, rows: list[_Row]) -> draw.Found:
        """Each row's token, and its largest logit, which tells whether there is one."""
        tokens, peaks = [0] * len(rows), [0.0] * len(rows)
        for kind in _KINDS:
            members = [number for number, row in enumerate(rows) if row.kind == kind]
            if not members:
                continue
            # As they stand where all are of one kind, so that nothing is copied.
            alike = len(members) == len(rows)
            part = logits if alike else logits[torch.tensor(members, device=logits.device)]
            found = self._part(part, kind, [rows[number] for number in members])
            for number, token, peak in zip(members, *found, strict=True):
                tokens[number], peaks[number] = token, peak
        return tokens, peaks

    def _part(self, logits: torch.Tensor, kind: str, rows: list[_Row]) -> draw.Found:
        """Rows of one kind, together."""
        changes = [row.change for row in rows]
        if kind in ("plain", "greedy"):
            return self._drawer.most_likely(logits, changes)
        settings, numbers = [row.params for row in rows], [row.number for row in rows]
        sampled = self._drawer.among_top if kind == "top" else self._drawer.among_all
        return sampled(logits, changes, settings, numbers)


# Rows of one kind take the same way: the most likely as it stands and under rules, one of the top_k, one of all.
_KINDS = ("plain", "greedy", "top", "all")


class _Row:
    """One row of a step: what its answer says about it at this place."""

    def __init__(self, answer: Answer, number: float) -> None:
        self.params = answer.params
        self.number = number
        rules = answer.rules
        self.change = None if rules.quiet else penalties.Change.of(rules)
        if self.params.greedy:
            self.kind = "plain" if self.change is None else "greedy"
        else:
            self.kind = "top" if 0 < self.params.top_k <= draw.MOST_SELECTED else "all"


def _rows_of(runs: list[tuple[Answer, list[int]]]) -> list[_Row]:
    rows = []
    for answer, drafts in runs:
        size = 1 + len(drafts)
        numbers = [0.0] * size if answer.params.greedy else answer.draws.ahead(size)
        rows.append(_Row(answer, numbers[0]))
        for draft, number in zip(drafts, numbers[1:], strict=True):
            answer.rules.push(draft)
            rows.append(_Row(answer, number))
        for _ in drafts:
            answer.rules.pop()
    return rows


def _agreeing(tokens: list[int], drafts: list[int]) -> int:
    """How many of the rows count: those whose drafts so far were all chosen."""
    used = 1
    while used <= len(drafts) and tokens[used - 1] == drafts[used - 1]:
        used += 1
    return used


def _up_to_fault(choices: list[Choice]) -> list[Choice]:
    for place, choice in enumerate(choices):
        if choice.fault is not None:
            choice.token = -1
            return choices[: place + 1]
    return choices


def _fault(peak: float, dtype: torch.dtype, answer: Answer) -> str | None:
    if peak != peak:
        # The most likely of them would be the first nan: an answer of one token, over and over.
        return (
            f"the model computes nan in {str(dtype).removeprefix('torch.')}: its numbers do not fit, or "
            "its weights are damaged; use dtype bf16 or fp32"
        )
    if peak == -torch.inf and answer.rules.structure is not None:
        return _no_form(answer.rules.structure.error)
    if peak == -torch.inf:
        return (
            "no token may come next: allowed_token_ids, bad_words and min_tokens together rule out all of them; "
            "allow more tokens"
        )
    return None


def _no_form(error: str | None) -> str:
    if error is not None:
        return f"structured_outputs cannot be followed any further: {error}; make it simpler"
    return (
        "no token may come next: what structured_outputs allows is ruled out by allowed_token_ids, bad_words or "
        "min_tokens, or needs tokens that the model does not have; loosen one of them"
    )


def _describe(logits: torch.Tensor, choices: list[Choice], count: int) -> None:
    whole = [choice for choice in choices if choice.fault is None]
    found = describe(logits[: len(whole)], [choice.token for choice in whole], count)
    for choice, top in zip(whole, found, strict=True):
        choice.top, choice.logprob = top, top[choice.token].logprob
