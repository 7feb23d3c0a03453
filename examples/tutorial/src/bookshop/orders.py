"""An order: a row, and books that leave the stock. Both happen once, or neither does."""

import json

from sqlalchemy import Connection, text

from forebay import Message, Reject

INSERT_ORDER = text(
    "INSERT INTO orders (message_id, customer, isbn, copies) VALUES (:message_id, :customer, :isbn, :copies)"
)
TAKE_FROM_STOCK = text("UPDATE stock SET copies = copies - :copies WHERE isbn = :isbn")


def handle(message: Message, db: Connection) -> None:
    row = read(message.body) | {"message_id": message.id}
    db.execute(INSERT_ORDER, row)
    # Nothing here would notice a second time. Forebay does: it records the message in this transaction.
    if db.execute(TAKE_FROM_STOCK, row).rowcount == 0:
        raise Reject("no such book")  # and the row above is undone


def read(body: bytes) -> dict[str, str | int]:
    """What the order says, or a dead letter: no number of tries would make an order of it."""
    try:
        order = json.loads(body)
        row = {"customer": order["customer"], "isbn": order["isbn"], "copies": order["copies"]}
    except (ValueError, KeyError, TypeError) as error:
        raise Reject("not an order") from error
    if not isinstance(row["copies"], int) or row["copies"] < 1:
        raise Reject("an order is for one copy or more")
    return row
