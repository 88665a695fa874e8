"""Media that a client only names: web addresses and files, turned into bytes before the engine hears of them."""

from __future__ import annotations

from sightline.server.media.fetcher import Fetcher
from sightline.server.media.policy import MediaPolicy

__all__ = ["Fetcher", "MediaPolicy"]
