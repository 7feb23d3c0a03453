"""
The same endpoint as one would write it with FastAPI and FastStream: what `forebay gateway` is compared with.

A message is answered 202 with its id when the broker has confirmed it: on RabbitMQ by a
publisher confirm of a persistent, mandatory message in a quorum queue, on Kafka by
acks=all with an idempotent producer. FastStream logs no line per message here.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from faststream.kafka import KafkaBroker
from faststream.rabbit import RabbitBroker

URL = os.environ["BENCH_BROKER_URL"]


def answer(message_id: str, queue: str) -> JSONResponse:
    return JSONResponse(
        {"id": message_id, "queue": queue}, 202, headers={"location": f"/v1/messages/{message_id}"}
    )


if URL.startswith("kafka"):
    kafka = KafkaBroker(URL.removeprefix("kafka://"), acks="all", enable_idempotence=True, logger=None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with kafka:
            await kafka.start()
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/queues/{queue}/messages")
    async def to_kafka(queue: str, request: Request) -> JSONResponse:
        message_id = str(uuid.uuid4())
        headers = {"content-type": request.headers["content-type"], "message-id": message_id}
        await kafka.publish(await request.body(), topic=queue, headers=headers)
        return answer(message_id, queue)

else:
    rabbit = RabbitBroker(URL, logger=None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with rabbit:
            await rabbit.start()
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/queues/{queue}/messages")
    async def to_rabbitmq(queue: str, request: Request) -> JSONResponse:
        message_id = str(uuid.uuid4())
        await rabbit.publish(
            await request.body(),
            routing_key=queue,
            persist=True,
            mandatory=True,
            message_id=message_id,
            content_type=request.headers["content-type"],
        )
        return answer(message_id, queue)
