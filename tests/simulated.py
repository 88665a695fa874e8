"""A model without tensors, so that a scheduler's mistakes show as wrong tokens.

The "keys and values" of a token are a number made of all numbers before it, read from the physical blocks. A block
that is shared wrongly, overwritten while in use, not computed or not computed again changes every later token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sightline.engine.sampling.params import SamplingParams
from sightline.engine.scheduling.request import Medium, Request, Span
from sightline.engine.scheduling.scheduler import Scheduler, Step
from sightline.engine.scheduling.sequence import Sequence

PLACEHOLDER = 9
VOCABULARY = 3
_PRIME = (1 << 61) - 1


class Answer:
    """Takes tokens until there are `limit` of them, or one is `end`."""

    def __init__(self, limit: int, end: int | None = None) -> None:
        self.limit, self.end = limit, end
        self.tokens: list[int] = []
        self.reason: str | None = None

    @property
    def finished(self) -> bool:
        return self.reason is not None

    def finish(self, reason: str, stop: object = None) -> None:
        assert not self.finished, "an answer ended twice"
        self.reason = reason

    def accept(self, token: int) -> bool:
        assert not self.finished, "a token came behind the end"
        self.tokens.append(token)
        if token == self.end:
            self.finish("stop")
        elif len(self.tokens) == self.limit:
            self.finish("length")
        return not self.finished


def make_request(
    id: str,
    prompt: list[int],
    *,
    limit: int = 4,
    n: int = 1,
    prompt_logprobs: int | None = None,
    end: int | None = None,
    media: list[Medium] | None = None,
    spans: list[Span] | None = None,
    **options: object,
) -> Request:
    answers = [Answer(limit, end) for _ in range(n)]
    params = SamplingParams(n=n, max_tokens=limit, prompt_logprobs=prompt_logprobs)
    return Request(id, prompt, params, answers, limit=limit, media=media or [], spans=spans or [], **options)


def token_after(value: int, index: int) -> int:
    """What answer `index` of a request says behind a token of this value."""
    return (value >> 7) % VOCABULARY if index == 0 else (value * (index + 17) >> 11) % VOCABULARY


def _value(weighted_sum: int, token: int, feature: int) -> int:
    return hash((weighted_sum % _PRIME, token, feature)) % _PRIME


def _start(request: Request) -> int:
    """Another adapter computes other values from the first token on."""
    return 0 if request.adapter is None else 12345


def _row(key: bytes, row: int) -> int:
    return int.from_bytes(key, "big") * 1000 + row + 1


def expected(request: Request, index: int) -> list[int]:
    """The answer when the request runs alone, computed in one go."""
    features = dict[int, int]()
    for span in request.spans:
        for place in range(span.length):
            features[span.start + place] = _row(request.media[span.medium].key, span.offset + place)
    tokens, total, answer = list(request.prompt), _start(request), Answer(request.sequences[0].limit)
    answer.end = request.sequences[0].answer.end
    for place in range(len(tokens) + answer.limit):
        value = _value(total, tokens[place], features.get(place, 0))
        total += value * (place + 1)
        if place == len(tokens) - 1:
            tokens.append(token_after(value, index))
            if not answer.accept(tokens[-1]):
                break
    return answer.tokens


@dataclass
class Store:
    """Features of media by key, at most `capacity` rows of them unless one alone has more."""

    capacity: int
    rows: dict[bytes, int] = field(default_factory=dict)
    pins: dict[bytes, int] = field(default_factory=dict)
    there: set[bytes] = field(default_factory=set)
    encoded: list[bytes] = field(default_factory=list)

    def has(self, key: bytes) -> bool:
        return key in self.there

    def reserve(self, key: bytes, rows: int) -> bool:
        assert key not in self.rows, "room for features that have it"
        pinned = sum(self.rows[other] for other, pins in self.pins.items() if pins)
        if pinned and pinned + rows > self.capacity:
            return False
        for other in list(self.rows):
            if sum(self.rows.values()) + rows > self.capacity and not self.pins[other]:
                self.drop(other)
        self.rows[key], self.pins[key] = rows, 1
        return True

    def pin(self, key: bytes) -> None:
        self.pins[key] += 1

    def unpin(self, key: bytes) -> None:
        assert self.pins[key] > 0
        self.pins[key] -= 1
        if not self.pins[key] and (key not in self.there or sum(self.rows.values()) > self.capacity):
            self.drop(key)

    def put(self, key: bytes) -> None:
        assert self.pins[key] > 0, "features nobody waits for"
        assert key not in self.there, "features computed twice"
        self.there.add(key)
        self.encoded.append(key)

    def drop(self, key: bytes) -> None:
        self.there.discard(key)
        del self.rows[key], self.pins[key]

    def lose(self) -> None:
        """Everything that may go goes."""
        for key in [key for key, pins in self.pins.items() if not pins]:
            self.drop(key)


class Model:
    """Runs steps over `blocks` physical blocks that are full of rubbish at first."""

    def __init__(self, blocks: int, block_size: int, store: Store) -> None:
        self.memory = [[-1] * block_size for _ in range(blocks)]
        self.block_size = block_size
        self.store = store

    def run(self, step: Step) -> dict[Sequence, list[int]]:
        """Compute a step; the tokens that each sampling sequence's answer takes, drafts checked row by row."""
        for request, index in step.encode:
            self.store.put(request.media[index].key)
        accepted = {}
        for chunk in step.chunks:
            rows = self._rows(chunk.sequence, chunk.start, chunk.tokens)
            if chunk.samples:
                drafts = chunk.tokens[len(chunk.tokens) - chunk.drafts :]
                accepted[chunk.sequence] = self._choose(chunk.sequence, rows[-1 - chunk.drafts :], drafts)
        return accepted

    def _rows(self, sequence: Sequence, start: int, tokens: list[int]) -> list[int]:
        total = _start(sequence.request)
        total += sum(self._slot(sequence, place) * (place + 1) for place in range(start))
        rows = []
        for place, token in enumerate(tokens, start):
            value = _value(total, token, self._feature(sequence.request, place))
            block, slot = divmod(place, self.block_size)
            self.memory[sequence.blocks[block]][slot] = value
            total += value * (place + 1)
            rows.append(value)
        return rows

    def _slot(self, sequence: Sequence, place: int) -> int:
        block, slot = divmod(place, self.block_size)
        return self.memory[sequence.blocks[block]][slot]

    def _feature(self, request: Request, place: int) -> int:
        for span in request.spans:
            if span.start <= place < span.end:
                key = request.media[span.medium].key
                assert self.store.has(key), f"{request}: no features at token {place}"
                assert self.store.pins[key], f"{request}: features at token {place} are not pinned"
                return _row(key, span.offset + place - span.start)
        return 0

    def _choose(self, sequence: Sequence, rows: list[int], drafts: list[int]) -> list[int]:
        taken = []
        for row, draft in zip(rows, [*drafts, None], strict=True):
            token = token_after(row, sequence.index)
            taken.append(token)
            if not sequence.answer.accept(token) or token != draft:
                break
        return taken


def run_step(scheduler: Scheduler, model: Model) -> Step:
    """Schedule, compute and commit one step, with the books checked behind each."""
    step = scheduler.schedule()
    scheduler.check_integrity()
    scheduler.commit(step, model.run(step))
    scheduler.check_integrity()
    return step


def run_all(scheduler: Scheduler, model: Model, *, most: int = 10_000) -> list[Step]:
    """Steps until nothing is left, at most `most`."""
    steps: list[Step] = []
    while scheduler.has_work:
        assert len(steps) < most, f"{scheduler.running} and {scheduler.waiting} do not come to an end"
        steps.append(run_step(scheduler, model))
    return steps
