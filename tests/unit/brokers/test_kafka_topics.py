"""What is asked of a cluster before topics are made."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.brokers.kafka.settings import KafkaSettings
from forebay.brokers.kafka.topics import Admin
from forebay.errors import BrokerUnavailable, SettingsError

NODE = {"node_id": 1}


class Cluster:
    """In the place of aiokafka's client; the last of its answers stands."""

    def __init__(self, *answers: list[Any]) -> None:
        self._answers = list(answers)

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def describe_cluster(self) -> dict[str, Any]:
        brokers = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return {"brokers": brokers, "cluster_id": "c"}

    async def describe_topics(self) -> list[Any]:
        return []

    async def list_topics(self) -> list[str]:
        return []


def admin_of(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Admin:
    monkeypatch.setattr("forebay.brokers.kafka.topics.AIOKafkaAdminClient", lambda **_: cluster)
    return Admin({}, KafkaSettings(**settings))


async def test_a_cluster_that_just_started_is_asked_again_until_it_names_its_brokers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admin = admin_of(Cluster([], [], [NODE]), monkeypatch)
    await admin.connect(5)
    assert (admin.brokers, admin.replication) == (1, 1)
    await admin.close()


async def test_a_cluster_that_names_no_brokers_is_away_and_not_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admin = admin_of(Cluster([]), monkeypatch)
    with pytest.raises(BrokerUnavailable, match="names none of its brokers yet"):
        await admin.declare("orders", 0.3)
    await admin.close()


async def test_a_cluster_with_fewer_brokers_than_copies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = admin_of(Cluster([NODE]), monkeypatch, replication=3)
    with pytest.raises(SettingsError, match="replication = 1"):
        await admin.declare("orders", 0.3)
    await admin.close()
