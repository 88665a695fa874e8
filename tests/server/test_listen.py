"""Connections that want to hold a server up, and what the protocol itself promises."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.responses import Response

from sightline import LLM
from sightline.server import listen
from sightline.server.listen import Port
from sightline.server.run import Address, bind, serve_in_background
from sightline.server.settings import ServeSettings

BODY = json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def address(served_llm: LLM) -> Iterator[Address]:
    settings = {"header_seconds": 0.4, "max_connections": 8, "keep_alive_seconds": 0.5}
    with serve_in_background(served_llm, settings=settings) as address:
        yield address


def connect(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port), timeout=10)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_header_that_does_not_come_ends_the_connection(address: Address, sent: bytes) -> None:
    with connect(address) as slow:
        slow.sendall(sent)
        begun = time.monotonic()
        assert is_closed(slow)
        assert 0.2 < time.monotonic() - begun < 3


def test_a_header_that_drips_ends_too(address: Address) -> None:
    with connect(address) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        begun = time.monotonic()
        with pytest.raises(OSError, match=r"."):
            while time.monotonic() - begun < 5:
                slow.sendall(b"X-Drip: 1\r\n")
                time.sleep(0.05)
        assert time.monotonic() - begun < 3


def test_the_second_header_of_a_connection_is_timed_as_well(address: Address) -> None:
    with connect(address) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(4000).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /heal")
        begun = time.monotonic()
        assert is_closed(slow)
        assert time.monotonic() - begun < 3


def test_a_request_may_take_longer_than_its_header(address: Address) -> None:
    with connect(address) as slow:
        slow.sendall(HEAD + b"\r\n" + BODY[:5])
        time.sleep(0.8)
        slow.sendall(BODY[5:])
        assert slow.recv(4000).startswith(b"HTTP/1.1 200")


def test_expect_100_continue(address: Address) -> None:
    with connect(address) as careful:
        careful.sendall(HEAD + b"Expect: 100-continue\r\n\r\n")
        assert careful.recv(4000).startswith(b"HTTP/1.1 100 ")
        careful.sendall(BODY)
        assert careful.recv(4000).startswith(b"HTTP/1.1 200")


def test_a_refusal_is_told_before_the_body_is_sent(address: Address) -> None:
    with connect(address) as careful:
        careful.sendall(HEAD + b"Expect: 100-continue\r\nOrigin: http://evil.example\r\n\r\n")
        assert careful.recv(4000).startswith(b"HTTP/1.1 403 ")


def test_connections_are_counted(address: Address) -> None:
    held = [connect(address) for _ in range(8)]
    time.sleep(0.1)
    with connect(address) as one_more:
        begun = time.monotonic()
        assert is_closed(one_more)
        assert time.monotonic() - begun < 0.3
    for connection in held:
        connection.close()
    time.sleep(0.2)
    assert httpx.get(f"{address.root}/health").status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"nonsense\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_400(address: Address, sent: bytes) -> None:
    with connect(address) as other:
        other.sendall(sent + b"\r\n" * 4)
        assert other.recv(4000).startswith(b"HTTP/1.1 400 ")


def test_a_header_may_not_be_endless(address: Address) -> None:
    with connect(address) as large:
        try:
            large.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000)
            assert large.recv(4000).startswith(b"HTTP/1.1 4")
        except ConnectionError:  # it was not even read to its end
            pass


_CLIENT = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.sendall(sys.stdin.buffer.read())
connection.recv(100)
print("got", flush=True)
time.sleep(60)
"""


def test_a_killed_client_ends_its_request(address: Address, served_llm: LLM) -> None:
    body = json.dumps({**json.loads(BODY), "max_tokens": 1900, "ignore_eos": True, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    before = served_llm.engine.stats().blocks_used
    client = subprocess.Popen(
        [sys.executable, "-S", "-c", _CLIENT, address.host, str(address.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(head + body)
    client.stdin.close()
    assert client.stdout.readline() == b"got\n"
    assert served_llm.engine.stats().running == 1
    client.kill()
    client.wait()
    client.stdout.close()
    until = time.monotonic() + 5
    while served_llm.engine.stats().running:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert served_llm.engine.stats().blocks_used <= before + 1


def test_a_reset_in_the_middle_of_a_stream(address: Address, served_llm: LLM) -> None:
    body = json.dumps({**json.loads(BODY), "max_tokens": 1900, "ignore_eos": True, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(address) as rude:
        rude.sendall(head + body)
        assert rude.recv(100)
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until = time.monotonic() + 5
    while served_llm.engine.stats().running:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_client_that_reads_nothing_blocks_nobody(address: Address) -> None:
    body = json.dumps({**json.loads(BODY), "max_tokens": 1900, "ignore_eos": True, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect((address.host, address.port))
        slow.sendall(head + body)
        answer = httpx.post(f"{address.url}/chat/completions", content=BODY, timeout=30)
        assert answer.status_code == 200


@pytest.mark.parametrize("line", [b"POST /nothing", b"GET /health"])
def test_a_body_that_drips_after_the_answer_ends_the_connection(address: Address, line: bytes) -> None:
    with connect(address) as slow:
        slow.sendall(line + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.1 ")
        begun = time.monotonic()
        with pytest.raises(OSError, match=r"."):
            while time.monotonic() - begun < 5:
                slow.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - begun < 3


def test_a_connection_goes_on_after_a_body_that_came_late(address: Address) -> None:
    with connect(address) as client:
        client.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 404 ")
        time.sleep(0.1)  # its body comes in a piece of its own
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.recv(1000)
        client.settimeout(10)
        client.sendall(b"abc" + HEAD + b"\r\n" + BODY[:4])
        time.sleep(0.6)
        client.sendall(BODY[4:])
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("pauses", "whole"), [([0.1] * 10, True), ([1.2], False)], ids=["slow", "stuck"])
def test_a_reader_may_be_slow_but_not_stuck(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], whole: bool
) -> None:
    monkeypatch.setattr(listen, "_STUCK_SECONDS", 0.3)
    size = 24 * 2**20

    def read(number: int) -> int:
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
            reader.connect(("127.0.0.1", number))
            reader.settimeout(10)
            reader.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            found = 0
            while True:
                time.sleep(pauses.pop() if pauses else 0)
                try:
                    piece = reader.recv(2**18)
                except ConnectionResetError:
                    return found
                if not piece:
                    return found
                found += len(piece)

    async def serve() -> int:
        port = Port(Response(b"a" * size), ServeSettings(model="x"), None)
        taken = bind("127.0.0.1", 0)
        task = asyncio.create_task(port.serve([taken]))
        await port.listening.wait()
        try:
            return await asyncio.to_thread(read, taken.getsockname()[1])
        finally:
            port.stop()
            await task

    assert (asyncio.run(serve()) > size) is whole
