"""Runs the story on its stage, and tells whoever looks how it stands."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from forebay.demo.crew import Crew
from forebay.demo.load import TIMEOUT, Outcomes
from forebay.demo.samples import Mark, Sample, Side, side_of
from forebay.demo.servers import Part
from forebay.demo.stage import Parts, Sender, Stage, choose
from forebay.demo.story import Event, Phase, phases

SETTLE = 60.0
"""Seconds that the end may take: until everything accepted is where it belongs."""


@dataclass(frozen=True)
class Ledger:
    """The end of the demo: accepted = stored + waiting + dead, as `forebay verify` found it."""

    accepted: int
    stored: int
    waiting: int
    dead: int
    lost: int
    duplicated: int
    altered: int

    @property
    def adds_up(self) -> bool:
        whole = self.stored + self.waiting + self.dead == self.accepted
        return whole and not (self.waiting or self.lost or self.duplicated or self.altered)


@dataclass(frozen=True)
class Result:
    """All that is known at the end."""

    parts: Parts
    rate: float
    seconds: float
    ledger: Ledger
    forebay: Side
    direct: Side
    direct_rows: int
    """What the direct endpoint has stored, whatever its senders were told."""
    outcomes: Outcomes
    direct_outcomes: Outcomes
    marks: list[Mark]

    @property
    def good(self) -> bool:
        """Every sender to the gateway was answered 202, and all of it is accounted for."""
        return self.ledger.adds_up and self.forebay.failed == 0


class Play:
    """
    One performance, in a thread of its own: `start` it, `look` as often as you like, until it is `over`.

    What went wrong is raised by `result`. It ends early when its crew is closed.
    """

    def __init__(
        self,
        crew: Crew,
        *,
        rate: float,
        seconds: float,
        database_url: str | None = None,
        broker_url: str | None = None,
        embedded: bool = False,
    ) -> None:
        self.rate, self.seconds = rate, seconds
        self.parts = choose(crew, database_url=database_url, broker_url=broker_url, embedded=embedded)
        self.phases = phases(self.parts.database, self.parts.broker, rate)
        self.phase: Phase | None = None
        """The one that runs; None before the first."""
        self.sentence = f"starting {self.parts.database.label} and {self.parts.broker.label} …"
        self.marks: list[Mark] = []
        self.over = threading.Event()
        self._crew = crew
        self._stage = Stage(crew, self.parts)
        self.tidy = self._stage.tidy
        self._senders: tuple[Sender, Sender] | None = None
        self._began = 0.0
        self._result: Result | None = None
        self._error: Exception | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="play", daemon=True).start()

    def look(self) -> Sample | None:
        """How it stands now; None before it begins."""
        if self._senders is None:
            return None
        counts = self._stage.counts
        forebay, direct = (sender.tick for sender in self._senders)
        return Sample(
            at=time.monotonic() - self._began,
            # The poison message is sent beside the load, and may be seen in the database before the tick.
            accepted=max(forebay.accepted, counts.stored + counts.dead),
            stored=counts.stored,
            dead=counts.dead,
            forebay=forebay,
            direct=direct,
        )

    def result(self) -> Result:
        """
        Raises:
            DemoError: why there is none.
        """
        if self._error is not None:
            raise self._error
        assert self._result is not None, "it is not over"
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._play()
        except Exception as error:  # raised by `result`, in the thread that asks
            self._error = error
        self.over.set()

    def _play(self) -> Result:
        self._stage.build()
        plan = {"rate": self.rate, "seconds": self.seconds, "timeout": TIMEOUT}
        record = [self._stage.queue, str(self._stage.record)]
        forebay = Sender(self._crew, "sender", {**plan, "url": self._stage.gateway_url, "record": record})
        direct = Sender(self._crew, "direct sender", {**plan, "url": self._stage.direct_url})
        for sender in (forebay, direct):
            sender.ready()
        self._began = time.monotonic() + 0.2
        for sender in (forebay, direct):
            sender.begin(self._began)
        self._senders = forebay, direct
        for phase in self.phases:
            self._until(phase.begins)
            self.phase, self.sentence = phase, phase.sentence
            self.marks.append(Mark(phase.begins * self.seconds, phase.name))
            self._happen(phase.event)
        self._until(1.0)
        self.sentence = "The load has ended. What still waits is stored, and then `forebay verify` counts …"
        ended = forebay.outcomes(TIMEOUT + 15)
        direct_ended = direct.outcomes(TIMEOUT + 15)
        ledger = _ledger(self._stage.verify(SETTLE))
        direct_rows = self._stage.direct_rows()
        return Result(
            self.parts, self.rate, self.seconds, ledger, side_of(ended), side_of(direct_ended),
            direct_rows, ended, direct_ended, self.marks,
        )  # fmt: skip

    def _happen(self, event: Event) -> None:
        database, broker = self.parts.database, self.parts.broker
        match event:
            case Event.DATABASE_FAILS:
                database.fail()
            case Event.BROKER_FAILS:
                broker.fail()
            case Event.POISON:
                self._stage.send_poison()
            case Event.ALL_BACK:
                with ThreadPoolExecutor() as side_by_side:
                    list(side_by_side.map(self._mend, (database, broker), ("database back", "broker back")))
            case Event.NOTHING:
                pass

    def _mend(self, part: Part, name: str) -> None:
        part.mend()
        self.marks.append(Mark(time.monotonic() - self._began, name))

    def _until(self, share: float) -> None:
        time.sleep(max(0.0, self._began + share * self.seconds - time.monotonic()))


def _ledger(found: dict[str, Any]) -> Ledger:
    return Ledger(
        accepted=found["recorded"],
        # Rows of a mapped table are known to `verify` by the once-only record of their messages.
        stored=found["stored"] + found["done"],
        waiting=found["waiting"],
        dead=found["dead"],
        lost=found["lost"],
        duplicated=found["duplicated"],
        altered=found["altered"],
    )
