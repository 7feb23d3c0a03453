"""How workers share the connections of one socket, here all of them in one process."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from gateway.server import bind
from gateway.settings import GatewaySettings
from gateway.sharing import ABSENT, MARGIN, Listener, Share
from tests.waiting import until


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.worker.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        self.worker.listener.tell()


class Worker:
    def __init__(self, sock: socket.socket, share: Share) -> None:
        self.connections: set[Echo] = set()
        self.listener = Listener(sock, share, lambda: Echo(self), connected=lambda: len(self.connections))


Connect = Callable[[], socket.socket]


@asynccontextmanager
async def workers(held: list[int], *places: int) -> AsyncIterator[tuple[list[Worker], Connect]]:
    """Those at `places` of `held` are at work."""
    async with AsyncExitStack() as stack:
        sock = stack.enter_context(bind(GatewaySettings(port=0)))

        def connect() -> socket.socket:
            client = stack.enter_context(socket.create_connection(sock.getsockname()))
            client.setblocking(False)
            return client

        started = [Worker(stack.enter_context(sock.dup()), Share(held, place)) for place in places]
        for worker in started:
            stack.callback(worker.listener.close)
        yield started, connect


async def test_a_burst_is_shared_evenly() -> None:
    held = [ABSENT] * 3
    async with workers(held, 0, 1, 2) as (_, connect):
        for _ in range(60):
            connect()
        await until(lambda: sum(held) == 60)

        assert max(held) - min(held) <= MARGIN + 1


async def test_a_new_worker_takes_all_until_it_holds_as_many_as_the_others() -> None:
    held = [30, ABSENT]
    async with workers(held, 1) as ((new,), connect):
        for _ in range(30):
            connect()
        await until(lambda: len(new.connections) == 30)
        await until(lambda: held == [30, 30])


@pytest.mark.parametrize("others", [[], [ABSENT], [ABSENT, ABSENT]])
async def test_nobody_waits_for_those_that_are_not_there(others: list[int]) -> None:
    held = [ABSENT, *others]
    async with workers(held, 0) as (_, connect):
        for _ in range(40):
            connect()
        await until(lambda: held == [40, *others])


async def test_connections_are_taken_although_the_one_with_the_fewest_takes_none() -> None:
    held = [ABSENT, 0]
    async with workers(held, 0) as (_, connect):
        clients = [connect() for _ in range(2 * MARGIN)]
        for client in clients:
            await asyncio.get_running_loop().sock_sendall(client, b"x")
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b"x"
        await until(lambda: held == [2 * MARGIN, 0])


async def test_connections_that_ended_do_not_count() -> None:
    held = [ABSENT]
    async with workers(held, 0) as (_, connect):
        clients = [connect() for _ in range(5)]
        await until(lambda: held == [5])
        for client in clients[:3]:
            client.close()
        await until(lambda: held == [2])


async def test_who_listens_no_more_is_out_of_it_whatever_ends_later() -> None:
    held = [ABSENT]
    async with workers(held, 0) as ((worker,), connect):
        connect()
        client = connect()
        await until(lambda: len(worker.connections) == 2)
        worker.listener.close()
        assert held == [ABSENT]
        client.close()
        await until(lambda: len(worker.connections) == 1)

        assert held == [ABSENT]


async def test_what_was_accepted_at_the_end_still_arrives() -> None:
    held = [ABSENT]
    async with workers(held, 0) as ((worker,), connect):
        connect()
        await until(lambda: held == [1])
        worker.listener.close()
        await worker.listener.arrived(timeout=10)

        assert len(worker.connections) == 1


class OutOfFiles(socket.socket):
    """Cannot accept the first time."""

    failed = False

    def accept(self) -> tuple[socket.socket, object]:
        if not self.failed:
            self.failed = True
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_who_runs_out_of_files_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sharing.OUT_OF_FILES", 0.01)
    held = [ABSENT]
    with bind(GatewaySettings(port=0)) as bound, OutOfFiles(fileno=bound.dup().detach()) as sock:
        sock.setblocking(False)
        worker = Worker(sock, Share(held, 0))
        with socket.create_connection(bound.getsockname()):
            await until(lambda: held == [1])

            assert sock.failed
        worker.listener.close()
