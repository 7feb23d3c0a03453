"""The one sentence of `forebay status`: is it fine, what is behind, when is it drained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from forebay.cli._facts import Facts, QueueFacts
from forebay.cli._output import duration
from forebay.cli._pauses import Pause
from forebay.cli._scrape import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    ok: bool
    sentence: str


def judge(of: Facts, *, now: datetime, advice: str = "Then its log says why it waits.") -> Verdict:
    """
    What is wrong first, then how much waits for it, then what happens next.

    Standing still is judged by a queue that has work, neither shrinks nor grows, and of which nobody is
    seen to take: with nobody sending, that is what a missing consumer looks like. `advice` is where to
    look then.
    """
    paused = _paused(of.queues)
    trouble = _trouble(of, paused, now)
    dead = f" {_messages(of.dead_letters)} given up: forebay dead-letters list." if of.dead_letters else ""
    if not trouble:
        return _moving(of, advice, dead)
    clauses = [*trouble, _waiting(of, paused)]
    if (tries := [p.next_try_in for p in paused.values() if p.next_try_in is not None]) and paused:
        clauses.append(f"next try in {_soon(min(tries))}")
    clauses += dict.fromkeys(p.advice for p in paused.values() if p.advice)
    return Verdict(ok=False, sentence=f"{'; '.join(clauses)}.{dead}")


# ---- something is wrong


def _paused(queues: Sequence[QueueFacts]) -> dict[str, Pause]:
    """Paused and not seen to shrink: a report may be some seconds old."""
    return {q.label: q.pause for q in queues if q.pause and (q.change is None or q.change >= 0)}


def _trouble(of: Facts, paused: dict[str, Pause], now: datetime) -> list[str]:
    found = []
    if of.broker_trouble:
        found.append(f"{of.broker} unreachable, {_accepting(of)}")
    else:
        found += _gateways(of)
    groups: dict[str, list[str]] = {}
    for queue, pause in paused.items():
        since = "" if pause.since is None else f" since {_clock(pause.since, now)}"
        groups.setdefault(f"{pause.reason}{since}", []).append(queue)
    found += [f"{', '.join(queues)} paused: {why}" for why, queues in groups.items()]
    if of.database_trouble and not any(of.database in why for why in groups):
        found.append(f"{of.database} unreachable")
    found += of.unreached
    found += [f"the consumer {address} does not answer" for address, _ in _missed(of.consumers)]
    return found


def _accepting(of: Facts) -> str:
    """What becomes of new messages while the broker is away."""
    if not of.gateways.processes:
        return "and no gateway answers" if of.gateways.named else "and no gateway was found to ask"
    if not all(process.ready for process in of.gateways.processes):
        return "and a gateway refuses new messages"
    full = f", full in {duration(of.journal_full_in)}" if of.journal_full_in is not None else ""
    return f"new messages are accepted all the same{full}"


def _gateways(of: Facts) -> list[str]:
    found = [f"the gateway {address} does not answer" for address, _ in _missed(of.gateways)]
    if of.gateways.named and not of.gateways.processes:
        found = ["no gateway answers"]
    return found + [f"the gateway {p.address} is not ready" for p in of.gateways.processes if not p.ready]


def _missed(asked: Asked) -> tuple[tuple[str, str], ...]:
    """Those of the settings that did not answer; nobody misses one that was only guessed."""
    return asked.silent if asked.named else ()


def _waiting(of: Facts, paused: dict[str, Pause]) -> str:
    # On a queue that is paused nothing passes through, however fresh it is.
    counts = [q.waiting for q in of.queues]
    known = max(sum(count or 0 for count in counts), of.journaled or 0)
    if not of.queues or None in counts:
        # Nothing is claimed of what nobody has seen.
        return f"at least {known:,} waiting{_kept(of)}, none lost" if known else "how many wait is not known"
    seen = max((q.seen_ago for q in of.queues if q.seen_ago is not None), default=None)
    when = "" if seen is None else f" when last seen {duration(seen)} ago"
    return f"{known:,} waiting{when}{_kept(of)}, none lost"


def _kept(of: Facts) -> str:
    return f" ({of.journaled:,} in journals)" if of.journaled else ""


# ---- nothing is


def _moving(of: Facts, advice: str, dead: str) -> Verdict:
    behind = [q for q in of.queues if q.waiting and not q.fresh]
    waiting = _messages(sum(q.waiting or 0 for q in behind)) + _kept(of)
    names = ", ".join(q.label for q in behind)
    if not behind:
        return _quiet(of, dead)
    stuck = [q for q in behind if q.change == 0 and not q.leaving]
    growing = [q for q in behind if q.change is not None and q.change > 0]
    if stuck:
        which = ", ".join(q.label for q in stuck)
        still = _messages(sum(q.waiting or 0 for q in stuck))
        whether = "Does a consumer run?"
        if of.consumers_alive == 0:
            whether = "No consumer has reported lately; does one run?"
        return Verdict(
            ok=False,
            sentence=f"Standing still: {still} on {which}, and none moves. {whether} {advice}{dead}",
        )
    if growing:
        which = ", ".join(q.label for q in growing)
        rate = sum(q.change or 0.0 for q in growing)
        full = min((q.full_in for q in growing if q.full_in is not None), default=None)
        end = f", full in {duration(full)}" if full is not None else ""
        return Verdict(
            ok=False,
            sentence=f"Falling behind: {waiting} on {names}; {which} grows by {rate:,.0f}/s{end}.{dead}",
        )
    if unseen := [q.label for q in behind if q.change is None]:
        whether = f"whether {', '.join(unseen)} moves was not seen yet: look again"
        return Verdict(ok=False, sentence=f"Behind: {waiting} on {names}; {whether}.{dead}")
    if level := [q.label for q in behind if q.change == 0]:
        whether = f"{', '.join(level)} does not shrink: as much comes in as goes out"
        return Verdict(ok=False, sentence=f"Behind: {waiting} on {names}; {whether}.{dead}")
    ends = [q.drained_in for q in behind]
    known = [end for end in ends if end is not None]
    when = f"drained in about {duration(max(known))}" if known and len(known) == len(ends) else "draining"
    return Verdict(ok=True, sentence=f"Catching up: {waiting} on {names}, {when}.{dead}")


def _quiet(of: Facts, dead: str) -> Verdict:
    later = sum(q.retrying or 0 for q in of.queues)
    rest = f"; {_messages(later)} wait for their time" if later else ""
    blind = [q for q in of.queues if q.waiting is None]
    if blind:
        names = ", ".join(q.label for q in blind)
        return Verdict(
            ok=False, sentence=f"Not known: how much waits on {names} ({blind[0].unknown}){rest}.{dead}"
        )
    paces = [
        f"{sum(known):,.0f}/s {word}"
        for word, values in (("in", [q.coming for q in of.queues]), ("out", [q.leaving for q in of.queues]))
        if (known := [value for value in values if value is not None])
    ]
    pace = f"; {', '.join(paces)}" if paces else ""
    return Verdict(ok=True, sentence=f"All fine: nothing is behind{pace}{rest}.{dead}")


# ---- words


def _messages(count: int) -> str:
    return f"{count:,} message" + ("" if count == 1 else "s")


def _soon(seconds: float) -> str:
    return "less than a second" if seconds < 1 else duration(float(round(seconds)))


def _clock(then: datetime, now: datetime) -> str:
    """The local time of day; with the day, once that could be misread."""
    local = then.astimezone()
    return f"{local:%H:%M}" if now - then < timedelta(hours=20) else f"{local:%-d %b %H:%M}"
