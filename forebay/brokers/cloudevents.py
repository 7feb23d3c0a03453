"""
CloudEvents at the brokers: attributes in the names that each broker's protocol binding has for them.

A message that is an event has its attributes in `ce-*` headers, with values as the HTTP binding
encodes them, and these travel like all its headers. Beside them stand the binding's own, decoded, for
clients that read the queue without Forebay; ours reads them only of events that other clients put there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

KAFKA = "ce_"
"""Kafka protocol binding 1.0.2, section 3.2.3."""
AMQP = "cloudEvents:"
"""AMQP protocol binding 1.0.2, section 3.1.3.1; of others `cloudEvents_` is read, too."""

_OURS = "ce-"
_REQUIRED = frozenset({"specversion", "id", "source", "type"})
AS_IT_IS = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
"""Characters of a value that the HTTP binding (section 3.1.3.2) does not encode."""


def attributes(headers: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The attributes of a message that is an event, named for a binding; of any other message nothing."""
    if "ce-specversion" not in headers:
        return {}
    return {
        prefix + name[len(_OURS) :]: unquote(value)
        for name, value in headers.items()
        if name.startswith(_OURS)
    }


def adopted(headers: Mapping[str, str], prefixes: Iterable[str]) -> dict[str, str]:
    """Headers of another client's message, lower-case names; those of an event as we have them."""
    names = tuple(prefix.lower() for prefix in prefixes)
    found = {name: name[len(p) :] for name in headers for p in names if name.startswith(p)}
    if not _REQUIRED.issubset(found.values()):
        return dict(headers)
    rest = {name: value for name, value in headers.items() if name not in found}
    return rest | {_OURS + found[name]: quote(headers[name], safe=AS_IT_IS) for name in found}
