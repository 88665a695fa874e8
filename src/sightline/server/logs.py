"""Where a server's log goes: stderr, one line an event, with its time."""

from __future__ import annotations

import logging
import sys

from sightline.server.settings import ServeSettings

_FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TIME = "%Y-%m-%dT%H:%M:%S%z"


def set_up_logs(settings: ServeSettings) -> None:
    """Write the server's and the engine's log to stderr, and of libraries what is at least a warning."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORM, _TIME))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("sightline").setLevel(settings.log_level.upper())
