"""The endpoint for comparison does what it says: a row and a commit per order."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from forebay.demo import direct
from forebay.demo.crew import Crew, free_port
from tests.system.harness import http


def test_each_order_is_a_row_when_it_is_answered_and_what_is_none_is_refused(tmp_path: Path) -> None:
    port, database = free_port(), tmp_path / "direct.db"
    plan = {"port": port, "database": f"sqlite:///{database}", "table": "orders"}
    url = f"http://127.0.0.1:{port}/orders"
    with Crew() as crew:
        endpoint = direct.begin(crew, plan)
        # Everybody on the machine can read it; the database's URL has a password in it.
        assert str(database) not in Path(f"/proc/{endpoint.pid}/cmdline").read_text()

        order = b'{"id": "a", "customer": "c", "total": "12.50"}'
        statuses = [http("POST", url, body).status for body in (order, order, b'{"id": "b"}', b"no JSON")]

        rows = sqlite3.connect(database)
        assert rows.execute("select id, customer, total from orders").fetchall() == [("a", "c", 12.5)]
        rows.close()
    assert statuses == [201, 500, 400, 400]
