"""
Parts that fail in another way than by a signal to a server of ours.

Where no server is at hand, Forebay's embedded queue and SQLite are files, and a file fails by being held:
another process takes the exclusive lock and does not let go, as a stuck volume does. Where URLs are given
the servers are others' and stay as they are: a proxy of ours stands in between, and cuts the connections.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

from forebay.demo.crew import Crew, DemoError, Member

_HOLD = """
import sqlite3, sys
held = []
for path in sys.argv[1:]:
    file = sqlite3.connect(path, isolation_level=None, timeout=30)
    file.execute("begin exclusive")
    held.append(file)
print("held", flush=True)
sys.stdin.read()
"""

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "amqp": 5672}


class Files:
    """SQLite files; failing is an exclusive lock held on them by another process."""

    fate = "locked"

    def __init__(self, crew: Crew, label: str, *paths: Path) -> None:
        self.label = label
        self.urls = [f"sqlite:///{path}" for path in paths]
        self.url = self.urls[0]
        self._crew = crew
        self._paths = paths
        self._holder: Member | None = None

    def start(self) -> None:
        """Nothing to do: the files are made by those who write to them."""

    def fail(self) -> None:
        command = [sys.executable, "-c", _HOLD, *map(str, self._paths)]
        self._holder = self._crew.start(f"{self.label} lock", command, talk=True)
        if self._holder.stdout.readline() != "held\n":
            raise DemoError(f"{self.label} cannot be locked:\n{self._holder.last_words()}")

    def mend(self) -> None:
        assert self._holder is not None
        self._crew.end(self._holder)


class Elsewhere:
    """A server given by its URL; failing is a proxy that cuts all connections and refuses new ones."""

    fate = "cut off"

    def __init__(self, what: str, url: str) -> None:
        """
        Raises:
            DemoError: connections to this URL cannot be led through a proxy.
        """
        parts = urlsplit(url)
        scheme = parts.scheme.partition("+")[0]
        if scheme not in _DEFAULT_PORTS or "," in parts.netloc:
            raise DemoError(
                f"{what}: the demo must be able to cut the connection to {scheme}://…; give one host, by "
                "postgresql://, mysql:// or amqp://, or no URL for a server of the demo's own"
            )
        self.label = f"{what} at {parts.hostname}"
        target = (parts.hostname or "127.0.0.1", parts.port or _DEFAULT_PORTS[scheme])
        self._proxy = _Proxy(target)
        login, at, _ = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{login}{at}127.0.0.1:{self._proxy.start()}").geturl()

    def start(self) -> None:
        """Nothing to do: it runs."""

    def fail(self) -> None:
        self._proxy.cut()

    def mend(self) -> None:
        self._proxy.join()


class _Proxy:
    """Passes TCP connections on, in a thread of its own that ends with the process."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._cut = False
        self._sides: set[asyncio.StreamWriter] = set()

    def start(self) -> int:
        """Listen; the port."""
        threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def cut(self) -> None:
        self._cut = True
        self._loop.call_soon_threadsafe(self._abort_all)

    def join(self) -> None:
        self._cut = False

    def _abort_all(self) -> None:
        for side in self._sides:
            side.transport.abort()

    async def _listen(self) -> int:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sides = [writer]
        try:
            if self._cut:
                return
            back_reader, back = await asyncio.open_connection(*self._target)
            sides.append(back)
            self._sides.update(sides)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(reader, back))
                both.create_task(_pass_on(back_reader, writer))
        except (OSError, ExceptionGroup):
            pass  # one side is gone, so the other goes as well
        finally:
            for side in sides:
                self._sides.discard(side)
                side.transport.abort()


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65_536):
        target.write(data)
        await target.drain()
    raise ConnectionResetError("the other side ended")
