"""Clips that stop their decoder half-way leave nothing behind in the server."""

from __future__ import annotations

import base64
import gc
import os
from pathlib import Path

import httpx
import pytest
from clips import damaged

from sightline.server.run import Address

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="counts threads and memory as Linux does"
)


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _memory() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _ask(client: httpx.Client, seed: int) -> int:
    url = "data:video/mp4;base64," + base64.b64encode(damaged(seed)).decode()
    parts = [{"type": "video_url", "video_url": {"url": url}}]
    reply = client.post(
        "chat/completions", json={"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    )
    assert reply.status_code in (200, 400), reply.text
    return reply.status_code


def test_threads_and_memory_are_given_back(address: Address) -> None:
    with httpx.Client(base_url=address.url + "/", timeout=60) as client:
        for seed in range(10):  # what a first clip sets up stays
            _ask(client, seed)
        gc.disable()  # nothing may wait for the collector's rarest run
        try:
            threads, memory = _threads(), _memory()
            refused = sum(_ask(client, seed) == 400 for seed in range(10, 40))
            threads, memory = _threads() - threads, _memory() - memory
        finally:
            gc.enable()
    assert refused > 15
    assert threads <= 3
    assert memory < 64 * 2**20
