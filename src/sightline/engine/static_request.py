"""One sequence on its way through the engine: what is asked, what has come so far, and when it ends."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from sightline.engine.detokenizer import Detokenizer
from sightline.engine.outputs import CompletionOutput, RequestMetrics
from sightline.engine.sampler import choose
from sightline.engine.sampling import SamplingParams
from sightline.models.processor import Encoded


@dataclass
class Request:
    """One answer to one encoded prompt.

    Attributes:
        end_tokens: the model's own end tokens.
        limit: most tokens of the answer, by `max_tokens` and the model's length.
        arrived: time.perf_counter() when the request was given.
    """

    encoded: Encoded
    params: SamplingParams
    end_tokens: frozenset[int]
    limit: int
    tokenizer: Any
    seed: int
    index: int = 0
    arrived: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.output = CompletionOutput(self.index)
        self.metrics = RequestMetrics()
        self.text = Detokenizer(
            self.tokenizer, stops=self.params.stops, skip_special_tokens=self.params.skip_special_tokens
        )
        self._generator = torch.Generator().manual_seed(self.seed)
        self._aborted = threading.Event()

    @property
    def prompt_length(self) -> int:
        return len(self.encoded.input_ids)

    @property
    def next_position(self) -> int:
        """M-RoPE position of the newest token, the same in time, height and width."""
        return self.prompt_length + len(self.output.token_ids) - 1 + self.encoded.rope_delta

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    def abort(self) -> None:
        """End this request at the next step. May be called from any thread, any number of times."""
        self._aborted.set()

    @property
    def aborted(self) -> bool:
        return self._aborted.is_set()

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token from float [vocabulary] logits, and see whether it ends the answer."""
        if self.aborted:
            return self.finish("abort")
        early = len(self.output.token_ids) < self.params.min_tokens
        banned = self._ends() if early else frozenset()
        token = choose(logits, self.params, seen=self._seen(), banned=banned, generator=self._generator)
        self.output.token_ids.append(token)
        if self.metrics.time_to_first_token is None:
            self.metrics.time_to_first_token = time.perf_counter() - self.arrived
        self._see(token, len(self.output.token_ids) >= self.params.min_tokens)

    def finish(self, reason: str, stop: int | str | None = None) -> None:
        """End the answer; `stop` is the text or token that did it."""
        self.text.finish(cut=reason != "stop")
        self.output.finish_reason, self.output.stop_reason = reason, stop
        self.output.text = self.text.text
        self.metrics.total = time.perf_counter() - self.arrived

    def _see(self, token: int, may_stop: bool) -> None:
        if token in self.params.stop_ids:
            return self.finish("stop", token)
        if token in self.end_tokens and not self.params.ignore_eos:
            return self.finish("stop")
        stop = self.text.add(token, may_stop=may_stop)
        self.output.text = self.text.text
        if stop is not None:
            self.finish("stop", stop)
        elif len(self.output.token_ids) >= self.limit:
            self.finish("length")

    def _ends(self) -> frozenset[int]:
        own = frozenset() if self.params.ignore_eos else self.end_tokens
        return own | self.params.stop_ids

    def _seen(self) -> torch.Tensor | None:
        if self.params.repetition_penalty == 1.0:
            return None
        return torch.cat([self.encoded.input_ids, torch.tensor(self.output.token_ids, dtype=torch.long)])
