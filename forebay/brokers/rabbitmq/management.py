"""RabbitMQ's management API: what AMQP does not tell. No publish ever waits for it."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import yarl

from forebay.brokers.api import Durability
from forebay.brokers.tls import TLSSettings
from forebay.errors import BrokerUnavailable, SettingsError

EXAMPLE = "http://host:15672,host2:15672"
ONE_NODE = 1.0
"""Seconds for the answer of one node."""
TIMEOUT = 2.5
"""Seconds for an answer of any."""

MAJORITY_OF_THREE = 3
"""Members from which on a confirmed message is on more than one node."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^/@?#]+)(?P<path>/[^?#]*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """One queue, as the cluster describes it."""

    type: str
    members: Sequence[str] = ()
    """The nodes that hold a copy, whether they run or not; of a quorum queue."""
    online: Sequence[str] = ()
    leader: str | None = None
    unacknowledged: int | None = None
    """Counted by the server now and then: up to ten seconds old. None: not counted yet."""
    bytes: int | None = None
    """Bodies; counted at the same times."""
    on_the_way: int = 0
    """Expired, and not yet taken by the queue to which they go; counted at the same times."""
    policy: Mapping[str, Any] = field(default_factory=dict)
    """What policies set on it."""
    policy_name: str = ""

    @property
    def durability(self) -> Durability:
        """What a confirmation says. Classic queues confirm before the disk from 3.13 on."""
        if self.type != "quorum":
            return "unsynced"
        return "replicated" if len(self.members) >= MAJORITY_OF_THREE else "synced"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One node of the cluster."""

    name: str
    running: bool
    alarms: Sequence[str] = ()
    partitions: Sequence[str] = ()
    """Nodes it has lost touch with."""
    disk_free_limit: int | None = None


class Management:
    """
    Asks one of several nodes; the one that answered last is asked first.

    Raises SettingsError for a URL that is not readable.
    """

    def __init__(self, url: str, *, user: str, password: str, vhost: str, tls: TLSSettings) -> None:
        found = _URL.fullmatch(url.strip())
        if found is None:
            raise SettingsError(f"broker.rabbitmq.management_url is not readable; write it like {EXAMPLE}")
        scheme, path = found["scheme"].lower(), (found["path"] or "").rstrip("/")
        self._bases = [f"{scheme}://{host.strip()}{path}/api" for host in found["hosts"].split(",")]
        if found["user"]:
            user, password = unquote(found["user"]), unquote(found["password"] or "")
        self._vhost = quote(vhost, "")
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Basic {login}"},
            timeout=aiohttp.ClientTimeout(total=ONE_NODE),
            connector=aiohttp.TCPConnector(ssl=tls.context() if scheme == "https" else True),
        )

    async def queue(self, server_name: str) -> QueueState | None:
        """
        None: there is no such queue.

        Raises:
            BrokerUnavailable: no node answered.
        """
        raw = await self._get(f"queues/{self._vhost}/{quote(server_name, '')}")
        if raw is None:
            return None
        policies = [str(p) for p in (raw.get("policy"), raw.get("operator_policy")) if p]
        return QueueState(
            type=str(raw.get("type", "unknown")),
            members=raw.get("members") or (),
            online=raw.get("online") or (),
            leader=raw.get("leader"),
            unacknowledged=raw.get("messages_unacknowledged"),
            bytes=raw.get("message_bytes"),
            on_the_way=raw.get("messages_dlx") or 0,
            policy=raw.get("effective_policy_definition") or {},
            policy_name=" and ".join(policies),
        )

    async def queue_names(self) -> list[str]:
        """
        Of the whole virtual host.

        Raises:
            BrokerUnavailable
        """
        raw = await self._get(f"queues/{self._vhost}?columns=name&disable_stats=true")
        return [str(queue["name"]) for queue in raw or ()]

    async def nodes(self) -> list[NodeState]:
        """
        All nodes of the cluster, also those that are down.

        Raises:
            BrokerUnavailable: also where this user may not see them (it needs the tag `monitoring`).
        """
        columns = "name,running,mem_alarm,disk_free_alarm,partitions,disk_free_limit"
        alarms = {"mem_alarm": "memory", "disk_free_alarm": "disk"}
        return [
            NodeState(
                name=str(raw["name"]),
                running=bool(raw.get("running")),
                alarms=[word for name, word in alarms.items() if raw.get(name)],
                partitions=raw.get("partitions") or (),
                disk_free_limit=raw.get("disk_free_limit"),
            )
            for raw in await self._get(f"nodes?columns={columns}") or ()
        ]

    async def feature_flags(self) -> dict[str, bool]:
        """
        Which flags are enabled.

        Raises:
            BrokerUnavailable
        """
        flags = await self._get("feature-flags") or ()
        return {str(flag["name"]): flag.get("state") == "enabled" for flag in flags}

    async def _get(self, path: str) -> Any:
        """The answer, decoded; None for 404."""
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._get_from_any(path)
        except TimeoutError:
            raise BrokerUnavailable(
                f"RabbitMQ's management API does not answer: no node did within {TIMEOUT:g} s"
            ) from None

    async def _get_from_any(self, path: str) -> Any:
        trouble = ""
        for base in list(self._bases):
            try:
                # Quoted by us: a slash in a name must stay %2F.
                async with self._session.get(yarl.URL(f"{base}/{path}", encoded=True)) as answer:
                    if answer.status == 404:
                        return None
                    if answer.status in (401, 403):
                        trouble = (
                            f"{base}: this user may not ask ({answer.status}); it needs the tag monitoring"
                        )
                        continue
                    answer.raise_for_status()
                    decoded = await answer.json()
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                trouble = f"{base}: {error or type(error).__name__}"
                continue
            self._bases.sort(key=lambda other: other != base)
            return decoded
        raise BrokerUnavailable(f"RabbitMQ's management API does not answer: {trouble}")

    async def close(self) -> None:
        await self._session.close()
