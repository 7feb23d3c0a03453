"""What an API key lets a request do, beyond the limits that hold for everybody."""

from __future__ import annotations

from typing import Any

from gateway.admission import Admission
from gateway.answer import Answer
from gateway.callers import Caller
from gateway.problems import BODY_TOO_LARGE, OVERLOADED, QUEUE_FORBIDDEN, QUOTA_EXCEEDED, problem


def barred(caller: Caller, queue: str) -> Answer | None:
    """
    The 403 for a queue that this caller may not use, whether or not it is there.

    Asked before anything is said about the queue: to a key that is not allowed on it, a
    queue that is declared and one that is not are the same.
    """
    if caller.may_use(queue):
        return None
    return problem(
        QUEUE_FORBIDDEN, f"The API key {caller.name!r} may not use the queue {queue!r}.", queue=queue
    )


def barred_target(caller: Caller, name: str, queue: str | None) -> Answer | None:
    """The same for a target that requests are forwarded to, and its queue; None: there is no such target."""
    if caller.may_use_all or (queue is not None and caller.may_use(queue)):
        return None
    return problem(QUEUE_FORBIDDEN, f"The API key {caller.name!r} may not forward to {name[:64]!r}.")


def too_large(caller: Caller, size: int) -> Answer | None:
    """The 413 for a body beyond the caller's own limit."""
    if size <= caller.max_body_bytes:
        return None
    return problem(
        BODY_TOO_LARGE,
        f"The body has more bytes than the API key {caller.name!r} may send at once, which is"
        f" {caller.max_body_bytes}. Nothing was stored.",
        limit=caller.max_body_bytes,
    )


def enter(caller: Caller, messages: int, size: int, *, trouble: bool) -> Answer | None:
    """
    Charge the caller for so many messages that begin to arrive; or the answer if that is too many.

    `size` is what was announced; it is not charged before it is here. `trouble`: publishes fail,
    and what the tenant has in work waits because of us.
    """
    budget = caller.budget
    if budget is not None and not budget.fits(size):
        return _full(caller, budget, trouble)
    if caller.quota is not None and not caller.quota.take(messages):
        return exceeded(caller, messages)
    return None


def take_whole(caller: Caller, queue: str, size: int) -> bool:
    """
    Charge the caller for one message that is here whole, and count it, if nothing stands against it.

    If anything does, nothing is charged, and the other functions here tell what it is.
    """
    if size > caller.max_body_bytes or not caller.may_use(queue):
        return False
    budget, quota = caller.budget, caller.quota
    if (budget is not None and not budget.fits(size)) or (quota is not None and not quota.take_whole(size)):
        return False
    if budget is not None:
        budget.count += 1
        budget.size += size
    return True


def grow(caller: Caller, size: int, *, trouble: bool) -> Answer | None:
    """
    Charge for `size` more bytes that have arrived; an answer if that is too many.

    They are charged either way, and given back with `shrink`.
    """
    if caller.quota is not None:
        caller.quota.charge(size)
    budget = caller.budget
    if budget is not None:
        budget.size += size
        if budget.size > budget.max_size:
            return _full(caller, budget, trouble)
    return None


def shrink(caller: Caller, size: int) -> None:
    """Give the bytes of a request back that is over."""
    if caller.budget is not None:
        caller.budget.shrink(size)


def place(caller: Caller, *, trouble: bool) -> Answer | None:
    """
    Count a message that is whole; an answer if the tenant has too many in work.

    It is counted either way, and given back when the message is over.
    """
    budget = caller.budget
    if budget is not None:
        budget.count += 1
        if budget.count > budget.max_count:
            return _full(caller, budget, trouble)
    return None


def exceeded(caller: Caller, messages: int = 1) -> Answer:
    """The 429 for a key that has used up what it may send, with the time until `messages` more may come."""
    quota = caller.quota
    assert quota is not None, "only a key with a quota can exceed it"
    return problem(
        QUOTA_EXCEEDED,
        f"{exceeded_detail(caller)} Nothing was stored.",
        wait=quota.retry_after(messages),
        **_violated(*quota.used_up),
    )


def exceeded_detail(caller: Caller) -> str:
    used_up = [] if caller.quota is None else caller.quota.used_up
    return f"The API key {caller.name!r} has used up its {' and '.join(used_up)} per second."


def _full(caller: Caller, budget: Admission, trouble: bool) -> Answer:
    """The tenant is at its share of the requests in work."""
    held = (
        f"The tenant {caller.tenant!r} has {budget.count} messages of {budget.size} bytes in work; at most"
        f" {budget.max_count} of {budget.max_size} bytes are its share. Nothing was stored."
    )
    if trouble:
        return problem(OVERLOADED, held)
    return problem(QUOTA_EXCEEDED, held, **_violated("in-flight"))


def _violated(*policies: str) -> dict[str, Any]:
    """The member that draft-ietf-httpapi-ratelimit-headers-11 has for the limits that were reached."""
    return {"violated-policies": policies}
