"""`forebay explain QUEUE`."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.brokers.naming import check_queue_name
from forebay.cli._common import ConfigOption, JsonOption, load_to_read
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import duration, emit, emit_json, emit_table
from forebay.settings_schema import shown

if TYPE_CHECKING:
    from consumers.settings import BudgetSettings, QueueSettings
    from consumers.sinks.settings import TargetSettings


def explain(
    queue: Annotated[str, typer.Argument(help="The queue's name.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Say in words what happens to the messages of one queue, with its retry schedule.

    Examples:
      forebay explain orders
      forebay explain orders --json
    """
    from consumers.retry import ExponentialBackoff

    loaded = load_to_read(config)
    settings = loaded.settings
    check_queue_name(queue)
    # `forebay dev` takes any name; elsewhere a name that is nowhere in the settings is a slip.
    if queue not in settings.queues and settings.queues:
        near = difflib.get_close_matches(queue, settings.queues, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(settings.queues)}"
        raise CommandError(f"queue {queue!r} is not named in the settings; {hint}", ExitCode.NOT_FOUND)
    of_queue = settings.queue(queue)
    steps = ExponentialBackoff.of(of_queue.retry).schedule()
    if as_json:
        emit_json({
            "queue": queue,
            "settings": of_queue.model_dump(mode="json", by_alias=True),
            "retry_schedule": [asdict(step) for step in steps],
            "longest_life": steps[-1].latest if steps else 0.0,
        })  # fmt: skip
        return
    target = next((n for n, t in settings.forward.items() if (t.queue or n) == queue), None)
    if target is not None:
        for line in _forwarded(target, settings.forward[target]):
            emit(line)
    for line in _words(queue, of_queue, lease=settings.broker.sqlite.lease):
        emit(line)
    if settings.gateway.journal is not None:
        emit(_while_the_broker_is_away(queue, of_queue))
    if steps:
        emit()
        emit_table(
            ("failed attempt", "waits up to", "next attempt at the latest"),
            [(s.attempt, duration(s.longest_delay), f"{duration(s.latest)} after the first") for s in steps],
        )
        emit(
            f"\nA message that fails every time is given up {duration(steps[-1].latest)} after its first"
            f" attempt at the latest, on average after half of that."
        )


def _words(queue: str, q: QueueSettings, *, lease: float) -> list[str]:
    from consumers.sinks.settings import RelaySettings

    if q.handler:
        where = f"are handed to {q.handler}, in the transaction of their once-only record"
    elif q.table is not None:
        where = (
            f"become rows of the table {q.table.name}, in the transaction of their once-only record;"
            + {
                "error": " one whose row is there already is a dead letter",
                "ignore": " a row that is there already is left alone",
                "update": " a row that is there already is updated",
            }[q.table.on_conflict]
        )
    elif q.sink == "database":
        where = "are stored in the table `messages`"
    elif q.sink == "http":
        method = "their own method" if isinstance(q.http, RelaySettings) else q.http.method
        where = (
            f"are sent to {shown(q.http.url)} by {method}, one request each, up to"
            f" {q.http.connections} at once, with their id as {q.http.idempotency_header}"
        )
    elif q.sink == "broker":
        on = f"on {shown(q.forward.broker_url)}" if q.forward.broker_url else "on the same broker"
        where = f"are forwarded to the queue {q.forward.queue!r} {on}"
    else:
        where = f"go to the sink {q.sink!r}"
    tries = q.retry.max_attempts
    order = (
        "Messages with the same ordering key are handled in order; the others are not held up by them."
        if q.order == "key"
        else "No order is promised."
    )
    from consumers.settings import ONE_BY_ONE

    at_once = str(q.batch_size)
    if q.handler is not None and "batch_size" not in q.model_fields_set:
        at_once = f"{ONE_BY_ONE} (or {q.batch_size}, if the handler takes lists)"
    return [
        *_checked(q),
        f"Messages of {queue!r} {where}.",
        f"Up to {at_once} are taken at once; a lone one waits {duration(q.max_wait)} for company."
        f" {q.concurrency} batch{'es' if q.concurrency > 1 else ''} at a time in each process. {order}",
        f"On loan to a consumer that dies, a message is taken by another within {duration(lease)}.",
        f"When the destination is down: {q.breaker.failure_threshold} failed calls in a row stop the pulling;"
        f" it is tried again after {duration(q.breaker.recovery_time)}, then less and less often, at least"
        f" every {duration(q.breaker.max_recovery_time)}. That costs no attempt.",
        *_pace(q),
        "A message that is refused for good becomes a dead letter at once."
        + (
            " One that fails for another reason does so at its first failure."
            if tries == 1
            else f" One that fails for another reason is tried {tries} times, and from its second failure on"
            f" given up when it is older than {duration(q.retry.max_age)}."
        ),
        *_budget(queue, q.dead_letter_budget),
        f"Dead letters rest in {queue}.dead and are archived in the table `dead_letters`.",
    ]


def _checked(q: QueueSettings) -> list[str]:
    if q.schema_.file is None or q.schema_.mode == "off":
        return []
    return [f"A body that does not fit {q.schema_.file} is answered 422, and not stored."]


def _while_the_broker_is_away(queue: str, q: QueueSettings) -> str:
    if q.journaled:
        return "While the broker is away each gateway keeps them in its journal, and senders go on."
    why = ' (order = "key")' if q.journal is None else ""
    return (
        f"While the broker is away they are not journaled{why}: senders get 503, unless"
        f" queues.{queue}.journal = true."
    )


def _forwarded(name: str, target: TargetSettings) -> list[str]:
    order = {
        "none": "in no promised order",
        "key": "those with the same Forebay-Ordering-Key in the order of acceptance",
        "all": "one by one, in the order of acceptance",
    }[target.order]
    answer = (
        f"A sender waits up to {duration(target.wait)} for the service's own answer, then it gets a 202."
        if target.wait
        else "A sender gets a 202 at once."
    )
    return [
        f"{', '.join(target.methods)} to /v1/forward/{name}/… are kept here, and sent to {shown(target.url)}"
        f" as they came, {order}. {answer} Answers of up to {target.max_answer_bytes} bytes are kept."
    ]


def _pace(q: QueueSettings) -> list[str]:
    from consumers.schedule import parse_schedule

    lines = []
    if q.schedule is not None:
        schedule = parse_schedule(q.schedule, q.timezone, now=lambda: datetime.now(UTC))
        lines.append(f"Messages are taken only {schedule.words}; those that come at other times wait.")
    if q.rate is not None:
        lines.append(f"Each consumer process takes at most {q.rate:g} messages per second.")
    return lines


def _budget(queue: str, b: BudgetSettings) -> list[str]:
    if not b.enabled:
        return ["However many are given up, the queue goes on (dead_letter_budget.enabled = false)."]
    return [
        f"The queue pauses as `suspicious failure rate` when {b.max_run} messages in a row are given up,"
        f" when {b.max_share:.0%} of the last {b.window} are, or when {b.allowance} are beyond one for every"
        f" {1 / b.earned:.0f} that succeeded; expired ones do not count. Then: forebay resume {queue}."
    ]
