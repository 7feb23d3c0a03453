"""What an operator is told of a Kafka cluster, from what was seen of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from forebay.brokers.kafka.examination import Seen, judge
from forebay.brokers.kafka.topics import Topic

GOOD = Topic(partitions=12, replication=3, min_insync=2, flushed=False, unclean=False, retention=14 * 86_400)
PARTITION = {"partition": 4, "leader": 1, "replicas": [1, 2, 3], "isr": [1, 2, 3]}


def verdicts(**seen: Any) -> dict[str, str]:
    whole: dict[str, Any] = {
        "brokers": 3,
        "settings": {"broker.session.timeout.ms": "2500", "offsets.retention.minutes": "43200"},
        "topics": {"orders": GOOD},
        "partitions": {"orders": [PARTITION]},
        "old": {},
    }
    return {f.check: f.verdict for f in judge(Seen(**(whole | seen)))}


def but(**changed: Any) -> dict[str, Topic]:
    fields = {name: getattr(GOOD, name) for name in GOOD.__slots__}
    return {"orders": Topic(**(fields | changed))}


def test_a_cluster_as_it_should_be_has_nothing_to_mend() -> None:
    assert verdicts() == {"brokers": "ok", "durability": "ok"}


@pytest.mark.parametrize(
    ("seen", "check", "verdict"),
    [
        ({"brokers": 1}, "brokers", "warn"),
        ({"topics": but(replication=1, min_insync=1)}, "durability", "fail"),
        ({"topics": but(replication=1, min_insync=1, flushed=True)}, "durability", "ok"),
        ({"topics": but(min_insync=1)}, "durability", "fail"),
        ({"topics": but(unclean=True)}, "unclean election", "fail"),
        ({"old": {"orders": 0.5}}, "retention", "warn"),
        ({"old": {"orders": 0.8}}, "retention", "fail"),
        ({"partitions": {"orders": [PARTITION | {"isr": [1, 2]}]}}, "copies", "warn"),
        ({"partitions": {"orders": [PARTITION | {"leader": -1}]}}, "copies", "fail"),
        ({"settings": {"auto.create.topics.enable": "true"}}, "topic creation", "warn"),
        ({"settings": {"broker.session.timeout.ms": "9000"}}, "lost nodes", "warn"),
        ({"settings": {"offsets.retention.minutes": "10080"}}, "offsets", "warn"),
        (
            {"topics": but(retention=math.inf), "settings": {"offsets.retention.minutes": "10080"}},
            "offsets",
            "warn",
        ),
    ],
)
def test_what_is_wrong_is_found(seen: dict[str, Any], check: str, verdict: str) -> None:
    assert verdicts(**seen)[check] == verdict


def test_every_finding_that_is_not_ok_says_what_to_do() -> None:
    bad = Seen(
        brokers=1,
        settings={"auto.create.topics.enable": "true", "offsets.retention.minutes": "1"},
        topics=but(replication=1, min_insync=1, unclean=True),
        partitions={"orders": [PARTITION | {"leader": -1, "isr": []}]},
        old={"orders": 0.8},
    )
    assert all(f.fix for f in judge(bad) if f.verdict != "ok")
