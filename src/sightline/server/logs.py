"""Where a server's log goes: stderr, one line an event, with its time."""

from __future__ import annotations

import logging
import sys

from sightline.server.settings import ServeSettings

_FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TIME = "%Y-%m-%dT%H:%M:%S%z"


class _Stderr(logging.Handler):
    """Writes to what stderr is when a line comes: whoever replaces it may have closed the one before."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def set_up_logs(settings: ServeSettings) -> None:
    """Write the server's and the engine's log to stderr, and of libraries what is at least a warning."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter(_FORM, _TIME))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("sightline").setLevel(settings.log_level.upper())
