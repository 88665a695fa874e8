"""`CacheAgent` in loops of all kinds, each against a loop without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_wan import BRANCHES, by_hand, denoise, make_model

from sightline import CacheAgent, CacheConfig
from sightline.errors import SightlineError

STEPS, BLOCKS = 6, 4


class Block:
    """Adds something that depends on its input, and counts its calls."""

    def __init__(self, scale: float) -> None:
        self.scale, self.calls = scale, 0

    def __call__(self, hidden_states: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
        self.calls += 1
        return hidden_states + self.scale * torch.sin(hidden_states) + shift


def blocks() -> list[Block]:
    return [Block(0.1 * (number + 1)) for number in range(BLOCKS)]


def config(method: Any = "dit_block_cache", **changes: Any) -> CacheConfig:
    return CacheConfig(
        method, **({"blocks_count": BLOCKS, "steps_count": STEPS, "step_interval": 2} | changes)
    )


def start() -> torch.Tensor:
    return torch.linspace(-1, 1, 10)


def bare(agent: CacheAgent, steps: int = STEPS, parts: list[Block] | None = None) -> torch.Tensor:
    """A denoising loop: each step runs all blocks and the next step takes the result."""
    x = start()
    for _ in range(steps):
        for block in parts or blocks():
            x = agent.apply(block, hidden_states=x, shift=0.05)
    return x


def expected(first: int, last: int, computes: Callable[[int], bool], steps: int = STEPS) -> torch.Tensor:
    """The same, the change of the blocks `first <= block < last` stored and added by hand."""
    x, change = start(), torch.empty(0)
    parts = blocks()
    for step in range(steps):
        for number, block in enumerate(parts):
            if number == first:
                before = x
            if not first <= number < last or computes(step):
                x = block(x, 0.05)
            elif number == first:
                x = x + change
            if number == last - 1 and computes(step):
                change = x - before
    return x


def even(step: int) -> bool:
    return step % 2 == 0


@pytest.mark.parametrize(("first", "last"), [(0, 4), (1, 3), (2, 3), (0, 1), (3, 4)])
def test_a_range_of_blocks_adds_its_last_change(first: int, last: int) -> None:
    agent = CacheAgent(config(block_start=first, block_end=last))
    assert torch.equal(bare(agent), expected(first, last, even))


def test_the_default_range_is_all_blocks() -> None:
    assert torch.equal(bare(CacheAgent(config())), expected(0, BLOCKS, even))


def test_step_end_is_honoured() -> None:
    parts = blocks()
    result = bare(CacheAgent(config(step_end=2)), parts=parts)
    assert torch.equal(result, expected(0, BLOCKS, lambda step: step != 1))
    assert [block.calls for block in parts] == [STEPS - 1] * BLOCKS


def test_attention_is_given_back_as_it_was_and_only_of_the_blocks_in_the_range() -> None:
    parts = blocks()
    agent = CacheAgent(config("attention_cache", block_start=1, block_end=3, step_end=3))
    seen = []
    for step in range(STEPS):
        for number, block in enumerate(parts):
            seen.append((step, number, agent.apply(block, start() + step)))
    assert [block.calls for block in parts] == [6, 4, 4, 6]
    for step, number, output in seen:
        of = step - 1 if step in (1, 3) and number in (1, 2) else step
        assert torch.equal(output, Block(0.1 * (number + 1))(start() + of))


def test_attention_of_two_tensors_keeps_both() -> None:
    agent = CacheAgent(config("attention_cache", blocks_count=1))
    outputs = [agent.apply(lambda x: (x, 2 * x), torch.tensor([float(step)])) for step in range(3)]
    assert [[float(each) for each in output] for output in outputs] == [[0, 0], [0, 0], [2, 4]]


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_after_steps_count_steps_it_starts_afresh(method: Any) -> None:
    agent = CacheAgent(config(method, step_start=1))
    first = bare(agent)
    assert agent.held_bytes() == 0
    assert torch.equal(bare(agent), first)
    assert torch.equal(bare(agent), first)


def test_a_block_that_raises_ends_the_counted_generation() -> None:
    agent = CacheAgent(config())

    def fail(hidden_states: torch.Tensor) -> None:
        raise RuntimeError("out of memory")

    bare(agent, steps=2)
    agent.apply(blocks()[0], hidden_states=start())
    with pytest.raises(RuntimeError):
        agent.apply(fail, hidden_states=start())
    assert agent.held_bytes() == 0
    assert torch.equal(bare(agent), expected(0, BLOCKS, even))


def clocked(agent: CacheAgent, steps: int = STEPS) -> torch.Tensor:
    x = start()
    parts = blocks()
    for step in range(steps):
        with agent.step(step):
            for block in parts:
                x = agent.apply(block, hidden_states=x, shift=0.05)
    return x


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_an_aborted_generation_is_harmless(method: Any) -> None:
    agent = CacheAgent(config(method, block_start=1))
    with agent.generation():
        whole = clocked(agent)
    with pytest.raises(KeyboardInterrupt), agent.generation():
        clocked(agent, steps=3)
        with agent.step(3):
            agent.apply(blocks()[0], hidden_states=start())
            raise KeyboardInterrupt
    assert agent.held_bytes() == 0
    with agent.generation():
        assert torch.equal(clocked(agent), whole)
    # Bare as well, and a bare one that was left unfinished is none of the next generation's business.
    assert torch.equal(bare(agent), whole)
    bare(agent, steps=3)
    with agent.generation():
        assert torch.equal(clocked(agent), whole)
    assert torch.equal(bare(agent), whole)


def test_a_generation_may_also_count() -> None:
    agent = CacheAgent(config())
    with agent.generation():
        assert torch.equal(bare(agent), expected(0, BLOCKS, even))
        bare(agent, steps=3)
        assert agent.held_bytes() > 0
    assert agent.held_bytes() == 0
    with agent.generation():
        assert torch.equal(bare(agent), expected(0, BLOCKS, even))


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_guidance_in_two_calls_keeps_the_branches_apart(method: Any) -> None:
    agent = CacheAgent(config(method))
    inputs = {"cond": start(), "uncond": -2 * start()}
    together: dict[str, list[torch.Tensor]] = {branch: [] for branch in BRANCHES}
    with agent.generation():
        for step in range(STEPS):
            for branch in BRANCHES:
                x = inputs[branch] + step
                with agent.step(step, branch):
                    for block in blocks():
                        x = agent.apply(block, hidden_states=x)
                together[branch].append(x)
    for branch in BRANCHES:
        alone = CacheAgent(config(method))
        for step in range(STEPS):
            x = inputs[branch] + step
            for block in blocks():
                x = alone.apply(block, hidden_states=x)
            assert torch.equal(x, together[branch][step])


def two_streams(hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
    return hidden_states + encoder_hidden_states.sum(), encoder_hidden_states * hidden_states.mean()


def turned(hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
    return two_streams(hidden_states, encoder_hidden_states)[::-1]


def named_otherwise(x: torch.Tensor, context: torch.Tensor) -> Any:
    return two_streams(x, context)


@pytest.mark.parametrize("block", [two_streams, turned, named_otherwise])
@pytest.mark.parametrize(("first", "last"), [(0, 3), (1, 2)])
def test_a_block_of_two_streams_keeps_the_change_of_both(block: Any, first: int, last: int) -> None:
    agent = CacheAgent(config(blocks_count=3, block_start=first, block_end=last))
    x, text = torch.linspace(0.5, 1, 4), torch.linspace(0.1, 0.2, 3)
    y, other = x, text
    change = (torch.empty(0), torch.empty(0))
    for step in range(STEPS):
        for number in range(3):
            pair = agent.apply(block, hidden_states=x, encoder_hidden_states=text)
            x, text = pair[::-1] if block is turned else pair
            if number == first:
                before = (y, other)
            if step % 2 == 0 or not first <= number < last:
                y, other = two_streams(y, other)
            elif number == first:
                y, other = y + change[0], other + change[1]
            if step % 2 == 0 and number == last - 1:
                change = (y - before[0], other - before[1])
        assert torch.equal(x, y)
        assert torch.equal(text, other)


def test_a_text_that_no_block_returns_is_no_stream() -> None:
    def crossing(hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + encoder_hidden_states.sum()

    agent = CacheAgent(config(blocks_count=1))
    outputs = [
        agent.apply(crossing, hidden_states=start() * step, encoder_hidden_states=torch.ones(3))
        for step in range(2)
    ]
    assert torch.equal(outputs[1], start() + 3)


def test_the_input_may_come_first_instead_of_by_name() -> None:
    agent = CacheAgent(config(blocks_count=1))
    outputs = [agent.apply(lambda x, shift: x + shift, start() * step, 2.0) for step in range(2)]
    assert torch.equal(outputs[1], start() + 2.0)


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_nothing_is_kept_and_all_is_computed_where_the_configuration_says_so(method: Any) -> None:
    parts = blocks()
    agent = CacheAgent(config(method, step_interval=1))
    assert torch.equal(bare(agent, parts=parts), expected(0, BLOCKS, lambda step: True))
    assert [block.calls for block in parts] == [STEPS] * BLOCKS
    assert agent.held_bytes() == 0


def test_a_wan_loop_of_one_s_own() -> None:
    """The agent in the block loop of a real model gives what the plan gives that is attached to it."""
    from sightline.video.attach import attached
    from sightline.video.cache import StepCache

    model = make_model()
    settings = CacheConfig(
        "dit_block_cache", len(model.blocks), STEPS, step_start=1, step_interval=3, block_start=1
    )
    agent = CacheAgent(settings)

    def loop(hidden: torch.Tensor, *arguments: Any) -> torch.Tensor:
        for block in model.blocks:
            hidden = agent.apply(block, hidden_states=hidden, **named(arguments))
        return hidden

    def named(arguments: Any) -> dict[str, Any]:
        return dict(zip(("encoder_hidden_states", "temb", "rotary_emb"), arguments, strict=True))

    def call(x: Any, time: Any, text: Any, return_dict: bool) -> Any:
        return (by_hand(model, x, time, text, loop),)

    with agent.generation():
        found = denoise(call, STEPS, agent.step)
    cache = StepCache(settings.plan())
    with attached(model, cache):
        planned = denoise(model, STEPS, cache.step)
    assert torch.equal(found[-1], planned[-1])
    assert not torch.equal(found[-1], denoise(model, STEPS)[-1])


def test_mistakes_are_named() -> None:
    agent = CacheAgent(config())
    with pytest.raises(SightlineError, match="apply got no hidden_states; give the block's input"):
        agent.apply(blocks()[0])
    with (
        pytest.raises(SightlineError, match="outside of a generation; put `with agent.generation"),
        agent.step(0),
    ):
        pass
    with agent.generation():
        with pytest.raises(SightlineError, match="in a generation"), agent.generation():
            pass
        with pytest.raises(SightlineError, match="more than blocks_count \\(4\\) times"), agent.step(0):
            for block in [*blocks(), *blocks()]:
                agent.apply(block, hidden_states=start())


def test_a_step_with_fewer_calls_shifts_nothing() -> None:
    agent = CacheAgent(config())
    parts = blocks()
    with agent.generation():
        with agent.step(0):
            agent.apply(parts[0], hidden_states=start())
        with pytest.raises(SightlineError, match=r"step 1 of branch cond takes blocks\[0:4\] from step 0"):
            clocked_from(agent, 1)
        x = clocked_from(agent, 2)
        assert torch.equal(x, clocked_plain(parts))


def clocked_from(agent: CacheAgent, step: int) -> torch.Tensor:
    x = start()
    with agent.step(step):
        for block in blocks():
            x = agent.apply(block, hidden_states=x)
    return x


def clocked_plain(parts: list[Block]) -> torch.Tensor:
    x = start()
    for block in parts:
        x = block(x)
    return x


def test_two_streams_of_which_one_is_not_given_are_refused() -> None:
    agent = CacheAgent(config(blocks_count=1))
    with pytest.raises(
        SightlineError, match="returns 2 streams but was given 1; give encoder_hidden_states="
    ):
        agent.apply(lambda hidden_states: (hidden_states, hidden_states), hidden_states=start())


def test_a_range_past_the_end_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def told(**settings: int) -> str:
        CacheAgent(CacheConfig("dit_block_cache", 4, 7, step_interval=2, **settings))
        return capsys.readouterr().err

    assert "warning: the cache keeps nothing: block_start (4) is past the last of 4 blocks" in told(
        block_start=4
    )
    assert "warning: the cache keeps nothing: step_start (9) is past the last of 7 steps" in told(
        step_start=9
    )
    assert told(block_start=3, step_start=5) == ""
