"""Who sends a request, and what that allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One sender of requests, as far as the gateway tells them apart."""

    tenant: str
    """Whose idempotency keys these are: equal keys of two tenants are two messages."""


ANYONE = Caller(tenant="")
"""Every caller, while there are no API keys."""
