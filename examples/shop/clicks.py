"""A thousand clicks, a few rows: a handler that takes whole batches."""

from collections import Counter

from sqlalchemy import Connection, insert, update

from forebay import Message
from shop.tables import clicks


def count(messages: list[Message], db: Connection) -> None:
    pages = Counter(message.body.decode() for message in messages)
    for page, number in sorted(pages.items()):
        known = update(clicks).where(clicks.c.page == page).values(count=clicks.c.count + number)
        if db.execute(known).rowcount == 0:
            db.execute(insert(clicks).values(page=page, count=number))
