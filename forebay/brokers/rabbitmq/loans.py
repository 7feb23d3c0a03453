"""What the server waits for on one channel, and how it is told."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog
from pika.exceptions import AMQPError

from forebay.brokers.naming import is_dead_letter_queue
from forebay.brokers.rabbitmq.link import Channel

log = structlog.get_logger()


class Loans:
    """
    The unsettled deliveries of a subscription's channel, by their tags.

    Tags belong to a channel: `begin` with another one, or with none, and all loans are forgotten.
    """

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self.channel: Channel | None = None
        self._since: dict[int, float] = {}
        """In order."""

    def __len__(self) -> int:
        return len(self._since)

    def begin(self, channel: Channel | None) -> None:
        self.channel = channel
        self._since.clear()

    def came(self, tag: int) -> None:
        self._since[tag] = time.monotonic()

    def age(self, tag: int) -> float:
        """Seconds since it came."""
        return time.monotonic() - self._since[tag]

    def let_go(self, done: Sequence[int], back: Sequence[int]) -> None:
        """Acknowledge, in as few frames as it takes, and hand back."""
        if self.channel is None or not (done or back):
            return
        raw, since = self.channel.raw, self._since
        try:
            for tag in back:
                if since.pop(tag, None) is not None:
                    raw.basic_nack(tag, requeue=True)
            open_ = set(done) & since.keys()
            # Up to the first that is not settled, one word does for all.
            upto, count = 0, 0
            for tag in since:
                if tag not in open_:
                    break
                upto, count = tag, count + 1
            if count > 1:
                raw.basic_ack(upto, multiple=True)
            for tag in sorted(open_):
                del since[tag]
                if count <= 1 or tag > upto:
                    raw.basic_ack(tag)
        except AMQPError as error:
            log.warning("the channel was lost while settling", queue=self._queue, error=repr(error))

    def give_to_server(self, tag: int) -> None:
        """
        Let the server move a message to the dead letters whose copy does not fit into a frame.

        It rests there with `rejected` as its class. Among the dead letters it stays where it is.
        """
        if self.channel is None or self._since.pop(tag, None) is None:
            return
        final = is_dead_letter_queue(self._queue)
        log.error(
            "the headers of a message leave no room for what happened to it",
            queue=self._queue,
            then="it stays" if final else "RabbitMQ moves it to the dead letters",
            fix="raise frame_max in rabbitmq.conf to what it was when this message was published",
        )
        try:
            self.channel.raw.basic_reject(tag, requeue=final)
        except AMQPError as error:
            log.warning("the channel was lost while settling", queue=self._queue, error=repr(error))
