"""
Batches on their way to the cluster: aiokafka's sender, without a task and a dozen objects for each request.

A request is written and its answer read by hand, in two callbacks. Who may send what and when, and all
that goes wrong, is left to aiokafka: its order of batches, its numbers, its repetitions.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from typing import Any

import structlog
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError, RequestTimedOutError
from aiokafka.producer.sender import Sender, SendProduceReqHandler
from aiokafka.protocol.produce import ProduceResponse_v7
from aiokafka.structs import TopicPartition

log = structlog.get_logger()

PRODUCE = 0
VERSION = 7
"""The last one that aiokafka knows; servers take it since 2.1."""

Batches = Mapping[TopicPartition, Any]

_head = struct.Struct(">ihhi").pack
"""Size, what is asked for, in which version, number of the request."""
_int = struct.Struct(">i").pack
_short = struct.Struct(">h").pack
_two = struct.Struct(">ii").pack
_read_int = struct.Struct(">i").unpack_from
_read_short = struct.Struct(">h").unpack_from
_read_result = struct.Struct(">ih24x").unpack_from
"""Partition, error; where and when it was written is of no interest."""
_RESULT = 30


class _Header:
    """Of an answer."""

    __slots__ = ("correlation_id",)

    def __init__(self, correlation_id: int) -> None:
        self.correlation_id = correlation_id


class _Request:
    """What aiokafka's connection wants to know of a request whose answer it hands over as it came."""

    @staticmethod
    def parse_response_header(answer: BytesIO) -> _Header:
        return _Header(_read_int(answer.read(4))[0])

    class RESPONSE_TYPE:
        @staticmethod
        def decode(answer: BytesIO) -> bytes:
            return answer.read()


class Answers(asyncio.Protocol):
    """
    Hands whole answers to a connection of aiokafka's as they arrive, past its reader and the task of that.

    The end of the connection goes the way that it always goes.
    """

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self._before = conn._protocol
        self._rest = b""

    @classmethod
    def read(cls, conn: Any) -> None:
        """From now on, unless something is on its way already: then the next time."""
        if isinstance(conn._protocol, cls) or conn._requests or conn._reader._buffer:
            return
        answers = cls(conn)
        conn._writer.transport.set_protocol(answers)
        conn._protocol = answers

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        try:
            while end - at >= 4 and self._conn._reader is not None:
                (size,) = _read_int(data, at)
                if end - at - 4 < size:
                    break
                self._conn._handle_frame(data[at + 4 : at + 4 + size])
                at += 4 + size
        except Exception as error:
            # What we cannot read leaves nothing to go on with.
            log.exception("cannot read what Kafka answered")
            self._conn.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
        self._rest = data[at:]

    def eof_received(self) -> bool | None:
        ended: bool | None = self._before.eof_received()
        return ended

    def connection_lost(self, error: Exception | None) -> None:
        self._before.connection_lost(error)

    def pause_writing(self) -> None:
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self._before.resume_writing()


