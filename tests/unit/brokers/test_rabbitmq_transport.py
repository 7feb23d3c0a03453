"""The event loop's transport, as pika wants one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from forebay.brokers.rabbitmq.transport import Services
from tests.waiting import until


class Protocol:
    """What pika gives; writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.heard = b""
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.told.append("made")

    def connection_lost(self, error: BaseException | None) -> None:
        self.told.append(error)
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def eof_received(self) -> bool:
        self.told.append("eof")
        return False


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[socket.socket, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A socket, and the other end of it."""
    accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *ends: accepted.set_result(ends), "127.0.0.1", 0)
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, server.sockets[0].getsockname())
    reader, writer = await accepted
    try:
        yield sock, reader, writer
    finally:
        writer.close()
        server.close()
        await server.wait_closed()


async def test_pika_is_told_of_the_transport_in_the_turn_that_it_is_made_in() -> None:
    protocol = Protocol()
    async with connected() as (sock, reader, writer):
        services = Services(asyncio.get_running_loop())
        services.create_streaming_connection(lambda: protocol, sock, protocol.told.append)
        await until(lambda: bool(protocol.told))
        _, (transport, told) = protocol.told
        assert told is protocol
        transport.write(b"to the server")
        assert await reader.readexactly(13) == b"to the server"
        writer.write(b"and back")
        await until(lambda: protocol.heard == b"and back")
        transport.abort()
        await protocol.lost.wait()
    assert protocol.told[2:] == [None]


async def test_a_server_that_says_goodbye_is_told_before_the_connection_is_lost() -> None:
    protocol = Protocol()
    async with connected() as (sock, _, writer):
        services = Services(asyncio.get_running_loop())
        services.create_streaming_connection(lambda: protocol, sock, lambda _: None)
        await until(lambda: bool(protocol.told))
        writer.close()
        async with asyncio.timeout(5):
            await protocol.lost.wait()
    assert protocol.told == ["made", "eof", None]


async def test_one_that_is_cancelled_tells_nobody_and_closes_the_socket() -> None:
    protocol = Protocol()
    async with connected() as (sock, reader, _):
        services = Services(asyncio.get_running_loop())
        opening = services.create_streaming_connection(lambda: protocol, sock, protocol.told.append)
        await asyncio.sleep(0)  # it has begun
        assert opening.cancel()
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    assert protocol.told == []


async def test_once_pika_was_told_there_is_nothing_to_cancel() -> None:
    protocol = Protocol()
    async with connected() as (sock, _, _):
        services = Services(asyncio.get_running_loop())
        opening = services.create_streaming_connection(lambda: protocol, sock, protocol.told.append)
        await until(lambda: bool(protocol.told))
        assert not opening.cancel()
        protocol.told[1][0].abort()
        await protocol.lost.wait()
