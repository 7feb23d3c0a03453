"""What a `[forward.<name>]` table makes of its queue: one table is enough for both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from consumers.settings import QueueSettings
from consumers.sinks.settings import TargetSettings
from forebay.errors import SettingsError
from forebay.settings_schema import shown_leaves
from forebay.settings_sources import Assignment, SettingPath

_OF_TARGET = ("sink", "handler", "http", "forward", "table", "order")
"""Settings of the queue that the target decides."""


def queues_of_targets(values: Mapping[SettingPath, Assignment]) -> dict[str, Assignment]:
    """The queue of each target that is named, with a setting to blame for it."""
    queues: dict[str, Assignment] = {}
    for path, a in values.items():
        if path[0] == "forward" and len(path) > 1:
            named = values.get(("forward", path[1], "queue"))
            queues.setdefault(str(named.value) if named else path[1], named or a)
    return queues


def with_targets(
    queues: Mapping[str, QueueSettings],
    targets: Mapping[str, TargetSettings],
    given: Iterable[Assignment],
) -> tuple[dict[str, QueueSettings], dict[str, str]]:
    """
    The queues, those of targets with a sink that hands requests over; and where the new values come from.

    Raises:
        SettingsError: a queue belongs to two targets, or has a destination of its own.
    """
    completed = dict(queues)
    origins: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name, target in targets.items():
        queue = target.queue or name
        if queue in owners:
            raise SettingsError(
                f"forward.{name} and forward.{owners[queue]} have the same queue {queue!r};"
                f' give one of them its own, forward.{name}.queue = "{name}"'
            )
        owners[queue] = name
        for a in given:
            if a.path[:2] == ("queues", queue) and a.path[2:3] and a.path[2] in _OF_TARGET:
                raise SettingsError(
                    f"{a.origin}: {a.written}: queue {queue!r} keeps the requests of [forward.{name}], which"
                    " says where they go and in what order; set it there, or name another queue in"
                    f" forward.{name}.queue"
                )
        decided = _decided(completed[queue], target)
        completed[queue] = completed[queue].model_copy(update=decided)
        names = [f"queues.{queue}.{setting}" for setting in decided]
        names += [setting for setting, _ in shown_leaves(decided["http"], ("queues", queue, "http"))]
        origins |= dict.fromkeys(names, f"implied by forward.{name}")
    return completed, origins


def _decided(queue: QueueSettings, target: TargetSettings) -> dict[str, Any]:
    update: dict[str, Any] = {
        "sink": "http",
        "handler": None,
        "table": None,
        "http": target.as_http(),
        "order": "none" if target.order == "none" else "key",
    }
    # Somebody may be waiting for the answer: none waits for company, and what is taken is begun at once.
    for name, value in (("max_wait", 0.0), ("batch_size", target.connections)):
        if name not in queue.model_fields_set:
            update[name] = value
    return update
