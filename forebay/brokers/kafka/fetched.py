"""What an aiokafka consumer has fetched, handed over without another object for each record."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition


class Fetched(OrderedDict[TopicPartition, Any]):
    """
    In place of a fetcher's own: its records come as they were read.

    aiokafka makes a `ConsumerRecord` of each, which takes as long as reading it did and says, beside
    the same, what we know already: where it was found.
    """

    @classmethod
    def keep(cls, consumer: AIOKafkaConsumer) -> None:
        """From now on; the consumer was started."""
        consumer._fetcher._records = cls(consumer._fetcher._records)

    def __setitem__(self, tp: TopicPartition, fetched: Any) -> None:
        # Not of an error, which stands here too.
        if (records := getattr(fetched, "_partition_records", None)) is not None:
            records._consumer_record = _as_it_is
        super().__setitem__(tp, fetched)


def _as_it_is(tp: TopicPartition, record: Any) -> Any:
    return record