def request(correlation_id: int, common: bytes, batches: Batches) -> bytes:
    """A request that produces these; `common` is what stands between its number and the batches."""
    topics: dict[str, list[bytes]] = {}
    for tp, batch in batches.items():
        data = batch.get_data_buffer()
        topics.setdefault(tp.topic, []).extend((_two(tp.partition, len(data)), data))
    pieces = [common, _int(len(topics))]
    for topic, partitions in topics.items():
        name = topic.encode()
        pieces += (_short(len(name)), name, _int(len(partitions) // 2), *partitions)
    size = 8 + sum([len(piece) for piece in pieces])
    return b"".join((_head(size, PRODUCE, VERSION, correlation_id), *pieces))


def common_part(client_id: str, acks: int, timeout_ms: int) -> bytes:
    name = client_id.encode()
    no_transaction = b"\xff\xff"
    return _short(len(name)) + name + no_transaction + struct.pack(">hi", acks, timeout_ms)


def taken(answer: bytes) -> int:
    """How many partitions an answer tells of, if it tells of no error; else -1."""
    count = 0
    (topics,) = _read_int(answer)
    at = 4
    for _ in range(topics):
        at += 2 + _read_short(answer, at)[0]
        (partitions,) = _read_int(answer, at)
        at += 4
        for _ in range(partitions):
            if _read_result(answer, at)[1]:
                return -1
            at += _RESULT
        count += partitions
    return count


class Pump(Sender):  # type: ignore[misc]  # aiokafka has no types
    """
    One request at a time for each node, and one batch at a time for each partition, as aiokafka does it.

    It begins with the first batch that is put into the accumulator.
    """

    def __init__(self, sender: Any) -> None:
        super().__init__(
            sender.client,
            acks=sender._acks,
            txn_manager=sender._txn_manager,
            message_accumulator=sender._message_accumulator,
            retry_backoff_ms=sender._retry_backoff * 1000,
            request_timeout_ms=sender._request_timeout_ms,
        )
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = False
        self._stopped = False
        self._common = common_part(self.client._client_id, self._acks, self._request_timeout_ms)

    @property
    def _waiting(self) -> bool:
        return bool(self._message_accumulator._batches)

    async def _sender_routine(self) -> None:
        try:
            while True:
                await self._message_accumulator.waiter()
                self._pump()
        except asyncio.CancelledError:
            # Nothing is left, or nobody waits for it any more.
            self._stopped = True
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _pump(self) -> None:
        if self._stopped:
            return
        try:
            self._send_what_can_be_sent()
        except Exception as error:
            # A bug; whoever waits must not wait for ever.
            log.exception("cannot send to Kafka")
            self._message_accumulator.fail_all(KafkaError(repr(error)))

    def _send_what_can_be_sent(self) -> None:
        by_node, leaderless = self._message_accumulator.drain_by_nodes(
            ignore_nodes=self._in_flight, muted_partitions=self._muted_partitions
        )
        for node, batches in by_node.items():
            self._in_flight.add(node)
            self._muted_partitions.update(batches)
            if not self._post(node, batches):
                self._spawn(node, batches, SendProduceReqHandler(self, batches))
        if leaderless and not self._asking:
            self._asking = True
            self.client.force_metadata_update().add_done_callback(self._asked)

    def _asked(self, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled():
            answer.exception()
        self._asking = False
        if self._waiting:
            self._pump()

    def _post(self, node: int, batches: Batches) -> bool:
        """Whether they went out by hand: there is a connection, to a server that understands us."""
        conn = self.client._conns.get((node, ConnectionGroup.DEFAULT))
        if conn is None or not conn.connected() or conn._writer is None or self._acks == 0:
            return False
        oldest, newest = conn._versions.get(PRODUCE, (0, 0))
        if not oldest <= VERSION <= newest:
            return False
        Answers.read(conn)
        number = conn._next_correlation_id()
        answer: asyncio.Future[bytes] = self._loop.create_future()
        conn._requests.append((number, _Request, answer))
        timer = self._loop.call_later(conn._request_timeout, self._overdue, conn, answer)
        answer.add_done_callback(partial(self._answered, node, batches, timer))
        try:
            conn._writer.write(request(number, self._common, batches))
        except OSError as error:
            conn.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)  # which answers
        return True

    @staticmethod
    def _overdue(conn: Any, answer: asyncio.Future[bytes]) -> None:
        if not answer.done():
            answer.set_exception(RequestTimedOutError())
            conn.close(reason=CloseReason.CONNECTION_TIMEOUT)

    def _answered(
        self, node: int, batches: Batches, timer: asyncio.TimerHandle, answer: asyncio.Future[bytes]
    ) -> None:
        timer.cancel()
        error = answer.exception()
        if error is None and taken(answer.result()) == len(batches):
            for batch in batches.values():
                batch.done_noack()
            self._free(node, batches)
        elif self._stopped:
            for batch in batches.values():
                batch.failure(error or KafkaConnectionError("stopped"))
        else:
            self._spawn(
                node, batches, _Late(self, batches, error or ProduceResponse_v7.decode(answer.result()))
            )

    def _spawn(self, node: int, batches: Batches, handler: Any) -> None:
        task = self._loop.create_task(self._handle(node, batches, handler))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, node: int, batches: Batches, handler: Any) -> None:
        """aiokafka's own way."""
        try:
            await handler.do(node)
        except Exception as error:
            log.exception("cannot send to Kafka")
            self._message_accumulator.fail_all(KafkaError(repr(error)))
        self._free(node, batches)

    def _free(self, node: int, batches: Batches) -> None:
        self._in_flight.remove(node)
        self._muted_partitions.difference_update(batches)
        if self._waiting:
            self._pump()


class _Late(SendProduceReqHandler):  # type: ignore[misc]
    """What aiokafka does with an answer, or a failure, that is here already."""

    def __init__(self, sender: Pump, batches: Batches, outcome: Any) -> None:
        super().__init__(sender, batches)
        self._client = _Answered(sender.client, outcome)


class _Answered:
    """A client whose next request was answered before it was sent."""

    def __init__(self, client: Any, outcome: Any) -> None:
        self._outcome = outcome
        self.force_metadata_update = client.force_metadata_update
        self._maybe_wait_metadata = client._maybe_wait_metadata

    async def send(self, node: int, request: Any) -> Any:
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome
