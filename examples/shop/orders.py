"""One order, one row: the row and the record that the message was handled are one transaction."""

import json

from sqlalchemy import Connection, insert

from forebay import Message, Reject
from shop.tables import orders


def handle(message: Message, db: Connection) -> None:
    try:
        order = json.loads(message.body)
        row = {"id": message.id, "customer": order["customer"], "cents": order["cents"]}
    except (ValueError, KeyError, TypeError) as error:
        # No number of tries makes an order of it: a dead letter, with this reason.
        raise Reject(f"not an order: {type(error).__name__}") from error
    # A price of zero is refused by the table, which is a dead letter too; a table that is
    # locked or a database that is down is not, and costs the message nothing.
    db.execute(insert(orders).values(row))
