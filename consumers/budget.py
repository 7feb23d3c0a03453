"""How many messages of a queue may be given up before that looks like our fault rather than theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from consumers.settings import BudgetSettings
from forebay.brokers.api import Ack, DeadLetter, Release, Settlement, all_done

UNSUSPICIOUS = frozenset({"expired", "idempotency-conflict", "crashed"})
"""Error classes that say something about the sender or about time, and nothing about our own code."""


class DeadLetterBudget:
    """
    Lets single messages be given up, and stops a queue that is being poured into the dead letters.

    A bad release of a handler, or a table that was altered, makes every message look bad. Three
    limits tell that from a few bad messages; whichever is reached first pauses the queue:

    - tokens: each message that is given up takes one, each that succeeds earns `earned` of one, up
      to `allowance`. A dead destination cannot fill the dead letters, because nothing succeeds
      there (the idea is that of Uber's uForwarder).
    - the share of the last `window` messages that were given up.
    - the run: messages given up one after the other, with none that succeeded between.

    What would have been one too many is handed back instead, uncounted: nothing is lost and no
    attempt is burned. Someone looks, repairs, and resumes the queue. Expired messages and
    conflicts of idempotency keys do not count.
    """

    def __init__(self, settings: BudgetSettings) -> None:
        self._settings = settings
        self._tokens = float(settings.allowance)
        self._run = 0
        self._recent: deque[tuple[int, int]] = deque()
        """Successes and dead letters of each batch, as far back as the window reaches."""
        self._seen = [0, 0]
        """The sums of these."""
        self._free = 0
        """Dead letters that an operator allowed besides."""
        self._reason: str | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def reason(self) -> str | None:
        """Why the queue is paused, for people; None while it is not."""
        return self._reason

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the budget is used up, and when it is restored."""
        self._listeners.append(listener)

    def restore(self, allowance: int = 0) -> None:
        """Begin anew, as an operator wishes; the next `allowance` dead letters are not counted at all."""
        self._tokens = float(self._settings.allowance)
        self._run = 0
        self._recent.clear()
        self._seen = [0, 0]
        self._free = allowance
        if self._reason is not None:
            self._reason = None
            self._changed()

    def spend(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """The settlements of one batch, with dead letters beyond the budget handed back instead."""
        if not self._settings.enabled:
            return list(settlements)
        nothing_else = all_done(settlements)
        succeeded = len(settlements) if nothing_else else sum(isinstance(s, Ack) for s in settlements)
        if succeeded:
            # First what speaks for us: a bad message beside 499 good ones is no run.
            self._run = 0
            self._tokens = min(
                float(self._settings.allowance), self._tokens + succeeded * self._settings.earned
            )
        self._note(succeeded, 0)
        return list(settlements) if nothing_else else [self._decide(s) for s in settlements]

    def _decide(self, settlement: Settlement) -> Settlement:
        if not isinstance(settlement, DeadLetter) or settlement.failure.error_class in UNSUSPICIOUS:
            return settlement
        if self._reason is None and self._free > 0:
            self._free -= 1
            return settlement
        if self._reason is None and (limit := self._limit()):
            failure = settlement.failure
            self._reason = (
                f"suspicious failure rate: {limit}; the last with {failure.error_class}: {failure.reason}"
            )
            self._changed()
        if self._reason is not None:
            return Release(settlement.delivery)
        self._tokens -= 1
        self._run += 1
        self._note(0, 1)
        return settlement

    def _limit(self) -> str | None:
        """The limit that one more dead letter would break, in words."""
        s = self._settings
        if self._run >= s.max_run:
            return f"{self._run} messages in a row were given up and none succeeded"
        successes, dead = self._seen
        if successes + dead >= s.window and dead >= s.max_share * (successes + dead):
            return f"{dead} of the last {successes + dead} messages were given up"
        if self._tokens < 1:
            return (
                f"{s.allowance} messages were given up beyond one for every {1 / s.earned:.0f} that succeeded"
            )
        return None

    def _note(self, succeeded: int, dead: int) -> None:
        if not succeeded and not dead:
            return
        self._recent.append((succeeded, dead))
        self._seen[0] += succeeded
        self._seen[1] += dead
        while sum(self._seen) - sum(self._recent[0]) >= self._settings.window:
            gone = self._recent.popleft()
            self._seen[0] -= gone[0]
            self._seen[1] -= gone[1]

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
