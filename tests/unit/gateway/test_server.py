"""Listening, draining and workers, with real sockets and real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from forebay.brokers.api import Durability
from forebay.errors import BrokerUnavailable, SettingsError
from gateway.server import bind
from gateway.settings import GatewaySettings
from tests.unit.gateway.support import ScriptedBroker, request, running
from tests.waiting import until


def test_a_busy_port_is_named_with_its_holder_and_the_flag_that_changes_it() -> None:
    with bind(GatewaySettings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError) as error:
            bind(GatewaySettings(port=port))

    text = str(error.value)
    assert f"port {port} on 127.0.0.1 is in use" in text
    assert f"(pid {os.getpid()})" in text
    assert "--port" in text


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(SettingsError, match="--host"):
        bind(GatewaySettings(host="192.0.2.1", port=0, insecure_no_auth=True))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_loopback_without_authentication_it_refuses_to_listen(host: str) -> None:
    with pytest.raises(SettingsError, match="--insecure-no-auth"):
        bind(GatewaySettings(host=host, port=0))


def test_whoever_accepts_that_may_listen_everywhere() -> None:
    with bind(GatewaySettings(host="0.0.0.0", port=0, insecure_no_auth=True)) as sock:
        assert sock.getsockname()[0] == "0.0.0.0"


def test_keys_that_cannot_be_checked_are_not_ignored() -> None:
    with pytest.raises(SettingsError, match="keys_file"):
        bind(GatewaySettings(port=0, keys_file=Path("keys.toml")))


def test_limits_that_could_admit_no_full_body_are_refused() -> None:
    with pytest.raises(ValueError, match="max_in_flight_bytes"):
        GatewaySettings(max_body_bytes=1000, max_in_flight_bytes=999)


async def test_the_lifespans_error_reaches_the_caller() -> None:
    class Away(ScriptedBroker):
        async def declare(self, queue: str) -> Durability:
            raise BrokerUnavailable("connection refused")

    with pytest.raises(BrokerUnavailable):
        async with running(Away()):
            raise AssertionError


async def test_a_drain_finishes_what_is_in_flight_and_then_closes_the_broker() -> None:
    async with running() as gateway:
        gateway.broker.gate.clear()
        connection = await gateway.connect()
        await connection.send(request(b"in flight"))
        await gateway.broker.began.wait()
        gateway.stop.set()
        port = gateway.port

        def refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) != 0

        await until(refused)
        assert not gateway.broker.closed
        gateway.broker.gate.set()
        answer = await connection.answer()
        await gateway.served

        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert gateway.broker.closed
        assert [m.body for m in gateway.broker.messages] == [b"in flight"]


async def test_while_the_drain_delay_runs_it_is_not_ready_and_still_serves() -> None:
    async with running(drain_delay=30) as gateway:
        gateway.stop.set()
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: parts.health.draining)
        not_ready = await gateway.client.get("/readyz")
        sent = await gateway.post()
        gateway.served.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gateway.served

        assert (not_ready.status_code, sent.status_code) == (503, 202)
        gateway.served = asyncio.create_task(asyncio.sleep(0))


async def test_what_cannot_be_finished_in_time_is_answered_unknown() -> None:
    async with running(shutdown_timeout=1, request_timeout=2) as gateway:
        gateway.broker.gate.clear()
        connection = await gateway.connect()
        await connection.send(request())
        await gateway.broker.began.wait()
        gateway.stop.set()
        answer = await connection.answer()

        assert (answer.status, answer.problem["type"]) == (503, "/problems/outcome-unknown")


async def test_a_body_that_does_not_end_in_time_for_the_drain_is_told_to_come_back() -> None:
    async with running(shutdown_timeout=1) as gateway:
        connection = await gateway.connect()
        await connection.send(
            b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        )
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: len(parts.ingest.bodies_on_their_way) == 1)
        gateway.stop.set()
        answer = await connection.answer()

        assert (answer.status, answer.problem["type"]) == (503, "/problems/not-ready")


# ---- workers

SCRIPT = """
import os, sys
from gateway.server import bind
from gateway.settings import GatewaySettings
from gateway.workers import run_workers

settings = GatewaySettings(port=0, workers=2)

def make():
    from contextlib import asynccontextmanager
    from gateway.app import create_app
    from gateway.queues import QueueRegistry
    from tests.unit.gateway.support import ScriptedBroker

    @asynccontextmanager
    async def broker():
        yield ScriptedBroker()

    return create_app(broker=broker, settings=settings, queues=QueueRegistry(["orders"]))

def broken():
    from forebay.errors import SettingsError
    raise SettingsError("something is wrong")

if __name__ == "__main__":
    sock = bind(settings)
    print(sock.getsockname()[1], flush=True)
    sys.exit(run_workers(sys.argv[1], settings, sock))
