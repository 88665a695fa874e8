"""Putting a step cache into diffusers' Wan transformer from outside: no line of the model is touched or copied.

Instances get a `forward` of their own, the class keeps its; taking it away again leaves the model as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sightline.errors import SightlineError
from sightline.video.cache import StepCache
from sightline.video.points import Point, SharedAttention
from sightline.video.sites import OUTPUT, Kind

Forward = Callable[..., Any]


class Attachment:
    """A step cache in a model, until `detach()`.

    Args:
        model: a `WanTransformer3DModel`, or one of its kind: `blocks`, each called with the hidden states first and
            giving one tensor, with self-attention `attn1`.
        follow: take the clock from the model's `cache_context(name, step_index=...)`, with which diffusers' own
            Wan pipeline (0.42 and up) names step and branch around each call. Without, the loop says
            `with cache.step(i, branch):`.

    Raises:
        SightlineError: the model is of another kind, has fewer blocks than the plan, or holds a cache already.
    """

    def __init__(self, model: Any, cache: StepCache, *, follow: bool = False) -> None:
        _check(model, cache)
        self.model, self.cache = model, cache
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        shared = cache.shared
        self._replace(model, "forward", _output(model.forward, cache.points.get(OUTPUT), shared))
        for site, point in cache.points.items():
            if site.kind is Kind.BLOCKS:
                self._replace_range(model.blocks, point)
        self._replace_attention(model.blocks, cache)
        if follow:
            self._replace(model, "cache_context", _followed(model.cache_context, cache))

    def detach(self) -> None:
        """Give the model back as it was. A second time does nothing.

        Raises:
            SightlineError: something else replaced a forward meanwhile; it has to go first.
        """
        # Where ranges of two branches overlap, a block's forward was replaced twice: only the last one shows.
        on_top = {(id(owner), name): (owner, new) for owner, name, new, _ in self._replaced}
        for (_, name), (owner, new) in on_top.items():
            if owner.__dict__.get(name) is not new:
                raise SightlineError(
                    f"{type(owner).__name__}.{name} was replaced after the step cache came; take that away first"
                )
        for owner, name, _, old in reversed(self._replaced):
            delattr(owner, name)
            if old is not None:
                setattr(owner, name, old)
        self._replaced.clear()

    def _replace(self, owner: Any, name: str, new: Forward) -> None:
        self._replaced.append((owner, name, new, owner.__dict__.get(name)))
        setattr(owner, name, new)

    def _replace_range(self, blocks: Any, point: Point) -> None:
        start, stop = point.part.start, point.part.stop
        for number in range(start, stop):
            # Each is told its part here and not by a number at run time: a compiled block would be compiled anew
            # for every number.
            make = {(True, True): _alone, (True, False): _first, (False, True): _last}.get(
                (number == start, number == stop - 1), _inner
            )
            self._replace(blocks[number], "forward", make(blocks[number].forward, point))

    def _replace_attention(self, blocks: Any, cache: StepCache) -> None:
        points = {site.start: point for site, point in cache.points.items() if site.kind is Kind.ATTENTION}
        for number, block in enumerate(blocks):
            forward = block.attn1.forward
            if number == 0 and cache.shared is not None:
                forward = _shared(forward, cache.shared)
            if number in points:
                forward = _attention(forward, points[number])
            if forward != block.attn1.forward:
                self._replace(block.attn1, "forward", forward)


@contextmanager
def attached(model: Any, cache: StepCache, *, follow: bool = False) -> Iterator[StepCache]:
    """`Attachment` for the length of a `with`, in one generation: what is held goes when it ends, however it does."""
    attachment = Attachment(model, cache, follow=follow)
    try:
        with cache.generation():
            yield cache
    finally:
        attachment.detach()


def _check(model: Any, cache: StepCache) -> None:
    blocks = getattr(model, "blocks", None)
    if blocks is None or not len(blocks) or not hasattr(blocks[0], "attn1"):
        raise SightlineError(
            f"a {type(model).__name__} has no blocks with attn1 as diffusers' Wan transformer has; for another "
            f"model put CacheAgent.apply into its loop"
        )
    if cache.plan.blocks() > len(blocks):
        raise SightlineError(
            f"the plan needs {cache.plan.blocks()} blocks and the model has {len(blocks)}; take a plan of this model"
        )
    if getattr(model.__dict__.get("forward"), "of_step_cache", False):
        raise SightlineError("the model holds a step cache already; detach that one first")


def _output(forward: Forward, point: Point | None, shared: SharedAttention | None) -> Forward:
    @functools.wraps(forward)
    def cached(*args: Any, **kwargs: Any) -> Any:
        if shared is not None:
            shared.see(args[0] if args else kwargs["hidden_states"])
        if point is None:
            return forward(*args, **kwargs)
        if point.computes:
            output = forward(*args, **kwargs)
            point.store((output[0],))
            return output
        (sample,) = point.predicted()
        # `return_dict` is the fifth argument.
        if not (args[4] if len(args) > 4 else kwargs.get("return_dict", True)):
            return (sample,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=sample)

    cached.of_step_cache = True  # type: ignore[attr-defined]
    return cached


def _first(forward: Forward, point: Point) -> Forward:
    @functools.wraps(forward)
    def cached(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if not point.computes:
            return point.moved((hidden_states,))[0]
        point.enter((hidden_states,))
        return forward(hidden_states, *args, **kwargs)

    return cached


def _inner(forward: Forward, point: Point) -> Forward:
    @functools.wraps(forward)
    def cached(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(hidden_states, *args, **kwargs) if point.computes else hidden_states

    return cached


def _last(forward: Forward, point: Point) -> Forward:
    @functools.wraps(forward)
    def cached(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if not point.computes:
            return hidden_states
        output = forward(hidden_states, *args, **kwargs)
        point.leave((output,))
        return output

    return cached


def _alone(forward: Forward, point: Point) -> Forward:
    return _first(_last(forward, point), point)


def _attention(forward: Forward, point: Point) -> Forward:
    @functools.wraps(forward)
    def cached(*args: Any, **kwargs: Any) -> Any:
        if not point.computes:
            return point.predicted()[0]
        output = forward(*args, **kwargs)
        point.store((output,))
        return output

    return cached


def _shared(forward: Forward, shared: SharedAttention) -> Forward:
    @functools.wraps(forward)
    def cached(*args: Any, **kwargs: Any) -> Any:
        if shared.takes:
            return shared.value
        output = forward(*args, **kwargs)
        if shared.gives:
            shared.value = output
        return output

    return cached


def _followed(cache_context: Forward, cache: StepCache) -> Forward:
    @contextmanager
    @functools.wraps(cache_context)
    def followed(name: str, *args: Any, step_index: int | None = None, **kwargs: Any) -> Iterator[None]:
        if step_index is None:
            raise SightlineError(
                "this diffusers does not name the step around a model's call; update it to 0.42 or newer, or put "
                "`with cache.step(i, branch):` into the loop"
            )
        with cache.step(step_index, name), cache_context(name, *args, step_index=step_index, **kwargs):
            yield

    return followed
