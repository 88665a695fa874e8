"""How far one answer is in its grammar, and which tokens may come next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sightline.engine.sampling.structured.form import error_of, parser_limits

_QUICK = 0.1  # seconds of compiling that may be spent again between two steps

Mask = np.ndarray[Any, Any]


class Vocabulary:
    """A tokenizer as llguidance needs it; any thread may use it. It builds in a second for 150,000 tokens.

    Args:
        tokenizer: a fast one, of transformers.
        size: columns of the model's logits; ids that the tokenizer does not know never come.
        ends: the model's own end tokens, one of which ends an answer.

    Attributes:
        ends: bits of the end tokens, int32 [words]; bit i % 32 of word i // 32 is token i.
        texts: bits of all tokens that are text: neither special nor unknown.
    """

    def __init__(self, tokenizer: Any, size: int, ends: frozenset[int]) -> None:
        from llguidance.hf import from_tokenizer

        size = max(size, len(tokenizer))
        self.end_tokens = ends
        self.machine = from_tokenizer(tokenizer, n_vocab=size, eos_token=sorted(ends))
        self.words = -(-size // 32)
        known = min(size, len(tokenizer))
        text = np.zeros(self.words * 32, np.bool_)
        text[:known] = [not self.machine.is_special_token(token) for token in range(known)]
        text[sorted(ends)] = False
        self.texts = _packed(text)
        end = np.zeros(self.words * 32, np.bool_)
        end[sorted(ends)] = True
        self.ends = _packed(end)


class Grammar:
    """A compiled grammar, for any number of answers at once.

    Args:
        text: in llguidance's form.

    Attributes:
        renewable: it compiles so quickly that this may be done again between two steps.

    Raises:
        ValueError: it cannot be compiled for this vocabulary.
    """

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._text = text
        self._lock = threading.Lock()
        begun = time.perf_counter()
        self._base = self._compiled()
        self.renewable = time.perf_counter() - begun < _QUICK

    def machine(self) -> tuple[Any, Any]:
        """A state machine at the start, and the one it was copied from. Copies share their lexer's states."""
        with self._lock:
            return self._base.deep_copy(), self._base

    def renewed(self, old: Any) -> tuple[Any, Any]:
        """As `machine`, but of another base than `old`, whose lexer is full."""
        with self._lock:
            if self._base is old:
                self._base = self._compiled()
            return self._base.deep_copy(), self._base

    def _compiled(self) -> Any:
        from llguidance import LLMatcher

        machine = LLMatcher(self.vocabulary.machine, self._text, log_level=0, limits=parser_limits())
        error = error_of(machine)
        if error is not None:
            raise ValueError(error)
        return machine


class Matcher:
    """One answer's place in its grammar; `push` and `pop` follow its tokens.

    A drafted token that the grammar forbids leads astray: until it is popped there is no mask, and none is needed,
    because such a draft is never chosen.

    Attributes:
        error: why the grammar cannot go on, where it cannot.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.error: str | None = None
        self._grammar = grammar
        self._machine, self._base = grammar.machine()
        self._tokens: list[int] = []
        self._astray = 0

    @property
    def astray(self) -> bool:
        """Whether the newest token is none that the grammar allows; an end token is none either."""
        return self._astray > 0

    @property
    def complete(self) -> bool:
        """Whether nothing but an end may come."""
        return not self._astray and self._machine.is_stopped() and self._machine.is_accepting()

    def push(self, token: int) -> None:
        """The answer grows by `token`."""
        if self._astray or token in self._grammar.vocabulary.end_tokens:
            self._astray += 1
        elif not self._take(token):
            self._astray += 1
            self.error = error_of(self._machine)
        else:
            self._tokens.append(token)

    def pop(self) -> None:
        """Take the newest token back."""
        if self._astray:
            self._astray -= 1
            return
        self._tokens.pop()
        if not self._machine.rollback(1):
            self._renew()

    def mask(self, *, ends: bool = True) -> tuple[Mask | None, bool]:
        """The tokens that may come next, and whether they are ends alone.

        Args:
            ends: False leaves end tokens out while there is anything else.

        Returns:
            int32 bits as in `Vocabulary`, none of them set where no token may come; None where it is astray.
        """
        if self._astray:
            return None, False
        vocabulary = self._grammar.vocabulary
        words = np.zeros(vocabulary.words, np.int32)
        self._run(lambda machine: machine.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes))
        self.error = error_of(self._machine)
        if self.error is not None:
            words[:] = 0
            return words, False
        texts = words & vocabulary.texts
        if not texts.any():
            return words & vocabulary.ends, True
        return (texts | (words & vocabulary.ends) if ends else texts), False

    def _take(self, token: int) -> bool:
        return bool(self._run(lambda machine: machine.try_consume_tokens([token])))

    def _run(self, use: Callable[[Any], Any]) -> Any:
        """Use the machine, with a fresh lexer if the old one has no room for more states."""
        result = use(self._machine)
        if self._machine.is_error() and self._grammar.renewable and self._renew():
            result = use(self._machine)
        return result

    def _renew(self) -> bool:
        """Start over and come back to the same place."""
        try:
            self._machine, self._base = self._grammar.renewed(self._base)
        except ValueError:
            return False
        return bool(self._machine.consume_tokens(self._tokens))


def _packed(bits: Mask) -> Mask:
    return np.packbits(bits, bitorder="little").view(np.int32)
