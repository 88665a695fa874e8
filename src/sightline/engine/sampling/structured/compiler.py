"""Grammars from what requests ask for, compiled once for many requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from sightline.engine.sampling.parameter_error import ParameterError
from sightline.engine.sampling.structured import form
from sightline.engine.sampling.structured.matcher import Grammar, Vocabulary
from sightline.engine.sampling.structured.params import NAME, StructuredOutputsParams
from sightline.engine.sampling.structured.trial import SECONDS, TooLarge, TooLong, Trial
from sightline.errors import SightlineError

MOST_KEPT = 64
"""Grammars that are kept compiled, the longest unused going first; faulty ones too, so that they are tried once."""


class Compiler:
    """Compiles grammars for one model; any thread may use it.

    Args:
        tokenizer: of transformers; read at the first use.
        size: columns of the model's logits.
        ends: the model's own end tokens.
        seconds: that compiling may take.
    """

    def __init__(self, tokenizer: Any, size: int, ends: frozenset[int], *, seconds: float = SECONDS) -> None:
        self._tokenizer, self._size, self._ends = tokenizer, size, ends
        self._seconds = seconds
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[StructuredOutputsParams, Grammar | str] = OrderedDict()
        self._idle: list[Trial] = []
        self._all: list[Trial] = []
        self._closed = False

    def known(self, params: StructuredOutputsParams) -> Grammar | None:
        """The grammar if it is compiled already.

        Raises:
            ParameterError: it was found faulty already.
        """
        with self._lock:
            found = self._kept.get(params)
            if found is not None:
                self._kept.move_to_end(params)
        if isinstance(found, str):
            raise ParameterError(f"{NAME}.{params.kind}", found)
        return found

    def compile(self, params: StructuredOutputsParams) -> Grammar:
        """The grammar, compiled now unless it is known. Takes milliseconds, but up to some seconds at worst.

        Raises:
            ParameterError: it is faulty, or takes too long or too much memory.
            SightlineError: the tokenizer is of no kind that grammars can be held against.
        """
        found = self.known(params)
        if found is not None:
            return found
        vocabulary = self._vocabulary_now()
        try:
            kept: Grammar | str = self._compiled(params, vocabulary)
        except ValueError as error:
            kept = f"cannot be used: {error}"
        except TooLong:
            kept = f"takes more than {self._seconds:g} s to compile; make it simpler"
        except TooLarge:
            if self._closed:
                raise SightlineError("the engine is being stopped") from None
            kept = "takes too much memory to compile; make it simpler"
        with self._lock:
            self._kept[params] = kept
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        if isinstance(kept, str):
            raise ParameterError(f"{NAME}.{params.kind}", kept)
        return kept

    def close(self) -> None:
        """End the processes that try grammars, and what they are at."""
        with self._lock:
            self._closed = True
            trials, self._all, self._idle = self._all, [], []
        for trial in trials:
            trial.close()

    def _compiled(self, params: StructuredOutputsParams, vocabulary: Vocabulary) -> Grammar:
        source = form.source(params)
        text = form.grammar_of(source) if params.kind in form.SIMPLE else self._tried(source)
        return Grammar(text, vocabulary)

    def _tried(self, source: dict[str, Any]) -> str:
        with self._lock:
            trial = self._idle.pop() if self._idle else Trial()
            if trial not in self._all:
                self._all.append(trial)
        try:
            return trial.compile(source, self._seconds)
        finally:
            with self._lock:
                self._idle.append(trial)
                closed = self._closed
            if closed:
                trial.close()

    def _vocabulary_now(self) -> Vocabulary:
        with self._building:
            if self._vocabulary is None:
                if not getattr(self._tokenizer, "is_fast", False):
                    raise SightlineError(
                        f"{NAME} needs a fast tokenizer, not {type(self._tokenizer).__name__}; "
                        "give the checkpoint a tokenizer.json"
                    )
                self._vocabulary = Vocabulary(self._tokenizer, self._size, self._ends)
            return self._vocabulary
