"""What dies where no server of ours can be killed."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.demo.crew import Crew, DemoError
from forebay.demo.standins import Elsewhere, Files


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew


def test_a_locked_file_takes_nothing_until_it_is_mended(crew: Crew, tmp_path: Path) -> None:
    path = tmp_path / "orders.db"
    with sqlite3.connect(path, isolation_level=None, timeout=0) as database:
        database.execute("create table orders (id)")
        files = Files(crew, "SQLite", path)

        files.fail()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            database.execute("insert into orders values (1)")
        files.mend()

        database.execute("insert into orders values (2)")
        assert database.execute("select * from orders").fetchall() == [(2,)]
    database.close()


def is_cut(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def test_a_server_elsewhere_is_reached_until_it_is_cut_off_and_then_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        part = Elsewhere("the database", f"postgresql://me:secret@127.0.0.1:{server.getsockname()[1]}/shop")
        assert part.url.startswith("postgresql://me:secret@127.0.0.1:")
        assert part.url.endswith("/shop")
        port = int(part.url.rpartition(":")[2].partition("/")[0])

        def say(text: bytes) -> tuple[socket.socket, socket.socket]:
            sender = socket.create_connection(("127.0.0.1", port), timeout=10)
            sender.sendall(text)
            answerer, _ = server.accept()
            assert answerer.recv(100) == text
            return sender, answerer

        sender, answerer = say(b"before")
        part.fail()
        assert is_cut(sender)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as refused:
            assert is_cut(refused)
        part.mend()
        again, answers = say(b"after")
        for end in (sender, answerer, again, answers):
            end.close()


@pytest.mark.parametrize("url", ["kafka://one:9092", "amqp://one,two/"])
def test_what_no_proxy_can_stand_in_front_of_is_refused_with_a_way_out(url: str) -> None:
    with pytest.raises(DemoError, match="give one host"):
        Elsewhere("the broker", url)
