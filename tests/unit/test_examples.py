"""docs/handlers.md and examples/ do what they say."""

from __future__ import annotations

import http.server
import re
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from consumers.handlers import load_handler
from consumers.settings import QueueSettings
from forebay.brokers.api import Ack, DeadLetter, Release, Retry
from forebay.testing import deliver

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOC = (ROOT / "docs" / "handlers.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)
    assert found, f"docs/handlers.md has no {language} blocks"
    return found


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder and modules as `forebay dev` in examples/ would have them."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "shop"]:
        del sys.modules[name]


@pytest.fixture
def db(examples: None) -> Iterator[sa.Connection]:
    """A database in memory with the shop's tables."""
    load_handler("shop.orders:handle")
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    tables: ModuleType = sys.modules["shop.tables"]
    with engine.connect() as connection:
        tables.metadata.create_all(connection)
        yield connection
    engine.dispose()


# ---- docs/handlers.md


def test_the_code_of_the_guide_runs_and_its_tests_pass() -> None:
    namespace: dict[str, Any] = {"__name__": "guide"}
    exec(compile(blocks("python")[0], "docs/handlers.md", "exec"), namespace)
    first = set(namespace)
    for block in blocks("python")[1:]:
        exec(compile(block, "docs/handlers.md", "exec"), namespace)
    tests: list[Callable[[], None]] = [f for n, f in namespace.items() if n.startswith("test_")]

    assert "handle" in first
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_shapes_of_the_guide_are_the_shapes_that_are_understood() -> None:
    from consumers.handlers import as_handler

    namespace: dict[str, Any] = {"__name__": "guide"}
    exec(compile(blocks("python")[1], "docs/handlers.md", "exec"), namespace)
    shapes = {
        n: (h.takes_batch, h.takes_db)
        for n in ("one", "one_with_database", "many", "many_with_database", "slow")
        for h in [as_handler(namespace[n])]
    }

    assert shapes == {
        "one": (False, False),
        "one_with_database": (False, True),
        "many": (True, False),
        "many_with_database": (True, True),
        "slow": (False, False),
    }


def test_the_settings_of_the_guide_are_valid_and_name_handlers_that_exist(examples: None) -> None:
    for block in [*blocks("toml"), (EXAMPLES / "forebay.toml").read_text()]:
        for queue in tomllib.loads(block)["queues"].values():
            spec = QueueSettings.model_validate(queue).handler
            assert spec is not None
            load_handler(spec)


# ---- examples/shop


def test_an_order_becomes_a_row(db: sa.Connection) -> None:
    fate = deliver("shop.orders:handle", {"customer": "Ada", "cents": 1200}, db=db)

    assert isinstance(fate, Ack)
    rows = db.execute(sa.text("SELECT id, customer, cents FROM shop_orders")).all()
    assert rows == [(fate.delivery.message.id, "Ada", 1200)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff", "not an order: UnicodeDecodeError"),
        ({"customer": "Ada"}, "not an order: KeyError"),
        ([], "not an order: TypeError"),
        ({"customer": "Ada", "cents": 0}, "SQLITE_CONSTRAINT_CHECK, constraint cents_positive"),
    ],
)
def test_what_is_not_an_order_is_a_dead_letter_with_its_reason(
    db: sa.Connection, body: object, reason: str
) -> None:
    fate = deliver("shop.orders:handle", body, db=db)

    assert isinstance(fate, DeadLetter)
    assert fate.failure.reason == reason
    assert db.execute(sa.text("SELECT count(*) FROM shop_orders")).scalar_one() == 0


def test_a_missing_table_pauses_the_queue(examples: None) -> None:
    assert isinstance(deliver("shop.orders:handle", {"customer": "Ada", "cents": 1}), Release)


def test_clicks_are_counted(db: sa.Connection) -> None:
    for page in ("/", "/hats", "/"):
        assert isinstance(deliver("shop.clicks:count", page, db=db), Ack)

    assert dict(db.execute(sa.text("SELECT page, count FROM shop_clicks")).all()) == {"/": 2, "/hats": 1}


@pytest.fixture
def mail_service(examples: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A mail service that answers what `answer` says, and remembers the keys that it was sent."""
    service: dict[str, Any] = {"answer": 202, "headers": {}, "keys": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            service["keys"].append(self.headers["Idempotency-Key"])
            self.send_response(service["answer"])
            for name, value in service["headers"].items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("MAIL_SERVICE", f"http://127.0.0.1:{server.server_port}/")
        yield service
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "fate"),
    [(202, Ack), (422, DeadLetter), (429, Retry), (500, Retry), (503, Release)],
)
def test_what_the_mail_service_answers_decides_what_happens(
    mail_service: dict[str, Any], answer: int, fate: type
) -> None:
    mail_service["answer"] = answer

    settled = deliver("shop.mails:send", "Dear Ada")

    assert isinstance(settled, fate)
    assert mail_service["keys"] == [settled.delivery.message.id]


def test_the_mail_service_names_the_delay(mail_service: dict[str, Any]) -> None:
    mail_service.update(answer=429, headers={"Retry-After": "7"})

    settled = deliver("shop.mails:send", "Dear Ada")

    assert isinstance(settled, Retry)
    assert settled.delay == 7


def test_a_mail_service_that_is_gone_pauses_the_queue(
    mail_service: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_SERVICE", "http://127.0.0.1:9/")

    assert isinstance(deliver("shop.mails:send", "Dear Ada"), Release)
