"""The same input gives the same id at every replica and in every release."""

from __future__ import annotations

import hashlib
import uuid

from hypothesis import given
from hypothesis import strategies as st

from forebay import ids


@given(st.uuids(), st.binary())
def test_derived_ids_are_the_standard_uuid5(message_id: uuid.UUID, body: bytes) -> None:
    digest = hashlib.sha256(body).digest()
    # The standard library takes raw bytes for a name from Python 3.12 on, so only the shape is compared.
    made = uuid.UUID(ids.conflict_id(str(message_id), body))

    assert made.version == 5
    assert made.variant == uuid.RFC_4122
    assert str(made) == ids.conflict_id_from_digest(str(message_id), digest)


@given(st.text(), st.text(), st.text())
def test_an_idempotency_key_gives_the_id_that_uuid5_gives(tenant: str, queue: str, key: str) -> None:
    name = f"{tenant}\x00{queue}\x00{key}"
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    assert ids.id_from_key(tenant, queue, key) == str(uuid.uuid5(ids.IDEMPOTENCY_NAMESPACE, name))


def test_the_encoding_is_part_of_the_wire_version() -> None:
    """Changing this breaks a rolling deploy: two releases would derive two ids from one key."""
    assert ids.id_from_key("", "orders", "k-1") == "1556240c-cc08-5044-837d-6db8ea435d97"


def test_new_ids_sort_by_time() -> None:
    made = [ids.new_id() for _ in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == 1000


def test_foreign_ids_keep_a_uuid_and_map_the_rest() -> None:
    assert (
        ids.id_from_foreign("0190B0A0-0000-7000-8000-000000000001") == "0190b0a0-0000-7000-8000-000000000001"
    )
    assert uuid.UUID(ids.id_from_foreign("order 7")).version == 5
    assert ids.id_from_foreign("order 7") == ids.id_from_foreign("order 7")
