"""A batch of messages as columns of values, and a verdict on each message that has none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forebay.brokers.api import Delivery
from forebay.errors import MessageRejected
from forebay.storage.mapping.convert import Unfit, dump
from forebay.storage.mapping.documents import may_hold_long_numbers, parse
from forebay.storage.mapping.plan import Plan, Target
from forebay.storage.mapping.pointers import Taken, find, rest_of, taken_by
from forebay.storage.mapping.spec import Constant, Field, Header, OfMessage
from forebay.storage.rows import clean

_MOST_DETAIL = 500


@dataclass(slots=True, kw_only=True)
class Rows:
    """Messages that fit, in their order, with the values of their rows by column."""

    deliveries: list[Delivery]
    digests: list[bytes]
    columns: list[list[Any]]

    def some(self, positions: Sequence[int]) -> Rows:
        return Rows(
            deliveries=[self.deliveries[i] for i in positions],
            digests=[self.digests[i] for i in positions],
            columns=[[column[i] for i in positions] for column in self.columns],
        )


_EMPTY = hashlib.sha256()


def digest(body: bytes) -> bytes:
    """SHA-256. A copy of an empty hash costs less than a new one."""
    made = _EMPTY.copy()
    made.update(body)
    return made.digest()


class RowMaker:
    """Makes rows as one plan wants them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._extras = plan.spec.extras is not None
        pointers = [c.source.pointer for c in plan.spec.columns if isinstance(c.source, Field)]
        self._taken: Taken = taken_by(pointers)

    def make(self, batch: Sequence[Delivery]) -> tuple[Rows, dict[int, MessageRejected]]:
        """The rows of those that fit, and why the others do not, by their position in `batch`."""
        rejected: dict[int, MessageRejected] = {}
        documents: list[dict[str, Any]] = []
        exactly = may_hold_long_numbers(b"\n".join([d.message.body for d in batch]))
        for position, delivery in enumerate(batch):
            try:
                documents.append(parse(delivery.message.body, exactly=exactly))
            except MessageRejected as why:
                rejected[position] = why
                documents.append({})
        columns: list[list[Any]] = []
        for target in self._plan.targets:
            column, wrong = self._column(target, batch, documents)
            columns.append(column)
            for position, error in wrong.items():
                rejected.setdefault(position, error)
        rows = Rows(
            deliveries=list(batch),
            digests=[digest(d.message.body) for d in batch],
            columns=columns,
        )
        if rejected:
            rows = rows.some([i for i in range(len(batch)) if i not in rejected])
        return rows, rejected

    def _column(
        self, target: Target, batch: Sequence[Delivery], documents: list[dict[str, Any]]
    ) -> tuple[list[Any], dict[int, MessageRejected]]:
        spec = target.spec
        if self._extras and target is self._plan.targets[-1]:
            values: list[Any] = [rest_of(document, self._taken) for document in documents]
        elif isinstance(spec.source, Constant):
            return [spec.source.value] * len(batch), {}
        else:
            values = self._values(spec.source, batch, documents)
        converted, unfit = target.converter.many(values, spec.nulls)
        wrong = {i: _unfit(spec.name, str(why), values[i]) for i, why in unfit.items()}
        if None in converted:
            if target.default is not None:
                converted = [target.default if v is None else v for v in converted]
            elif not target.column.nullable:
                for i, value in enumerate(converted):
                    if value is None and i not in wrong:
                        reason = f"column {spec.name}: missing"
                        wrong[i] = MessageRejected(reason, error_class="MissingValue")
        return converted, wrong

    @staticmethod
    def _values(
        source: Field | Header | OfMessage, batch: Sequence[Delivery], documents: list[dict[str, Any]]
    ) -> list[Any]:
        if isinstance(source, Field):
            pointer = source.pointer
            if len(pointer) == 1:
                name = pointer[0]
                return [document.get(name) for document in documents]
            return [find(document, pointer) for document in documents]
        if isinstance(source, Header):
            return [_cleaned(d.message.headers.get(source.name)) for d in batch]
        match source.what:
            case "queue":
                return [clean(d.queue) for d in batch]
            case "attempt":
                return [d.attempt for d in batch]
            case "key" | "content_type":
                return [_cleaned(getattr(d.message, source.what)) for d in batch]
        return [getattr(d.message, source.what) for d in batch]


def _cleaned(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _unfit(column: str, why: str, value: Any) -> MessageRejected:
    try:
        detail = dump(value).decode()
    except (Unfit, ValueError):
        detail = repr(value)
    return MessageRejected(f"column {column}: {why}", error_class="UnfitValue", detail=detail[:_MOST_DETAIL])
