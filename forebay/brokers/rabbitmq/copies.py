"""What is published again of a delivery: to be tried once more, or among the dead letters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from forebay.brokers.api import DeadLetter, Death, Delivery
from forebay.brokers.naming import dead_letter_queue
from forebay.brokers.rabbitmq import wire
from forebay.brokers.rabbitmq.ladder import Ladder
from forebay.brokers.rabbitmq.publishing import Outgoing, PublishLink
from forebay.brokers.wire import Decoded


class Copies:
    """Makes them for one queue. None: not even the lightest headers fit into a frame."""

    def __init__(
        self, queue: str, server_name: Callable[[str], str], *, ladder: Ladder, publisher: PublishLink
    ) -> None:
        self._queue = queue
        self._name = server_name
        self._ladder = ladder
        self._publisher = publisher

    def again(self, d: Delivery, delay: float) -> Outgoing | None:
        """As the delivery says, after so many seconds."""
        due = int((time.time() + delay) * 1e6) + 1 if delay > 0 else None
        properties = wire.fitting(
            d.message, self._publisher.frame_max,
            attempt=d.attempt, deferrals=d.deferrals, death=d.death, history=d.history, due=due,
        )  # fmt: skip
        if properties is None:
            return None
        name = self._name(self._queue)
        exchange = self._ladder.exchange(delay) if delay > 0 else ""
        return Outgoing(d.message.id, exchange, name, properties, d.message.body)

    def dead(self, s: DeadLetter) -> Outgoing | None:
        message = s.delivery.message
        death = Death(
            failure=s.failure,
            queue=self._queue,
            attempts=s.delivery.attempt,
            died_at=datetime.now(UTC),
            original_id=None if s.new_id is None else message.id,
            history=s.history,
        )
        if s.new_id is not None:
            message = replace(message, id=s.new_id)
        return self.dead_as(Decoded(message=message, attempt=1, deferrals=0, death=death))

    def dead_as(self, decoded: Decoded) -> Outgoing | None:
        """Among the dead letters, with the death that it has."""
        m = decoded.message
        properties = wire.fitting(m, self._publisher.frame_max, death=decoded.death)
        if properties is None:
            return None
        return Outgoing(m.id, "", self._name(dead_letter_queue(self._queue)), properties, m.body)
