from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from consumers.handlers import as_handler, close_runner, load_handler
from forebay.errors import SettingsError
from forebay.message import Message
from tests.unit.consumers.build import delivery

MESSAGE = delivery("a").message


def single(message: Message) -> None: ...
def with_db(message: Message, db: Connection) -> None: ...
def batch(messages: list[Message]) -> None: ...
def batch_with_db(messages: list[Message], db: Connection) -> None: ...
def bare(message, db): ...  # type: ignore[no-untyped-def]  # as many will write it
def with_default(message: Message, retries: int = 3) -> None: ...
def three(message: Message, db: Connection, more: int) -> None: ...
def nothing() -> None: ...
def keyword(message: Message, *, db: Connection) -> None: ...
def wants_engine(message: Message, db: sa.Engine) -> None: ...


class Callable:
    def __call__(self, message: Message) -> None: ...


@pytest.mark.parametrize(
    ("function", "takes_batch", "takes_db"),
    [
        (single, False, False),
        (with_db, False, True),
        (batch, True, False),
        (batch_with_db, True, True),
        (bare, False, True),
        (with_default, False, False),
        (Callable(), False, False),
    ],
)
def test_the_signature_says_how_it_wants_to_be_called(
    function: object, takes_batch: bool, takes_db: bool
) -> None:
    handler = as_handler(function)  # type: ignore[arg-type]  # callables of any shape
    assert (handler.takes_batch, handler.takes_db) == (takes_batch, takes_db)


@pytest.mark.parametrize("function", [three, nothing, keyword, Callable, "text"])
def test_what_cannot_be_called_with_a_message_is_refused_with_what_to_write(function: object) -> None:
    with pytest.raises(SettingsError, match="handle"):
        as_handler(function)  # type: ignore[arg-type]  # that is the point


def test_a_wish_for_another_kind_of_database_handle_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"wants a Engine.*given a sqlalchemy.Connection"):
        as_handler(wants_engine)


def test_a_handler_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "warehouse").mkdir()
    (tmp_path / "warehouse" / "__init__.py").touch()
    (tmp_path / "warehouse" / "stock.py").write_text(
        "class Stock:\n  def handle(self, m): ...\nstock = Stock()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    handler = load_handler("warehouse.stock:stock.handle")

    assert handler.spec == "warehouse.stock:stock.handle"
    assert not handler.takes_batch


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("shop.orders", 'write "package.module:function"'),
        (":handle", 'write "package.module:function"'),
        ("no_such_package.orders:handle", "no module 'no_such_package'"),
        ("broken_a:handle", "imports 'no_such_dependency', which is not installed"),
        ("broken_b:handle", r"failed with ValueError: boom \(.*broken_b.py, line 2\)"),
        ("broken_c:handle", r"failed with SyntaxError: .*\(broken_c.py, line 2\)$"),
        ("fine:handel", "has no 'handel'; did you mean 'handle'"),
        ("fine:NUMBER", "is a int, not a function"),
    ],
)
def test_a_handler_that_cannot_be_loaded_is_explained(
    spec: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_a.py").write_text("import no_such_dependency\n")
    (tmp_path / "broken_b.py").write_text("\nraise ValueError('boom')\n")
    (tmp_path / "broken_c.py").write_text("\ndef handle(message db): ...\n")
    (tmp_path / "fine.py").write_text("NUMBER = 1\ndef handle(message): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("broken_a", "broken_b", "broken_c", "fine"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    with pytest.raises(SettingsError, match=says):
        load_handler(spec)


def test_coroutines_of_one_thread_share_an_event_loop() -> None:
    """So that an HTTP session that a handler keeps open stays usable."""
    loops = []

    async def handle(message: Message) -> None:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())

    try:
        as_handler(handle).call([MESSAGE], None)
        as_handler(handle).call([MESSAGE], None)
    finally:
        close_runner()

    assert loops[0] is loops[1]


async def test_an_async_handler_inside_a_running_loop_is_told_the_way_out() -> None:
    async def handle(message: Message) -> None: ...

    with pytest.raises(RuntimeError, match="to_thread"):
        as_handler(handle).call([MESSAGE], None)


def test_a_handler_cannot_end_the_program() -> None:
    def handle(message: Message) -> None:
        sys.exit(1)

    with pytest.raises(RuntimeError, match="SystemExit"):
        as_handler(handle).call([MESSAGE], None)
