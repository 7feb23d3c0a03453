"""What the HTTP sides of Forebay share: a socket with an error that helps, and uvicorn without its habits."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from forebay.errors import SettingsError

BACKLOG = 2048


def address_of(host: str, port: int, *, section: str) -> tuple[int, int, Any]:
    """
    Family, kind and address of what the settings `section`.host and .port name.

    Raises:
        SettingsError: the host is no address of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(
            f"{section}.host {host!r} is no address of this machine ({error.strerror});"
            f" choose one with --host or FOREBAY_{section.upper()}__HOST, like 127.0.0.1"
        ) from error
    return family, kind, address


def is_loopback(address: Any) -> bool:
    return ipaddress.ip_address(address[0]).is_loopback


def listen(host: str, port: int, *, section: str) -> socket.socket:
    """
    The listening socket. Connections queue on it from now on.

    Raises:
        SettingsError: the port is busy or not ours to take, or the host is no address of this machine.
    """
    family, kind, address = address_of(host, port, section=section)
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise SettingsError(_cannot_listen(host, port, section, error)) from error
    sock.setblocking(False)
    return sock


def _cannot_listen(host: str, port: int, section: str, error: OSError) -> str:
    choose = f"choose another with --port or FOREBAY_{section.upper()}__PORT"
    where = f"port {port} on {host}"
    if error.errno == errno.EADDRINUSE:
        holder = _holder(port)
        return f"{where} is in use{f' by {holder}' if holder else ''}; {choose} (0 picks a free one)"
    if error.errno == errno.EACCES:
        return f"{where} may only be taken by root; {choose}, above 1023"
    return f"cannot listen on {where}: {error.strerror}; choose with --host and --port"


def _holder(port: int) -> str | None:
    """The process that listens on `port`, where /proc tells us."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        # Processes of other users, and those that end meanwhile, cannot be read.
        with contextlib.suppress(OSError):
            if inodes.intersection(os.readlink(fd) for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


class Server(uvicorn.Server):
    """Uvicorn's server, leaving signals to whoever runs us, and telling when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
