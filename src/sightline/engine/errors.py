"""Why an engine takes no request, apart from what is wrong with the request."""

from __future__ import annotations

from sightline.errors import SightlineError


class EngineFull(SightlineError):
    """As many requests wait as `max_waiting` allows; later there may be room."""


class EngineStopped(SightlineError):
    """The engine was closed or is being drained."""


class EngineDied(EngineStopped):
    """The engine's thread died; the text says of what."""
