"""Who sends a request, and what that allows."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from datetime import datetime
from fnmatch import translate

from starlette.types import Scope

from gateway.admission import Admission
from gateway.quotas import Quota

CALLER = "forebay.caller"
"""In a request's scope, once it is known who sends it."""


class Queues:
    """The queues that a key may use, as globs: "orders", "orders-*", "*"."""

    __slots__ = ("_known", "_pattern", "globs")

    def __init__(self, globs: Iterable[str]) -> None:
        self.globs = tuple(globs)
        self._pattern = re.compile("|".join(map(translate, self.globs)) or r"(?!)")
        self._known: dict[str, bool] = {}

    def __contains__(self, queue: str) -> bool:
        known = self._known.get(queue)
        if known is None:
            known = self._pattern.match(queue) is not None
            # Names that clients make up must not gather here.
            if len(self._known) < 1_000:
                self._known[queue] = known
        return known


class Caller:
    """
    One sender of requests, as far as the gateway tells them apart.

    With API keys there is one per key, for as long as the key is: the quota is the
    key's own, the budget that of all keys of its tenant.
    """

    __slots__ = (
        "budget",
        "expires_at",
        "journal_share",
        "max_body_bytes",
        "name",
        "queues",
        "quota",
        "tenant",
    )

    def __init__(
        self,
        *,
        tenant: str,
        name: str = "",
        queues: Queues | None = None,
        max_body_bytes: int | None = None,
        quota: Quota | None = None,
        budget: Admission | None = None,
        journal_share: float = 1.0,
        expires_at: datetime | None = None,
    ) -> None:
        self.tenant = tenant
        """Whose idempotency keys these are: equal keys of two tenants are two messages."""
        self.name = name
        """The API key's name; empty without one."""
        self.queues = queues
        """Those it may use; None: all."""
        self.max_body_bytes = sys.maxsize if max_body_bytes is None else max_body_bytes
        """On top of the gateway's own limit."""
        self.quota = quota
        """Its messages and bytes per second; None: as many as come."""
        self.budget = budget
        """What the tenant may hold of the requests in work; None: all of it."""
        self.journal_share = journal_share
        """How much of the gateway's journal the tenant may fill, from 0 to 1."""
        self.expires_at = expires_at

    def __repr__(self) -> str:
        return f"Caller(name={self.name!r}, tenant={self.tenant!r})"

    @property
    def may_use_all(self) -> bool:
        return self.queues is None or "*" in self.queues.globs

    def may_use(self, queue: str) -> bool:
        return self.queues is None or queue in self.queues


ANYONE = Caller(tenant="")
"""Every caller, while there are no API keys."""


def asks_for_a_key(path: str) -> bool:
    """
    Whether requests for this path need an API key, once there is a file of them.

    All under /v1 do, but webhooks: these prove who they are by their signature. Health, metrics
    and documentation are open.
    """
    return path.startswith("/v1/") and not path.startswith("/v1/sources/")


def caller_of(scope: Scope) -> Caller:
    """Who sends this request; known before any endpoint sees it."""
    caller: Caller = scope.get(CALLER, ANYONE)
    return caller
