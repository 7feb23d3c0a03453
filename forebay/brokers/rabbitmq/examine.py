"""What an operator should know of a RabbitMQ, from what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from forebay.brokers.api import Finding
from forebay.brokers.rabbitmq.management import EXAMPLE, MAJORITY_OF_THREE, NodeState, QueueState

Verdict = Literal["ok", "warn", "fail"]

LOW_DISK = 10**9
"""A limit below this is passed in the ten seconds between two looks of the server at its disk."""

NO_MANAGEMENT = (
    f'broker.rabbitmq.management_url = "{EXAMPLE}" (the management plugin; a user with the tag monitoring)'
)
QUORUM_OF_THREE = "a cluster of three nodes: its queues are on all of them"

_CONTRARY = {
    "message-ttl": "messages expire, and go to the dead letters unhandled",
    "expires": "the queue is deleted, with what it holds, when nobody consumes it for a while",
    "max-length": "it refuses messages at this number, besides broker.rabbitmq.max_bytes",
    "max-length-bytes": "it refuses messages at this size, if less than broker.rabbitmq.max_bytes",
    "delivery-limit": "messages that were handed back so often become dead letters, also in an outage",
    "overflow": "what does not fit is not refused",
    "dead-letter-exchange": "what the server gives up may not reach the dead letters",
    "dead-letter-routing-key": "what the server gives up may not reach the dead letters",
    "dead-letter-strategy": "what the server gives up may be lost",
}
"""Keys of a policy that work against the arguments that we declare queues with."""
_LOSES = ("message-ttl", "expires", "overflow", "dead-letter-strategy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    version: str
    cluster_name: str
    named: bool
    """The cluster was given a name of its own."""
    hosts: int
    """In the URL."""
    blocked: str | None
    """Why the server takes no messages from us."""
    unmanaged: str = ""
    """Why the management API was not asked, or did not answer; then the rest is empty."""
    nodes: Sequence[NodeState] = ()
    flags: Mapping[str, bool] = field(default_factory=dict)
    queues: Mapping[str, QueueState | None] = field(default_factory=dict)
    """Ours, their dead-letter queues, and the delay queues, by their names on the server."""


def findings(facts: Facts) -> list[Finding]:
    """All that there is to say, the good too."""
    return [
        *_version(facts),
        *_alarms(facts),
        *_nodes(facts),
        *_durability(facts),
        *_policies(facts),
    ]


def _version(facts: Facts) -> Iterator[Finding]:
    text = f"RabbitMQ {facts.version}, cluster {facts.cluster_name!r}"
    version = tuple(int(part) for part in re.findall(r"\d+", facts.version)[:3])
    hazard, fix = "", ""
    verdict: Verdict = "ok"
    if (4, 3, 0) <= version <= (4, 3, 2):
        hazard = "this version may lose confirmed messages when a queue's leader changes (mended in 4.3.3)"
        verdict, fix = "fail", "upgrade to 4.3.5 or later"
    elif (4, 3, 3) <= version <= (4, 3, 4):
        hazard = "this version may not recover a queue after a crash (mended in 4.3.5)"
        verdict, fix = "warn", "upgrade to 4.3.5 or later"
    elif (4, 2, 0) <= version < (4, 2, 7):
        hazard = "this version may lose track of what it moves to the dead letters (mended in 4.2.7)"
        verdict, fix = "warn", "upgrade to 4.2.9 or later"
    elif facts.flags and not facts.flags.get("stream_queue", version >= (3, 12)):
        hazard = "without the feature flag stream_queue, a message can be lost between two delay queues"
        verdict, fix = "fail", "rabbitmqctl enable_feature_flag stream_queue"
    yield Finding(check="version", verdict=verdict, text=f"{text}: {hazard}" if hazard else text, fix=fix)
    if not facts.named and (facts.hosts > 1 or len(facts.nodes) > 1):
        yield Finding(
            check="cluster name",
            verdict="warn",
            text="the cluster was given no name, so each node calls it after itself; until then it is known"
            " by the hosts in broker.url",
            fix="rabbitmqctl set_cluster_name NAME",
        )


def _alarms(facts: Facts) -> Iterator[Finding]:
    for node in facts.nodes:
        for alarm in node.alarms:
            yield Finding(
                check="alarms",
                verdict="fail",
                text=f"{node.name} is short of {alarm}: no node of the cluster takes messages",
                fix=f"free {alarm} on {node.name}; consumers go on meanwhile",
            )
    if facts.blocked is not None:
        yield Finding(
            check="alarms", verdict="fail", text=f"it takes no messages: {facts.blocked}",
            fix="free what it is short of; consumers go on meanwhile",
        )  # fmt: skip
    elif not any(node.alarms for node in facts.nodes):
        yield Finding(check="alarms", verdict="ok", text="none")
    low = [n for n in facts.nodes if n.disk_free_limit is not None and n.disk_free_limit < LOW_DISK]
    if low:
        yield Finding(
            check="disk limit",
            verdict="warn",
            text=f"{_names(low)} would go on until {low[0].disk_free_limit or 0:,} bytes are free,"
            " and may fill the disk before it looks again",
            fix="disk_free_limit.absolute = 2GB in rabbitmq.conf, or the size of the memory if that is more",
        )


def _nodes(facts: Facts) -> Iterator[Finding]:
    if not facts.nodes:
        return
    down = [n for n in facts.nodes if not n.running]
    cut = [n for n in facts.nodes if n.partitions]
    if cut:
        yield Finding(
            check="nodes", verdict="fail", text=f"the cluster is split: {_names(cut)} lost touch with others",
            fix="mend the network and restart the smaller part; cluster_partition_handling = pause_minority",
        )  # fmt: skip
    if down:
        yield Finding(
            check="nodes", verdict="warn", text=f"{_names(down)} of {len(facts.nodes)} nodes: not running",
            fix="start it; another loss may stop the queues",
        )  # fmt: skip
    if len(facts.nodes) == 2:
        yield Finding(
            check="nodes", verdict="warn", text="two nodes stop when either is lost: no majority is left",
            fix=QUORUM_OF_THREE,
        )  # fmt: skip
    if not (down or cut or len(facts.nodes) == 2):
        yield Finding(check="nodes", verdict="ok", text=f"{len(facts.nodes)}, all running")


def _durability(facts: Facts) -> Iterator[Finding]:
    if facts.unmanaged:
        yield Finding(
            check="durability", verdict="warn",
            text=f"synced is all that can be said, also on three nodes: {facts.unmanaged}", fix=NO_MANAGEMENT,
        )  # fmt: skip
        return
    if facts.nodes and len(facts.nodes) < MAJORITY_OF_THREE:
        yield Finding(
            check="durability", verdict="ok",
            text=f"synced: {len(facts.nodes)} node{'s' * (len(facts.nodes) > 1)}, and replicated needs three",
            fix=QUORUM_OF_THREE,
        )  # fmt: skip
    for name, queue in facts.queues.items():
        yield _queue(name, queue, len(facts.nodes))


def _queue(name: str, queue: QueueState | None, nodes: int) -> Finding:
    check = f"queue {name}"
    if queue is None:
        return Finding(
            check=check, verdict="warn", text="is not there", fix="the gateway declares it when it starts"
        )
    if queue.type != "quorum":
        return Finding(
            check=check, verdict="fail",
            text=f"is of type {queue.type}: what it confirms may not be on the disk, nor on another node",
            fix="when it is empty, delete it and restart the gateway, which makes a quorum queue",
        )  # fmt: skip
    members, online = len(queue.members), len(queue.online)
    text = f"{queue.durability}: a quorum queue on {members} node{'s' * (members != 1)}"
    if queue.leader is None or queue.leader not in queue.online:
        return Finding(
            check=check, verdict="fail", text=f"{text}; none leads it, so it takes nothing",
            fix=f"start its nodes: {', '.join(queue.members)}",
        )  # fmt: skip
    if online < members:
        lost = ", ".join(sorted(set(queue.members) - set(queue.online)))
        return Finding(check=check, verdict="warn", text=f"{text}; {lost} is away", fix="start it")
    if members < min(MAJORITY_OF_THREE, nodes):
        return Finding(
            check=check, verdict="warn", text=f"{text}, of {nodes}: it was made when there were fewer",
            fix=f"for each other node: rabbitmq-queues grow NODE all --queue-pattern '^{re.escape(name)}$'",
        )  # fmt: skip
    return Finding(check=check, verdict="ok", text=text)


def _policies(facts: Facts) -> Iterator[Finding]:
    for name, queue in facts.queues.items():
        for key, effect in _CONTRARY.items():
            if queue is None or key not in queue.policy:
                continue
            value = queue.policy[key]
            if (key, value) in (("overflow", "reject-publish"), ("dead-letter-strategy", "at-least-once")):
                continue
            yield Finding(
                check=f"queue {name}",
                verdict="fail" if key in _LOSES else "warn",
                text=f"the policy {queue.policy_name!r} sets {key} = {value!r}: {effect}",
                fix="leave Forebay's queues out of the policy's pattern, or take the key out of it",
            )


def _names(nodes: Sequence[NodeState]) -> str:
    return ", ".join(node.name for node in nodes)