"""


class Workers:
    def __init__(self, folder: Path, factory: str) -> None:
        (folder / "workers_under_test.py").write_text(SCRIPT)
        root = Path(__file__).parents[3]
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "workers_under_test.py"), f"workers_under_test:{factory}"],
            env=os.environ | {"PYTHONPATH": f"{folder}:{root}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"

    def children(self) -> set[int]:
        """The workers; multiprocessing's resource tracker is a child, too, but serves nothing."""
        found = set()
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
        return found

    def held(self) -> dict[int, int]:
        """How many connections each worker has."""
        port = int(self.url.rpartition(":")[2])
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = {
            f"socket:[{inode}]"
            for _, local, _, state, *_, inode in (line[:10] for line in lines)
            if state == "01" and int(local.rpartition(":")[2], 16) == port
        }
        found = dict.fromkeys(self.children(), 0)
        for pid in found:
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found[pid] += os.readlink(file) in ours
        return found

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Workers]]:
    started: list[Workers] = []

    def start(factory: str) -> Workers:
        started.append(Workers(tmp_path, factory))
        return started[-1]

    yield start
    for workers in started:
        if workers.process.poll() is None:
            workers.process.kill()
            workers.end()


PATIENCE = 30
"""Seconds that workers may take to start beside everything else on a busy machine."""


def accepted(url: str) -> float:
    text = httpx2.get(f"{url}/metrics", timeout=PATIENCE).text
    found = re.search(r'messages_total\{outcome="accepted",queue="orders"\} ([0-9.]+)', text)
    return float(found[1]) if found else 0.0


def test_workers_share_the_port_are_replaced_when_they_die_and_drain_on_sigterm(
    start: Callable[[str], Workers],
) -> None:
    workers = start("make")
    for _ in range(20):
        # A fresh connection each time, so that both workers get some.
        assert (
            httpx2.post(
                f"{workers.url}/v1/queues/orders/messages", content=b"{}", timeout=PATIENCE
            ).status_code
            == 202
        )
    before = workers.children()
    assert len(before) == 2
    assert accepted(workers.url) == 20

    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while len(workers.children() - {victim}) != 2 or victim in workers.children():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (
        httpx2.post(f"{workers.url}/v1/queues/orders/messages", content=b"{}", timeout=PATIENCE).status_code
        == 202
    )
    assert accepted(workers.url) == 21

    workers.process.send_signal(signal.SIGTERM)
    code, errors = workers.end()
    assert code == 0, errors


def test_the_worker_with_fewer_connections_gets_the_next_ones(start: Callable[[str], Workers]) -> None:
    """One of two is stopped, and nobody waits for it; when it is back it catches up."""
    workers = start("make")
    accepted(workers.url)  # one is there
    port = int(workers.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:

        def connect() -> None:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")

        deadline = time.monotonic() + PATIENCE
        while sum(held > 0 for held in workers.held().values()) < 2:
            assert time.monotonic() < deadline
            connect()
        stopped, other = workers.children()
        os.kill(stopped, signal.SIGSTOP)
        while (before := workers.held())[other] < before[stopped] + 40:
            connect()
        os.kill(stopped, signal.SIGCONT)
        for _ in range(40):
            connect()
        after = workers.held()

    assert after[stopped] >= before[stopped] + 30, (before, after)


def test_draining_workers_refuse_connections_that_nobody_will_serve(
    start: Callable[[str], Workers],
) -> None:
    """Rather than let them wait in the queue of a socket that only the supervisor still has open."""
    workers = start("make")
    assert httpx2.get(f"{workers.url}/livez", timeout=PATIENCE).status_code == 200
    port = int(workers.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
        time.sleep(0.2)  # until a worker has it; were it later, there would be less to wait for
        workers.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert workers.process.poll() is None, "still draining"
        slow.sendall(b"}")
        assert slow.recv(1000).startswith(b"HTTP/1.1 202 ")
    code, errors = workers.end()
    assert code == 0, errors


def test_workers_figures_need_no_disk(start: Callable[[str], Workers]) -> None:
    """A full one would kill the worker that counts something for the first time."""
    workers = start("make")
    assert accepted(workers.url) == 0.0
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in workers.children())
    figures = re.findall(r"\S+\.db$", maps, re.MULTILINE)
    assert figures
    assert all(f.startswith("/dev/shm/") for f in figures), figures


def test_a_worker_that_cannot_start_stops_them_all_with_its_code(start: Callable[[str], Workers]) -> None:
    code, errors = start("broken").end()

    assert code == 2
    assert "something is wrong" in errors


def test_workers_end_with_their_supervisor(start: Callable[[str], Workers]) -> None:
    workers = start("make")
    assert httpx2.get(f"{workers.url}/livez", timeout=PATIENCE).status_code == 200
    workers.process.kill()
    workers.end()

    deadline = time.monotonic() + 15
    while True:
        try:
            httpx2.get(f"{workers.url}/livez", timeout=PATIENCE)
        except httpx2.TransportError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
