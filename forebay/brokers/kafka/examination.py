"""What an operator should know of a Kafka cluster, judged from its own settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forebay.brokers.api import Finding
from forebay.brokers.kafka.topics import Topic

BROKER_SETTINGS = ("auto.create.topics.enable", "offsets.retention.minutes", "broker.session.timeout.ms")
MOST_MINUTES = 2**31 - 1
LONG_GAP = 5.0
"""Seconds for which publishers may wait for the cluster to notice that a node is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was asked of the cluster."""

    brokers: int
    settings: Mapping[str, str]
    """Of one broker; only those in `BROKER_SETTINGS`, and fewer if it does not tell."""
    topics: Mapping[str, Topic]
    partitions: Mapping[str, Sequence[Any]]
    """Of each topic, as in aiokafka's description of it."""
    old: Mapping[str, float]
    """Queues with an unfinished message older than this share of the retention."""


def judge(seen: Seen) -> Iterator[Finding]:
    yield _brokers(seen)
    for name, topic in seen.topics.items():
        yield _durability(name, topic)
        if topic.unclean:
            yield Finding(
                check="unclean election",
                verdict="fail",
                text=f"topic {name} may be led by a copy that misses confirmed messages",
                fix=_alter(name, "unclean.leader.election.enable=false"),
            )
        if name in seen.old:
            share = seen.old[name]
            yield Finding(
                check="retention",
                verdict="fail" if share >= 0.8 else "warn",
                text=f"Kafka deletes messages of {name} after {topic.retention / 3600:.3g} h, and the oldest"
                f" that is not finished is older than {share:.0%} of that",
                fix=f"start more consumers, or: {_alter(name, 'retention.ms=' + str(_doubled(topic)))}",
            )
    yield from _copies(seen)
    yield from _settings(seen)


def _brokers(seen: Seen) -> Finding:
    if seen.brokers >= 3:
        return Finding(check="brokers", verdict="ok", text=f"{seen.brokers} brokers take part")
    return Finding(
        check="brokers",
        verdict="warn",
        text=f"{seen.brokers} broker(s) take part: the loss of one stops publishing, the loss of its disk"
        " loses messages",
        fix="three brokers, and topics of three copies",
    )


def _durability(name: str, topic: Topic) -> Finding:
    copies = f"topic {name}: {topic.replication} copies, {topic.min_insync} of them before a confirmation"
    if topic.durability == "replicated":
        return Finding(check="durability", verdict="ok", text=f"{copies}: {topic.durability}")
    if topic.durability == "synced":
        return Finding(check="durability", verdict="ok", text=f"{copies}, each flushed to the disk: synced")
    return Finding(
        check="durability",
        verdict="fail",
        text=f"{copies}, not flushed: a power cut loses confirmed messages",
        fix=cure(name, topic),
    )


def cure(name: str, topic: Topic) -> str:
    """The command after which a message in an unsynced topic is safe."""
    return _alter(name, "min.insync.replicas=2" if topic.replication >= 3 else "flush.messages=1")


def _copies(seen: Seen) -> Iterator[Finding]:
    for name, partitions in seen.partitions.items():
        leaderless = [p["partition"] for p in partitions if p["leader"] < 0]
        if leaderless:
            yield Finding(
                check="copies",
                verdict="fail",
                text=f"topic {name}: nobody leads partitions {leaderless}; nothing is read or written there",
                fix="start the brokers that hold them",
            )
        behind = [p["partition"] for p in partitions if len(p["isr"]) < len(p["replicas"])]
        if behind:
            yield Finding(
                check="copies",
                verdict="warn",
                text=f"topic {name}: copies of partitions {behind} are behind or away",
                fix="look for brokers that are down or slow",
            )


def _settings(seen: Seen) -> Iterator[Finding]:
    if seen.settings.get("auto.create.topics.enable") == "true":
        yield Finding(
            check="topic creation",
            verdict="warn",
            text="a client that misspells a topic creates it, with the brokers' defaults",
            fix="auto.create.topics.enable=false on every broker",
        )
    kept = float(seen.settings.get("offsets.retention.minutes", "inf")) * 60
    needed = max((t.retention for t in seen.topics.values()), default=0.0)
    if kept < needed:
        kept_for = "for ever" if math.isinf(needed) else f"for {needed / 86_400:.3g} days"
        yield Finding(
            check="offsets",
            verdict="warn",
            text=f"a queue without consumers for {kept / 86_400:.3g} days is read again from its oldest"
            f" message, and messages are kept {kept_for}",
            fix=f"offsets.retention.minutes={min(needed / 60, MOST_MINUTES):.0f} on every broker",
        )
    session = float(seen.settings.get("broker.session.timeout.ms", "0")) / 1000
    if seen.brokers > 1 and session > LONG_GAP:
        yield Finding(
            check="lost nodes",
            verdict="warn",
            text=f"a lost broker is noticed after {session:g} s; until then nothing is confirmed",
            fix="broker.session.timeout.ms=2500 and broker.heartbeat.interval.ms=500 on every node",
        )


def _doubled(topic: Topic) -> int:
    return int(topic.retention * 2000)


def _alter(topic: str, setting: str) -> str:
    return f"kafka-configs.sh --bootstrap-server HOST:9092 --alter --topic {topic} --add-config {setting}"
