"""Takes what Forebay published: for `faststream run bench.rival.faststream_app:app`."""

from __future__ import annotations

import os

import psycopg
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitMessage, RabbitQueue

from bench.rival import BROKER, DATABASE, INSERT, PREFETCH

broker = RabbitBroker(BROKER, default_channel=Channel(prefetch_count=PREFETCH), logger=None)
app = FastStream(broker, logger=None)
_kept: list[psycopg.AsyncConnection] = []


@broker.subscriber(
    RabbitQueue(os.environ["BENCH_QUEUE"], declare=False), ack_policy=AckPolicy.REJECT_ON_ERROR
)
async def store(message: RabbitMessage) -> None:
    if not _kept:
        _kept.append(await psycopg.AsyncConnection.connect(DATABASE, autocommit=True))
    assert isinstance(message.body, bytes)
    await _kept[0].execute(INSERT, (message.message_id, message.body.decode(), message.body))
