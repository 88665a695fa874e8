"""`CacheAgent`: the step cache for a block loop that one writes oneself, as users of MindIE SD do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sightline.errors import SightlineError
from sightline.progress import note
from sightline.video.cache import StepCache
from sightline.video.config import CacheConfig
from sightline.video.points import Point, Values
from sightline.video.sites import Site


class CacheAgent:
    """Stands between a loop and its blocks: `x = agent.apply(block, hidden_states=x, ...)`.

    Used bare it counts: `blocks_count` calls are a step, `steps_count` steps a generation, after which it starts
    afresh; it also does when a block raises. In `with agent.generation():` and `with agent.step(i, branch):` the loop
    gives the clock: nothing is left behind by a generation that ends early, and with guidance in two calls of the
    model each branch has values of its own.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        for kind in ("block", "step"):
            start, count = getattr(config, f"{kind}_start"), getattr(config, f"{kind}s_count")
            if start >= count:
                note(
                    f"warning: the cache keeps nothing: {kind}_start ({start}) is past the last of {count} {kind}s"
                )
        self._cache = StepCache(config.plan(), share=False)
        self._points = {
            block: point
            for site, point in self._cache.points.items()
            for block in range(site.start, site.stop)
        }
        # Whether the loop opened the generation and the step, or apply counts.
        self._given_generation = self._given_step = False
        self._block = self._step = 0
        self._start_afresh()

    def apply(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function(*args, **kwargs)`, or give what stands in for it in this step.

        With `dit_block_cache` the block's input must be `hidden_states=` (or the first argument), and a block of
        two streams takes `encoder_hidden_states=` too and returns both; which is which is told by their shapes and,
        where these are equal, `hidden_states` is taken to be the first. With `attention_cache` any call is fine.

        Raises:
            SightlineError: `hidden_states` is missing, there are more calls in a step than `blocks_count`, or
                a generation changes its size.
        """
        if not self._given_step and self._block == 0:
            self._begin_counted_step()
        if self._block == self.config.blocks_count:
            raise SightlineError(
                f"a step called apply more than blocks_count ({self.config.blocks_count}) times; raise blocks_count, "
                f'or give each branch its own `with agent.step(i, "uncond"):`'
            )
        try:
            result = self._apply(self._points.get(self._block), function, args, kwargs)
        except BaseException:
            # A counted step that broke off cannot be continued; what comes next is another generation.
            if not self._given_step:
                self._start_afresh()
            raise
        self._block += 1
        if not self._given_step and self._block == self.config.blocks_count:
            self._end_counted_step()
        return result

    @contextmanager
    def generation(self) -> Iterator[CacheAgent]:
        """One generation; leaving it, by whichever way, frees what is held.

        Raises:
            SightlineError: it is inside another one.
        """
        if not self._given_generation:
            self._start_afresh()
        with self._cache.generation():
            self._given_generation = True
            try:
                yield self
            finally:
                self._given_generation = False
                self._start_afresh()

    @contextmanager
    def step(self, index: int, branch: str = "cond") -> Iterator[None]:
        """Step `index` from 0 of a branch, `cond` or `uncond`; blocks are counted from its beginning.

        Raises:
            SightlineError: as `StepCache.step`.
        """
        if not self._given_generation:
            raise SightlineError(
                "a step began outside of a generation; put `with agent.generation():` around the loop"
            )
        with self._cache.step(index, branch):
            self._given_step, self._block = True, 0
            try:
                yield
            finally:
                self._given_step, self._block = False, 0

    def held_bytes(self) -> int:
        """Bytes of all tensors that are held now."""
        return self._cache.held_bytes()

    def _begin_counted_step(self) -> None:
        if not self._cache.open:
            self._cache.begin()
        self._cache.enter(self._step)

    def _end_counted_step(self) -> None:
        self._cache.leave()
        self._block, self._step = 0, self._step + 1
        if self._step == self.config.steps_count:
            self._start_afresh()

    def _start_afresh(self) -> None:
        self._cache.free()
        if not self._given_generation:
            self._cache.end()
        self._block = self._step = 0
        self._entering: Values = ()
        self._swapped = False
        # Which parts return a tuple even of one.
        self._tuples: dict[Site, bool] = {}

    def _apply(self, point: Point | None, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.config.method == "attention_cache":
            return self._attention(point, function, args, kwargs)
        streams, call = _split(function, args, kwargs)
        if point is None:
            return call()
        if not point.computes:
            return self._stand_in(point, streams)
        if self._block == point.part.start and point.stores:
            self._entering = streams
        output = call()
        if self._block == point.part.stop - 1 and point.stores:
            self._leave(point, output)
        return output

    def _attention(self, point: Point | None, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if point is not None and not point.computes:
            return self._as_returned(point, point.predicted())
        output = function(*args, **kwargs)
        if point is not None:
            point.store(self._streams_of(point, output))
        return output

    def _leave(self, point: Point, output: Any) -> None:
        """The range was computed: keep its change, the streams in the order in which the block returns them."""
        returned = self._streams_of(point, output)
        entering, self._entering = self._entering, ()
        shapes = [each.shape for each in entering]
        turned = [each.shape for each in returned[::-1]]
        self._swapped = len(returned) == 2 and turned == shapes != turned[::-1]
        point.enter(self._ordered(entering, len(returned)))
        point.leave(returned)

    def _stand_in(self, point: Point, streams: Values) -> Any:
        held = self._ordered(streams, len(point.held[-1]))
        return self._as_returned(point, point.moved(held) if self._block == point.part.start else held)

    def _ordered(self, streams: Values, count: int) -> Values:
        if count > len(streams):
            raise SightlineError(
                f"the block returns {count} streams but was given {len(streams)}; give encoder_hidden_states= as well"
            )
        return streams[::-1] if self._swapped else streams[:count]

    def _streams_of(self, point: Point, output: Any) -> Values:
        self._tuples[point.part] = isinstance(output, (tuple, list))
        return tuple(output) if self._tuples[point.part] else (output,)

    def _as_returned(self, point: Point, values: Values) -> Any:
        return values if self._tuples[point.part] else values[0]


def _split(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Values, Callable[[], Any]]:
    """The streams that enter a block, and its call."""
    if "hidden_states" not in kwargs:
        if not args:
            raise SightlineError("apply got no hidden_states; give the block's input as hidden_states=")
        return (args[0], *_encoder(kwargs)), functools.partial(function, *args, **kwargs)
    streams = (kwargs["hidden_states"], *_encoder(kwargs))
    if _takes(function, "hidden_states"):
        return streams, functools.partial(function, *args, **kwargs)
    # A block whose first arguments have other names is given them in this order.
    rest = {
        key: value for key, value in kwargs.items() if key not in ("hidden_states", "encoder_hidden_states")
    }
    return streams, functools.partial(function, *streams, *args, **rest)


def _encoder(kwargs: dict[str, Any]) -> Values:
    encoder = kwargs.get("encoder_hidden_states")
    return () if encoder is None else (encoder,)


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
