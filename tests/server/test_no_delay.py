"""Pieces of an answer leave when they are written."""

from __future__ import annotations

import asyncio
import socket

from sightline.server.listen import bind


def test_connections_to_a_bound_port_send_at_once() -> None:
    async def ask() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            accepted.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = bind("127.0.0.1", 0)
        async with await asyncio.start_server(note, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            found = await asyncio.wait_for(accepted, 10)
            writer.close()
            return found

    assert asyncio.run(ask()) == 1
