"""The `[broker]` table: one URL picks the driver, one table per driver tunes it."""

from __future__ import annotations

from typing import Self

from pydantic import SecretStr, model_validator

from forebay.brokers.kafka.settings import KafkaSettings
from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.section import Section


class BrokerSettings(Section):
    """Where messages wait."""

    url: SecretStr | None = None
    """sqlite:///path, amqp://user:password@host/vhost or kafka://host: the scheme is the driver."""
    drain: tuple[SecretStr, ...] = ()
    """Old brokers, as URLs: consumed beside `url` until they are empty, never published to. As text the
    URLs are separated by commas; only one before a scheme counts, so several hosts in a URL are fine.
    How to swap brokers: docs/swapping-brokers.md."""
    fallback: tuple[SecretStr, ...] = ()
    """Other brokers, as URLs, that gateways publish to while `url` is away, in this order; always consumed
    beside it. Queues with order = "key" never go there. docs/journal.md."""
    sqlite: SQLiteSettings = SQLiteSettings()
    """Tunes the embedded queue; ignored by other drivers."""
    rabbitmq: RabbitMQSettings = RabbitMQSettings()
    """Tunes RabbitMQ's driver; ignored by other drivers."""
    kafka: KafkaSettings = KafkaSettings()
    """Tunes Kafka's driver; ignored by other drivers."""

    @model_validator(mode="after")
    def _only_old_ones_are_drained(self) -> Self:
        if self.url is not None and self.url in self.drain:
            raise ValueError(
                "drain names the URL that is url too; drain is for the old broker, url for the new one"
            )
        if self.url is not None and self.url in self.fallback:
            raise ValueError("fallback names the URL that is url too; a fallback is another broker")
        return self

    def fallbacks(self) -> list[BrokerSettings]:
        """The same settings for each fallback, as for the brokers to drain."""
        return [self.model_copy(update={"url": url, "drain": (), "fallback": ()}) for url in self.fallback]

    def others(self) -> list[BrokerSettings]:
        """Those to drain and the fallbacks: where messages may be, besides `url`."""
        return [*self.old(), *self.fallbacks()]

    def old(self) -> list[BrokerSettings]:
        """The same settings for each broker to drain: the drivers' tables apply to those as well."""
        return [self.model_copy(update={"url": url, "drain": (), "fallback": ()}) for url in self.drain]
