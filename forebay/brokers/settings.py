"""The `[broker]` table: one URL picks the driver, one table per driver tunes it."""

from __future__ import annotations

from pydantic import SecretStr

from forebay.brokers.kafka.settings import KafkaSettings
from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.section import Section


class BrokerSettings(Section):
    """Where messages wait."""

    url: SecretStr | None = None
    """sqlite:///path, amqp://user:password@host/vhost or kafka://host: the scheme is the driver."""
    sqlite: SQLiteSettings = SQLiteSettings()
    """Tunes the embedded queue; ignored by other drivers."""
    rabbitmq: RabbitMQSettings = RabbitMQSettings()
    """Tunes RabbitMQ's driver; ignored by other drivers."""
    kafka: KafkaSettings = KafkaSettings()
    """Tunes Kafka's driver; ignored by other drivers."""
