"""Why an engine takes no request, apart from what is wrong with the request."""

from __future__ import annotations

from sightline.errors import SightlineError


class EngineFull(SightlineError):
    """As many requests wait as `max_waiting` allows; later there may be room."""


class EngineStopped(SightlineError):
    """The engine was closed or is being drained."""


class EngineDied(EngineStopped):
    """The engine's thread died; the text says of what."""


def forget_frames(error: BaseException) -> None:
    """Let go of what an error and its causes have come through.

    Whoever keeps the error would keep those functions' variables, a request's pictures among them, and as these refer
    to the error in turn, until the collector's rarest run.
    """
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and one.__traceback__ is not None:
            one.__traceback__ = None
            pending += [one.__cause__, one.__context__]
