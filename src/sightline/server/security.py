"""What a server's owner should know about its settings before others find out."""

from __future__ import annotations

import stat
from pathlib import Path

from sightline.server.gate import local_names
from sightline.server.settings import ServeSettings


def warnings_about(settings: ServeSettings) -> list[str]:
    """A sentence for each thing that is allowed but seldom meant."""
    found = []
    keys = bool(settings.api_key or settings.api_key_file)
    for prefix, (host, port) in settings.places().items():
        if local_names(host) is None and not keys and prefix != "metrics_":
            found.append(
                f"note: whoever reaches {host}:{port} may use it; ask for a key with --api-key-file, or listen on "
                f"127.0.0.1 alone"
            )
    if found and not settings.allowed_hosts:
        found.append(
            "note: web pages of others can use it too, through the browser of somebody who reaches it (DNS rebinding); "
            "name what it may be called by with --allowed-hosts"
        )
    if keys and not settings.ssl_certfile and local_names(settings.host) is None:
        found.append("note: without --ssl-certfile, API keys travel in the clear")
    if "*" in settings.cors_origin:
        found.append("note: --cors-origin * lets the pages of every web site use this server")
    if settings.log_prompts:
        found.append("note: --log-prompts writes what users ask, and the answers, into the log")
    if settings.api_key_file and _is_open(Path(settings.api_key_file)):
        path = settings.api_key_file
        found.append(f"note: every user of this machine can read the keys; run: chmod 600 {path}")
    return found


def _is_open(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))
    except OSError:
        return False
