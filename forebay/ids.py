"""
Message ids: where they come from, and how the same input always gives the same one.

The namespaces and the encoding of what is hashed are part of the wire version:
two gateways of different releases must derive the same id from the same
idempotency key. UUIDv5 is RFC 9562, section 5.5; UUIDv7 section 5.7.
"""

from __future__ import annotations

import hashlib
import uuid

import uuid_utils

IDEMPOTENCY_NAMESPACE = uuid.UUID("5f0c2b1e-6a55-5b8e-9d0e-0f6b8f9a1c01")
CONFLICT_NAMESPACE = uuid.UUID("5f0c2b1e-6a55-5b8e-9d0e-0f6b8f9a1c02")
FOREIGN_NAMESPACE = uuid.UUID("5f0c2b1e-6a55-5b8e-9d0e-0f6b8f9a1c03")
_IDEMPOTENCY = uuid_utils.UUID(str(IDEMPOTENCY_NAMESPACE))
EDIT_NAMESPACE = uuid.UUID("5f0c2b1e-6a55-5b8e-9d0e-0f6b8f9a1c04")


def _uuid5(namespace: uuid.UUID, name: bytes) -> str:
    # uuid.uuid5 spends three times as long on the UUID object that only its text is wanted of.
    digest = bytearray(hashlib.sha1(namespace.bytes + name, usedforsecurity=False).digest()[:16])
    digest[6] = (digest[6] & 0x0F) | 0x50
    digest[8] = (digest[8] & 0x3F) | 0x80
    h = digest.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def new_id() -> str:
    """A fresh id, UUIDv7: ids made later sort later, to the millisecond."""
    return str(uuid_utils.uuid7())


def new_ids(count: int) -> list[str]:
    """So many of them."""
    uuid7 = uuid_utils.uuid7
    return [str(uuid7()) for _ in range(count)]


def id_from_key(tenant: str, queue: str, key: str) -> str:
    """The id of whatever `tenant` sends to `queue` under this idempotency key, at every replica."""
    # Once for every message with a key; this takes a third of what `_uuid5` does.
    return str(uuid_utils.uuid5(_IDEMPOTENCY, f"{tenant}\x00{queue}\x00{key}"))


def ids_from_keys(tenant: str, queue: str, key: str, numbers: range) -> list[str]:
    """The ids of the items of a batch that has this idempotency key: item n has the key `<key>/n`."""
    uuid5, start = uuid_utils.uuid5, f"{tenant}\x00{queue}\x00{key}/"
    return [str(uuid5(_IDEMPOTENCY, f"{start}{n}")) for n in numbers]


def conflict_id(message_id: str, body: bytes) -> str:
    """The id under which `body`, sent with the id of another body, rests among the dead letters."""
    return conflict_id_from_digest(message_id, hashlib.sha256(body).digest())


def conflict_id_from_digest(message_id: str, digest: bytes) -> str:
    """As `conflict_id`, from the body's SHA-256, for those who only recorded that."""
    return _uuid5(CONFLICT_NAMESPACE, message_id.encode() + digest)


def edited_id(message_id: str, destination: str, body: bytes) -> str:
    """The id of the message that an edit of a dead letter sends: the same edit twice is one message."""
    digest = hashlib.sha256(body).digest()
    return _uuid5(EDIT_NAMESPACE, f"{message_id}\x00{destination}\x00".encode() + digest)


def canonical(text: str) -> str | None:
    """`text` as a UUID in canonical form, or None if it is not one."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def id_from_foreign(text: str) -> str:
    """The id of a message that another client put on the broker under its own, arbitrary id."""
    return canonical(text) or _uuid5(FOREIGN_NAMESPACE, text.encode())
