"""What one subscription holds, and how it waits for more."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from forebay.brokers.api import DeadLetter, Delivery, Release, Retry, Settlement, Share
from forebay.brokers.naming import is_dead_letter_queue
from forebay.brokers.sqlite.consuming import HandBack, Lease, Leave, Lent, Settle
from forebay.brokers.sqlite.files import Doorbell
from forebay.brokers.sqlite.writer import Writer
from forebay.errors import BrokerClosed, BrokerError, BrokerUnavailable

FALLBACK_POLL = 1.0
"""Seconds after which an idle subscription looks again, should its bell not have been rung."""

GATHER = 0.005
"""Seconds between two looks that fill up one batch: a trickle must not cost a transaction per message."""

LOOK_PATIENCE = 2.0
"""Seconds that one look may take at least, also for a `receive` that would rather not wait."""

PATIENCE = 10.0
"""Seconds to wait for a turn to write, where the caller named no deadline."""


class SQLiteSubscription:
    """
    One subscription of one process. Made by `SQLiteBroker.subscribe`.

    What has been lent but not handed out yet waits in `_ready`, so that a cancelled
    `receive` loses nothing.
    """

    def __init__(
        self,
        *,
        writer: Writer,
        bell: Doorbell,
        queue: str,
        queue_id: int,
        dead_queue_id: int | None,
        owner: int,
        prefetch: int,
        ordered: bool,
        process: str,
        lease: float,
        now: Callable[[], int],
    ) -> None:
        self.owner = owner
        self._writer = writer
        self._bell = bell
        self._queue = queue
        self._queue_id = queue_id
        self._dead_queue_id = dead_queue_id
        self._prefetch = prefetch
        self._ordered = ordered
        self._process = process
        self._lease = lease
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Delivery] = deque()
        self._held: dict[int, Delivery] = {}
        self._unapplied: list[tuple[int, list[int]]] = []
        """What failed settlements left on loan, by the owner they were for."""
        self._news = asyncio.Event()
        self._sent_back: set[str] = set()
        """Keys handed back while a look was under way: what it brings of them is behind that."""
        self._draining: set[str] = set()
        """Keys of which something was sent back while we held more of them."""
        self._leasing = False
        self._wanted = 0
        self._look_began = 0.0
        self._error: BrokerError | None = None
        self._look_at = 0.0
        """When to look for messages, by the monotonic clock; 0: at once, there may be more."""
        self._odd = 0
        self._listening = False
        self._heard = False
        """Rung since the last look."""
        self._closed = False

    # ---- receive

    async def receive(self, max_messages: int, max_wait: float) -> list[Delivery]:
        deadline = time.monotonic() + max_wait
        looked = False
        while True:
            self._news.clear()
            self._check_open()
            target = min(max_messages, self._prefetch - len(self._held))
            if len(self._ready) >= target > 0:
                return self._hand_out(target)
            now = time.monotonic()
            if not self._leasing and self._error is not None:
                error, self._error = self._error, None
                if not self._ready:
                    raise error
                return self._hand_out(target)
            if target > 0 and not self._leasing and (now >= self._look_at or not looked):
                self._look(target - len(self._ready))
                looked = True
            until = deadline
            if self._leasing:
                # One look is always finished, even with no time to wait; but not for ever.
                until = deadline if self._ready else max(deadline, self._look_began + LOOK_PATIENCE)
            elif now >= deadline:
                return self._hand_out(target)
            elif target > 0:
                until = min(deadline, self._look_at)
                self._listen()
            try:
                async with asyncio.timeout(max(0.0, until - now)):
                    await self._news.wait()
            except TimeoutError:
                if self._leasing and time.monotonic() >= until:
                    if not self._ready:
                        raise BrokerUnavailable(
                            f"no turn to take from queue {self._queue!r} in {until - self._look_began:.0f} s:"
                            " another process holds the queue file"
                        ) from None
                    return self._hand_out(target)

    def _hand_out(self, target: int) -> list[Delivery]:
        out = [self._ready.popleft() for _ in range(min(target, len(self._ready)))]
        # Our receipts are the messages' numbers.
        self._held.update([(d.receipt, d) for d in out])  # type: ignore[misc]
        return out

    def _look(self, want: int) -> None:
        # Rings from before the look are answered by it; later ones are not.
        self._bell.silence()
        self._heard = False
        self._odd ^= 1
        self._leasing = True
        self._wanted = want
        self._look_began = time.monotonic()
        look_first = self._look_at > 0
        self._writer.put(
            Lease(
                queue_id=self._queue_id,
                queue=self._queue,
                owner=self.owner,
                want=want,
                scheduled_share=(want + self._odd) // 2,
                look_first=look_first,
                ordered=self._ordered,
                barred=self._still_draining(),
                process=self._process,
                lease=self._lease,
                take=self._take,
            )
        )

    def _still_draining(self) -> frozenset[str]:
        """The keys of which we are to get nothing before we have settled what we hold."""
        if self._draining:
            self._draining.intersection_update([d.message.key for d in self._held.values()])
        return frozenset(self._draining)

    def _take(self, result: object) -> None:
        self._leasing = False
        self._news.set()
        if isinstance(result, BrokerError):
            self._error = result
            return
        assert isinstance(result, Lent)
        if result.owner != self.owner:
            # Our leases ran out while nothing was heard of us: others have them now.
            self.owner = result.owner
            self._ready.clear()
            self._held.clear()
        if self._closed:
            # Handed back with the owner, which leaves after this.
            return
        self._ready.extend(self._keep(result.deliveries))
        if len(result.deliveries) >= self._wanted:
            self._look_at = 0.0
            return
        pause = FALLBACK_POLL
        if result.next_due is not None:
            # A millisecond late rather than a hair early.
            pause = min(pause, max(0.0, (result.next_due - self._now()) / 1e6) + 0.001)
        if self._heard:
            # While we looked, and perhaps too late to be seen.
            pause = min(pause, self._gathering())
        self._look_at = time.monotonic() + pause

    def _keep(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Of what a look brought, what was not overtaken by a failure; the rest is handed back."""
        sent_back, self._sent_back = self._sent_back, set()
        behind = [d for d in deliveries if d.message.key in sent_back] if sent_back else []
        if not behind:
            return deliveries
        seqs = [int(d.receipt) for d in behind]  # type: ignore[call-overload]  # ours are numbers
        self._writer.put(HandBack(self._queue_id, self.owner, seqs, self._keep_unapplied))
        return [d for d in deliveries if d.message.key not in sent_back]

    def _listen(self) -> None:
        if not self._listening and not self._heard:
            self._listening = True
            self._loop.add_reader(self._bell.fileno(), self._rung)

    def _rung(self) -> None:
        # Once per wait: a busy subscription must not be woken for every message.
        self._stop_listening()
        self._heard = True
        self._look_at = min(self._look_at, time.monotonic() + self._gathering())
        self._news.set()

    def _gathering(self) -> float:
        return GATHER if self._ready else 0.0

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._bell.fileno())

    # ---- settle

    def share(self) -> Share:
        return Share(in_hand=len(self._held) + len(self._ready))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        self._check_open()
        if is_dead_letter_queue(self._queue) and any(isinstance(s, DeadLetter) for s in settlements):
            raise ValueError("what comes from a dead-letter queue cannot be dead-lettered again")
        ours: list[Settlement] = []
        stale: list[Delivery] = []
        held = self._held
        for s in settlements:
            d = s.delivery
            receipt = d.receipt
            assert isinstance(receipt, int)
            if held.get(receipt) is d:
                del held[receipt]
                ours.append(s)
            else:
                stale.append(d)
        if not ours:
            return stale
        behind = self._take_back(ours) if self._ordered else []
        self._news.set()
        job = Settle(
            queue_id=self._queue_id,
            queue=self._queue,
            dead_queue_id=self._dead_queue_id,
            owner=self.owner,
            settlements=[*ours, *behind],
            ordered=self._ordered,
            on_failure=self._keep_unapplied,
        )
        self._writer.put(job)
        try:
            async with asyncio.timeout(PATIENCE):
                applied = await job.future
        except TimeoutError:
            raise BrokerUnavailable(
                f"no turn to settle in queue {self._queue!r} within {PATIENCE:.0f} s; it will be done when"
                " the process that holds the queue file lets go"
            ) from None
        if not applied:
            stale += [s.delivery for s in ours]
        return stale

    def _take_back(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """Releases of what was lent to us behind messages that go back, and was not received yet."""
        keys = {s.delivery.message.key for s in settlements if isinstance(s, (Retry, Release))}
        keys.discard(None)
        if not keys:
            return []
        self._draining |= keys  # type: ignore[arg-type]  # None was discarded
        if self._leasing:
            self._sent_back |= keys  # type: ignore[arg-type]  # the same
        behind = [d for d in self._ready if d.message.key in keys]
        if behind:
            self._ready = deque([d for d in self._ready if d.message.key not in keys])
        return [Release(d) for d in behind]

    def _keep_unapplied(self, owner: int, seqs: list[int]) -> None:
        self._unapplied.append((owner, seqs))

    def release_unapplied(self) -> None:
        """Hand back what a failed settlement left on loan: its caller has let go of it."""
        if self._unapplied and not self._closed:
            unapplied, self._unapplied = self._unapplied, []
            for owner, seqs in unapplied:
                self._writer.put(HandBack(self._queue_id, owner, seqs, self._keep_unapplied))

    # ---- close

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed(f"the subscription to {self._queue!r} is closed")

    def stop(self) -> None:
        """Take no more; whoever waits in `receive` is told. What is held stays ours until `leave`."""
        if not self._closed:
            self._closed = True
            self._stop_listening()
            self._bell.close()
            self._news.set()

    async def leave(self, timeout: float) -> None:
        """Hand back what is held, uncounted."""
        job = Leave(self._queue_id, self.owner)
        try:
            self._writer.put(job)
            async with asyncio.timeout(timeout):
                await job.future
        except (TimeoutError, BrokerError):
            # Somebody else hands it back when the lease runs out or this process ends.
            pass
