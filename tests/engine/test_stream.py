"""What a reader gets of a stream, however late it reads."""

from __future__ import annotations

import time

from sightline.engine.outputs import Logprob
from sightline.engine.stream import Delta, Stream


def test_a_prompt_reader_gets_every_delta_as_it_was_pushed() -> None:
    stream = Stream("a", lambda: None)
    pushed = [Delta(index, str(n), [n], [{n: Logprob(-1.0)}]) for n in range(3) for index in (0, 1)]
    for one in pushed:
        stream.push(one, {})
        assert next(stream) is one


def test_a_late_reader_gets_one_piece_for_each_answer_the_oldest_first() -> None:
    stream = Stream("a", lambda: None)
    for one in (
        Delta(1, "a", [1]),
        Delta(0, "x", [7], [{7: Logprob(-1.0)}]),
        Delta(1, "b", [2, 3], finish_reason="stop", stop_reason="b"),
        Delta(0, "", [8], [{8: Logprob(-2.0)}]),
    ):
        stream.push(one, {})
    assert next(stream) == Delta(1, "ab", [1, 2, 3], None, "stop", "b")
    stream.push(Delta(0, "y"), {})
    assert next(stream) == Delta(0, "xy", [7, 8], [{7: Logprob(-1.0)}, {8: Logprob(-2.0)}])


def test_what_nobody_reads_costs_the_engine_no_more_the_longer_it_waits() -> None:
    stream = Stream("a", lambda: None)
    begun = time.process_time()
    for n in range(100_000):
        stream.push(Delta(0, "word ", [n]), {})
    assert len(next(stream).token_ids) == 100_000
    assert time.process_time() - begun < 3  # joined piece by piece it takes more than ten
