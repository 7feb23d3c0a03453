"""
The endpoint for comparison: each request is one INSERT and one commit, and then the answer.

`begin` starts it as a process of its own, which reads its plan, one line of JSON: `port`, `database` (a URL),
`table`, and perhaps `pool`.

What a competent team writes first: a pool of connections, a transaction per request, 201 when it is
committed, 400 for what is no order, 500 when the database fails. As many threads as usual take a connection
each (`THREADS`), and the system keeps `BACKLOG` more waiting, as a servlet container's acceptCount does.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from decimal import Decimal, InvalidOperation
from http.server import BaseHTTPRequestHandler
from typing import Any

import sqlalchemy as sa

from forebay.demo.crew import Crew, DemoError, Member
from forebay.demo.databases import engine_for, orders_table

THREADS = 200
BACKLOG = 100


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5.0  # an idle connection gives its thread back after this
    disable_nagle_algorithm = True
    wbufsize = -1  # the answer leaves in one piece
    engine: sa.Engine
    table: sa.Table

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            order = json.loads(body)
            row = {"id": order["id"], "customer": order["customer"], "total": Decimal(order["total"])}
        except (ValueError, KeyError, TypeError, InvalidOperation):
            self._answer(400, {"error": "not an order"})
            return
        try:
            with self.engine.begin() as connection:
                connection.execute(self.table.insert(), row)
        except sa.exc.SQLAlchemyError as error:
            self._answer(500, {"error": type(error).__name__})
            return
        self._answer(201, {"id": row["id"]})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _take_turns(listener: socket.socket) -> None:
    while True:
        connection, address = listener.accept()
        with connection:
            try:
                _Handler(connection, address, None)  # type: ignore[arg-type]
            except OSError:
                continue  # the sender is gone


def begin(crew: Crew, plan: dict[str, Any]) -> Member:
    """
    Start it, and return when it takes orders.

    The plan has a password in it, and everybody can read a command line: so it is told by a pipe.

    Raises:
        DemoError: it does not start.
    """
    started = crew.start("direct endpoint", [sys.executable, "-m", __name__], talk=True)
    started.stdin.write(f"{json.dumps(plan)}\n")
    started.stdin.flush()
    if started.stdout.readline() != "ready\n":
        raise DemoError(f"the direct endpoint does not start:\n{started.last_words()}")
    return started


def main(plan: dict[str, Any]) -> None:
    _Handler.engine = engine_for(plan["database"], pool=plan.get("pool"))
    if _Handler.engine.dialect.name == "sqlite":
        sa.event.listen(_Handler.engine, "connect", lambda made, _: made.execute("pragma journal_mode=wal"))
    _Handler.table = orders_table(plan["table"])
    _Handler.table.create(_Handler.engine, checkfirst=True)
    with socket.create_server(("127.0.0.1", plan["port"]), backlog=BACKLOG) as listener:
        for _ in range(THREADS):
            threading.Thread(target=_take_turns, args=(listener,), daemon=True).start()
        print("ready", flush=True)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(json.loads(sys.stdin.readline()))
