"""One broker, and whether it is believed to work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import Enum

import structlog

from forebay.brokers.api import Broker, Durability, PublishResult
from forebay.errors import BrokerClosed, BrokerError, BrokerUnavailable, NotSent, PublishUnconfirmed
from forebay.message import Message

log = structlog.get_logger()

PING_TIMEOUT = 2.0
PAUSE = (0.1, 2.0)
"""Seconds from a failure to the first ping, and the most that this grows to."""
GRACE = 0.25
"""Seconds past its timeout that a publish may take to report."""


class State(Enum):
    WORKS = "works"
    TRIAL = "trial"
    """It answered a ping; one publish at a time may find out whether it works."""
    AWAY = "away"


class Outlet:
    """
    A broker that is left alone after it failed, until a ping and then one publish have succeeded.

    It fails when it cannot be reached, when something is unconfirmed at the deadline, or when it did
    not get a message for no fault of that one. What it refuses, it has answered.
    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        *,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.broker = broker
        self.state = State.WORKS
        self.reason = ""
        """Why it was given up last."""
        self.away_since: datetime | None = None
        self._changed = changed
        self._clock = clock
        self._gave_up_at = 0.0
        self._pause = PAUSE[0]
        self._trying = False
        self._probing: asyncio.Task[None] | None = None

    @property
    def durability(self) -> Durability:
        return self.broker.capabilities.durability

    @property
    def usable(self) -> bool:
        """Whether a publish may be given to it now."""
        return self.state is State.WORKS or (self.state is State.TRIAL and not self._trying)

    async def declare(self, queue: str) -> Durability:
        return await self.broker.declare(queue)

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        """As the broker does, and never longer; the outcome says whether it works."""
        trial = self.state is State.TRIAL
        if trial:
            self._trying = True
        try:
            async with asyncio.timeout(timeout + GRACE):
                results = await self.broker.publish(queue, messages, timeout=timeout)
        except TimeoutError:
            why = f"no answer within {timeout:g} s"
            self._failed(why)
            return [PublishResult(message_id=m.id, error=PublishUnconfirmed(why)) for m in messages]
        except (BrokerUnavailable, BrokerClosed) as error:
            self._failed(str(error))
            raise
        except BrokerError:
            raise
        finally:
            if trial:
                self._trying = False
        trouble = next((r.error for r in results if isinstance(r.error, (PublishUnconfirmed, NotSent))), None)
        if trouble is not None:
            self._failed(str(trouble))
        elif self.state is State.TRIAL:
            self._works()
        return results

    def begin_away(self, reason: str) -> None:
        """It was not there at the start."""
        self._failed(reason)

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])

    def _failed(self, reason: str) -> None:
        if self.state is State.AWAY:
            return
        if self.state is State.WORKS:
            self._pause = PAUSE[0]
            self.away_since = datetime.now(UTC)
            self._gave_up_at = self._clock()
            log.warning("an outlet is away", outlet=self.name, reason=reason)
        self.state = State.AWAY
        self.reason = reason
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe(), name=f"probe-{self.name}")
        self._changed()

    def _works(self) -> None:
        self.state = State.WORKS
        self.away_since = None
        log.info("an outlet works again", outlet=self.name, after=round(self._clock() - self._gave_up_at, 1))
        self._changed()

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, PAUSE[1])
            try:
                async with asyncio.timeout(PING_TIMEOUT):
                    await self.broker.ping()
            except (BrokerError, TimeoutError) as error:
                self.reason = str(error) or f"no answer to a ping within {PING_TIMEOUT:g} s"
                continue
            except Exception as error:
                # A bug of a driver; nobody else would ever ask again.
                log.exception("a ping failed unexpectedly, trying again", outlet=self.name)
                self.reason = f"a ping failed unexpectedly ({type(error).__name__})"
                continue
            self.state = State.TRIAL
            self._changed()
            return
