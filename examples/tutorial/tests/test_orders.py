"""The handler, called as a consumer calls it; no server, no files but the schema."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from forebay.brokers.api import Ack, DeadLetter
from forebay.testing import deliver

SCHEMA = (Path(__file__).parents[1] / "schema.sql").read_text()
EMMA = "9780141439518"


@pytest.fixture
def db() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.connection.executescript(SCHEMA)
        yield connection
    engine.dispose()


def stock(db: sa.Connection) -> int:
    return db.execute(sa.text("SELECT copies FROM stock WHERE isbn = :isbn"), {"isbn": EMMA}).scalar_one()


def test_an_order_takes_books_from_the_stock(db: sa.Connection) -> None:
    fate = deliver("bookshop.orders:handle", {"customer": "Ada", "isbn": EMMA, "copies": 3}, db=db)

    assert isinstance(fate, Ack)
    assert db.execute(sa.text("SELECT customer, copies FROM orders")).all() == [("Ada", 3)]
    assert stock(db) == 997


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("hello", "not an order"),
        ({"customer": "Ada"}, "not an order"),
        ({"customer": "Ada", "isbn": EMMA, "copies": 0}, "an order is for one copy or more"),
        ({"customer": "Ada", "isbn": "0", "copies": 1}, "no such book"),
    ],
)
def test_nonsense_is_a_dead_letter_and_changes_nothing(db: sa.Connection, body: object, reason: str) -> None:
    fate = deliver("bookshop.orders:handle", body, db=db)

    assert isinstance(fate, DeadLetter)
    assert fate.failure.reason == reason
    assert db.execute(sa.text("SELECT count(*) FROM orders")).scalar_one() == 0
    assert stock(db) == 1000
