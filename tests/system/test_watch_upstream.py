"""deploy/nginx/watch-upstream with a real nginx: the gateways that a DNS name stands for come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.needs import missing_server
from tests.servers.nginx import NginxNotInstalled, configuration, find_nginx
from tests.servers.postgres import free_port
from tests.servers.receiver import Receiver
from tests.waiting import until


class Fake(Receiver):
    """A gateway, of which all that counts is whether it is ready."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host=host)
        self.port = port
        self.ready = True
        self.posts = 0
        self.answer = self._answer

    async def _answer(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if request.path == "/readyz":
            return web.Response(status=200 if self.ready else 503)
        self.posts += 1
        return web.json_response({}, status=202)


class Watched:
    """watch-upstream in a folder, with a resolver that reads a file."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.gateway_port = port
        self.port = free_port()
        self.conf = configuration(folder, self.port)
        self.upstream = self.conf / "upstream"
        self._names = folder / "names"
        self._asked = folder / "asked"
        resolver = folder / "bin/getent"
        resolver.parent.mkdir()
        # As getent prints them: a line for each kind of socket.
        resolver.write_text(
            f"#!/bin/sh\necho >>{self._asked}\n"
            f'for a in $(cat {self._names}); do echo "$a STREAM $2"; echo "$a DGRAM"; done\n'
        )
        resolver.chmod(0o755)
        self.resolve()
        self._process: subprocess.Popen[bytes] | None = None

    def resolve(self, *addresses: str) -> None:
        self._names.with_suffix(".new").write_text("\n".join(addresses))
        self._names.with_suffix(".new").replace(self._names)

    def start(self) -> None:
        path = f"{self.folder}/bin:{Path(find_nginx()).parent}:{os.environ['PATH']}"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.conf / "watch-upstream", "gateway", str(self.gateway_port), self.folder / "run", "0.1"],
                env={"PATH": path}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(20)

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def in_rotation(self) -> set[str]:
        """The last part of each address."""
        lines = (self.upstream / "gateways.conf").read_text().splitlines()
        return {line.split(":")[0].rpartition(".")[2] for line in lines if line.startswith("server ")}

    async def looks(self) -> None:
        """Return when it has looked, and done what follows from that."""
        before = self._asked.stat().st_size
        await until(lambda: self._asked.stat().st_size >= before + 2)

    async def post(self) -> int:
        """The status; 0 if nginx does not listen yet."""
        try:
            async with (
                aiohttp.ClientSession() as client,
                client.post(f"http://127.0.0.1:{self.port}/v1/queues/orders/messages", data=b"{}") as answer,
            ):
                return answer.status
        except aiohttp.ClientError:
            return 0


@pytest.fixture
def watched() -> Iterator[Watched]:
    try:
        find_nginx()
    except NginxNotInstalled as missing:
        missing_server(str(missing))
    with tempfile.TemporaryDirectory(prefix="forebay-watch-") as folder:
        Path(folder).chmod(0o711)
        running = Watched(Path(folder), free_port())
        yield running
        running.close()


@pytest.fixture
async def gateways(watched: Watched) -> AsyncIterator[dict[str, Fake]]:
    """Three, at the same port of three addresses, by the last part of the address."""
    async with AsyncExitStack() as stack:
        yield {
            n: await stack.enter_async_context(Fake(f"127.0.0.{n}", watched.gateway_port))
            for n in ("2", "3", "4")
        }


async def rotation(watched: Watched, *expected: str) -> None:
    try:
        await until(lambda: watched.in_rotation() == set(expected), 20)
    except TimeoutError:
        raise AssertionError(f"{watched.in_rotation()} and not {expected}:\n{watched.log}") from None


async def status(watched: Watched, expected: int) -> None:
    """A reload takes a moment."""
    async with asyncio.timeout(20):
        while await watched.post() != expected:  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.02)


async def test_gateways_come_into_rotation_when_they_are_ready_and_leave_it_when_they_are_not(
    watched: Watched, gateways: dict[str, Fake]
) -> None:
    """Nobody at first; then two; one more; one that drains; all of them not ready; none in DNS."""
    watched.start()
    await status(watched, 503)

    watched.resolve("127.0.0.3", "127.0.0.2")
    await rotation(watched, "2", "3")
    gateways["4"].ready = False
    watched.resolve("127.0.0.3", "127.0.0.2", "127.0.0.4")
    gateways["2"].ready = False
    await rotation(watched, "3")
    gateways["4"].ready = True
    await rotation(watched, "3", "4")

    for gateway in gateways.values():
        gateway.ready = False
    await rotation(watched, "2", "3", "4")
    watched.resolve()
    await watched.looks()
    assert watched.in_rotation() == {"2", "3", "4"}
    await status(watched, 202)
    assert await asyncio.to_thread(watched.stop) == 0


async def test_a_deploy_holds_newcomers_back_until_they_are_proven(
    watched: Watched, gateways: dict[str, Fake]
) -> None:
    watched.resolve("127.0.0.2")
    watched.start()
    await rotation(watched, "2")
    hold = watched.upstream / "hold"
    hold.touch()
    watched.resolve("127.0.0.2", "127.0.0.3", "127.0.0.4")
    await watched.looks()
    assert watched.in_rotation() == {"2"}

    (watched.upstream / "proven").write_text("127.0.0.3\n")
    await rotation(watched, "2", "3")
    gateways["2"].ready = False
    await rotation(watched, "3")

    # The deploy has died a minute ago.
    long_ago = hold.stat().st_mtime - 61
    os.utime(hold, (long_ago, long_ago))
    await rotation(watched, "3", "4")
