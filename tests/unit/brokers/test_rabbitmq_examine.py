"""What an operator is told of a RabbitMQ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forebay.brokers.api import Finding
from forebay.brokers.rabbitmq.examine import Facts, findings
from forebay.brokers.rabbitmq.management import NodeState, QueueState

NODES = [NodeState(name=f"rabbit@{n}", running=True, disk_free_limit=4 * 10**9) for n in "abc"]
NAMES = [node.name for node in NODES]
QUEUE = QueueState(type="quorum", members=NAMES, online=NAMES, leader="rabbit@a")
HEALTHY = Facts(
    version="4.3.5", cluster_name="shop", named=True, hosts=3, blocked=None, nodes=NODES,
    queues={"orders": QUEUE},
)  # fmt: skip


def found(facts: Facts, check: str) -> Finding:
    """The one finding that is not ok."""
    [finding] = [f for f in findings(facts) if f.verdict != "ok"]
    assert finding.check == check
    assert finding.fix
    return finding


def with_queue(queue: QueueState | None) -> Facts:
    return replace(HEALTHY, queues={"orders": queue})


def test_of_a_healthy_cluster_everything_is_ok() -> None:
    assert [(f.verdict, f.check, f.text) for f in findings(HEALTHY)] == [
        ("ok", "version", "RabbitMQ 4.3.5, cluster 'shop'"),
        ("ok", "alarms", "none"),
        ("ok", "nodes", "3, all running"),
        ("ok", "queue orders", "replicated: a quorum queue on 3 nodes"),
    ]


@pytest.mark.parametrize(
    ("version", "verdict"), [("4.3.0", "fail"), ("4.3.2", "fail"), ("4.3.4", "warn"), ("4.2.6", "warn")]
)
def test_a_version_with_a_hazard_is_named_with_the_one_to_take(version: str, verdict: str) -> None:
    finding = found(replace(HEALTHY, version=version), "version")
    assert finding.verdict == verdict
    assert version in finding.text
    assert finding.fix.startswith("upgrade to")


@pytest.mark.parametrize("version", ["3.10.8", "3.13.7", "4.0.9", "4.2.7", "4.3.5", "4.4.0", "5.0.0-beta"])
def test_other_versions_are_only_named(version: str) -> None:
    assert all(f.verdict == "ok" for f in findings(replace(HEALTHY, version=version)))


def test_a_missing_feature_flag_is_a_failure() -> None:
    facts = replace(HEALTHY, version="3.10.8", flags={"stream_queue": False, "quorum_queue": True})
    assert "enable_feature_flag stream_queue" in found(facts, "version").fix


def test_without_the_management_api_only_synced_can_be_said() -> None:
    facts = replace(HEALTHY, unmanaged="AMQP does not tell", nodes=(), queues={})
    finding = found(facts, "durability")
    assert "synced is all that can be said" in finding.text
    assert "broker.rabbitmq.management_url" in finding.fix


def test_a_single_node_is_synced_and_fine() -> None:
    alone = replace(QUEUE, members=NAMES[:1], online=NAMES[:1])
    facts = replace(HEALTHY, hosts=1, nodes=NODES[:1], queues={"orders": alone})
    assert all(f.verdict == "ok" for f in findings(facts))
    assert "synced: 1 node, and replicated needs three" in [f.text for f in findings(facts)]


def test_two_nodes_are_worse_than_one() -> None:
    two = replace(QUEUE, members=NAMES[:2], online=NAMES[:2])
    facts = replace(HEALTHY, nodes=NODES[:2], queues={"orders": two})
    assert "no majority" in found(facts, "nodes").text


def test_a_classic_queue_in_our_name_is_a_failure() -> None:
    finding = found(with_queue(QueueState(type="classic")), "queue orders")
    assert (finding.verdict, "type classic" in finding.text) == ("fail", True)


def test_a_member_that_is_away_is_named() -> None:
    assert "rabbit@c is away" in found(with_queue(replace(QUEUE, online=NAMES[:2])), "queue orders").text


def test_a_queue_without_a_leader_is_a_failure() -> None:
    finding = found(with_queue(replace(QUEUE, leader=None, online=["rabbit@b"])), "queue orders")
    assert (finding.verdict, "takes nothing" in finding.text) == ("fail", True)


def test_a_queue_older_than_the_cluster_can_grow() -> None:
    small = replace(QUEUE, members=NAMES[:1], online=NAMES[:1])
    finding = found(with_queue(small), "queue orders")
    assert finding.text.startswith("synced: a quorum queue on 1 node, of 3")
    assert "rabbitmq-queues grow" in finding.fix


def test_a_queue_that_is_not_there_is_named() -> None:
    assert found(with_queue(None), "queue orders").text == "is not there"


@pytest.mark.parametrize(
    ("key", "value", "verdict"),
    [("message-ttl", 1000, "fail"), ("overflow", "drop-head", "fail"), ("delivery-limit", 20, "warn")],
)
def test_a_policy_that_works_against_us_is_named_with_its_effect(
    key: str, value: object, verdict: str
) -> None:
    finding = found(with_queue(replace(QUEUE, policy={key: value}, policy_name="all")), "queue orders")
    assert finding.verdict == verdict
    assert finding.text.startswith(f"the policy 'all' sets {key} = {value!r}: ")


def test_a_policy_that_says_what_we_say_is_fine() -> None:
    policy = {"overflow": "reject-publish", "queue-leader-locator": "balanced"}
    assert all(f.verdict == "ok" for f in findings(with_queue(replace(QUEUE, policy=policy))))


def test_an_alarm_is_named_with_its_node() -> None:
    nodes = [replace(NODES[0], alarms=["disk"]), *NODES[1:]]
    assert found(replace(HEALTHY, nodes=nodes), "alarms").text.startswith("rabbit@a is short of disk")


def test_blocked_is_a_failure_also_without_the_management_api() -> None:
    facts = replace(HEALTHY, blocked="low on memory")
    assert found(facts, "alarms").text == "it takes no messages: low on memory"


def test_a_disk_limit_that_is_too_low_is_named() -> None:
    nodes = [replace(NODES[0], disk_free_limit=50_000_000), *NODES[1:]]
    assert "50,000,000 bytes" in found(replace(HEALTHY, nodes=nodes), "disk limit").text


def test_a_node_that_is_down_and_a_split_are_named() -> None:
    down = [replace(NODES[0], running=False), *NODES[1:]]
    assert "rabbit@a" in found(replace(HEALTHY, nodes=down), "nodes").text
    split = [replace(NODES[0], partitions=["rabbit@b"]), *NODES[1:]]
    assert found(replace(HEALTHY, nodes=split), "nodes").verdict == "fail"


def test_a_cluster_without_a_name_is_asked_for_one() -> None:
    facts = replace(HEALTHY, cluster_name="rabbit@a", named=False)
    assert found(facts, "cluster name").fix == "rabbitmqctl set_cluster_name NAME"
