"""What the load generator itself costs and blurs: it reads streams whose chunks say when they were sent.

`python -m online.clock PORT` is the server: a chunk every `interval` seconds (a field of the request), whose text is
the moment of its sending on the clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from online.contestants import Server
from online.process import running
from sightline.bench.serve.connection import Client, Site
from sightline.bench.serve.load import Measured, run_load
from sightline.bench.serve.server import Server as Asked

STREAMS = (1, 16, 64)


def measure(tokens_per_second: float, seconds: float) -> list[dict[str, Any]]:
    """For each number of streams, so many tokens a second in sum: how late chunks are noted, and the CPU it takes."""
    packages = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    server = Server("clock", [sys.executable, "-m", "online.clock"], {"PYTHONPATH": path})
    with running(server) as it:
        return [
            asyncio.run(_streams(it.url, streams, streams / tokens_per_second, seconds))
            for streams in STREAMS
        ]


async def _streams(url: str, streams: int, interval: float, seconds: float) -> dict[str, Any]:
    client = Client(Site.read(url))
    asked = Asked(client, "/v1/chat/completions", "clock", {})
    count = round(seconds / interval)
    body = json.dumps({"interval": interval, "max_tokens": count}).encode()
    # Streams begin spread over one interval, as they do in a server.
    times = [interval * number / streams for number in range(streams)]
    started, own = time.perf_counter(), time.process_time()
    measured = await run_load([partial(asked.ask, body)] * streams, times, progress=False)
    busy = time.process_time() - own
    await client.close()
    return {"streams": streams, **_blur(measured), "cpu_share": busy / (time.perf_counter() - started)}


def _blur(measured: Measured) -> dict[str, float]:
    """Microseconds: from sending to noting a chunk, and by how much a gap is wrong."""
    late: list[float] = []
    wrong: list[float] = []
    for one in measured.outcomes:
        sent = np.array([float(word) for word in one.text.split()])
        noted = one.start + one.ttft + np.cumsum([0.0, *one.itls])
        late += [float(value) for value in (noted - sent) * 1e6]
        wrong += [float(value) for value in np.abs(np.diff(noted) - np.diff(sent)) * 1e6]
    return {
        "chunks": float(len(late)),
        "failed": float(sum(not one.ok for one in measured.outcomes)),
        "median_late_us": statistics.median(late),
        "p99_late_us": float(np.percentile(late, 99)),
        "median_gap_error_us": statistics.median(wrong),
        "p99_gap_error_us": float(np.percentile(wrong, 99)),
    }


async def _serve(port: int) -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", port)
    await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if head.startswith("GET"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                continue
            length = int(head.lower().partition("content-length:")[2].split()[0])
            await _stream(json.loads(await reader.readexactly(length)), writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _stream(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    due = time.perf_counter()
    for _ in range(body["max_tokens"]):
        due += body["interval"]
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        delta = {"content": f"{time.perf_counter():.7f} "}
        _chunk(writer, json.dumps({"id": "chatcmpl-" + "0" * 32, "choices": [{"index": 0, "delta": delta}]}))
    _chunk(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def _chunk(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[sys.argv.index("--port") + 1])))
