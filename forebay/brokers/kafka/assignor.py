"""Who reads which partition: all keep what they hold messages of, and give up what is above their share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

Partition = tuple[str, int]
Claims = tuple[int, dict[Partition, bool]]
"""The generation in which partitions were owned, and whether messages of each are still in hand."""


def deal(
    partitions: Mapping[str, Iterable[int]], claims: Mapping[str, Claims]
) -> tuple[dict[str, list[Partition]], dict[str, list[Partition]]]:
    """
    The partitions of each member, and those of them that it should give up when it can.

    Claims of any but the newest generation are void: somebody else may have owned
    the partition since.
    """
    newest = max((generation for generation, _ in claims.values()), default=-1)
    valid = {m: (own if generation == newest else {}) for m, (generation, own) in claims.items()}
    members = sorted(claims)
    out: dict[str, list[Partition]] = {m: [] for m in members}
    surplus: dict[str, list[Partition]] = {m: [] for m in members}
    for topic in sorted(partitions):
        left = sorted(partitions[topic])
        share, extra = divmod(len(left), len(members))
        held: dict[str, list[Partition]] = {m: [] for m in members}

        # Who holds most first: the odd partitions stay where they are in hand.
        for m in sorted(members, key=lambda m: -sum(b for (t, _), b in valid[m].items() if t == topic)):
            own = sorted(
                ((p, busy) for (t, p), busy in valid[m].items() if t == topic and p in left),
                key=lambda claim: (not claim[1], claim[0]),
            )
            limit = share
            if len(own) > share and extra > 0:
                limit, extra = share + 1, extra - 1
            for p, busy in own:
                if len(held[m]) < limit or busy:
                    if len(held[m]) >= limit:
                        surplus[m].append((topic, p))
                    held[m].append((topic, p))
                    left.remove(p)
        for p in left:
            m = min(members, key=lambda m: (len(held[m]), len(out[m]), m))
            held[m].append((topic, p))
        for m in members:
            out[m] += held[m]
    return out, surplus


def make_assignor(
    claims: Callable[[], Claims], told: Callable[[list[Partition]], None]
) -> type[AbstractPartitionAssignor]:
    """An assignor class for one consumer: aiokafka takes classes, and ours must know whose it is."""

    class HoldingAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka is not typed
        name = "forebay-holding"

        @classmethod
        def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
            generation, own = claims()
            data = [generation, [[t, p, busy] for (t, p), busy in own.items()]]
            return ConsumerProtocolMemberMetadata(0, list(topics), json.dumps(data).encode())

        @classmethod
        def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:
            topics = sorted({t for m in members.values() for t in m.subscription})
            partitions = {t: cluster.partitions_for_topic(t) or () for t in topics}
            dealt, surplus = deal(partitions, {id_: _claims(m.user_data) for id_, m in members.items()})
            return {
                id_: ConsumerProtocolMemberAssignment(
                    0,
                    [(t, [p for topic, p in own if topic == t]) for t in sorted({t for t, _ in own})],
                    json.dumps(surplus[id_]).encode(),
                )
                for id_, own in dealt.items()
            }

        @classmethod
        def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
            told([(t, p) for t, p in json.loads(assignment.user_data or b"[]")])

    return HoldingAssignor


def _claims(data: bytes) -> Claims:
    try:
        generation, own = json.loads(data)
        return generation, {(t, p): busy for t, p, busy in own}
    except ValueError:
        return -1, {}
