"""From `amqp://user:password@host:5672,host2:5672/vhost` to what pika needs to connect."""

from __future__ import annotations

import re
import socket
from urllib.parse import unquote

import pika

from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.tls import TLSSettings
from forebay.errors import SettingsError

EXAMPLE = "amqp://user:password@host:5672,host2:5672/vhost"
_URL = re.compile(
    r"(?P<scheme>amqps?)://(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^/@?#]*)(?:/(?P<vhost>[^/?#]*))?",
    re.IGNORECASE,
)
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(?::(?P<port>[0-9]{1,5}))?")


def read_url(url: str, settings: RabbitMQSettings) -> list[pika.ConnectionParameters]:
    """
    One entry per host.

    Raises:
        SettingsError: never with the URL in its text, which may hold a password. Also for
            files of the `tls` table.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise SettingsError(
            f"broker.url is not readable as RabbitMQ's; write it like {EXAMPLE},"
            " with @ : / in the password as %40 %3A %2F and nothing behind the virtual host"
        )
    tls = found["scheme"].lower() == "amqps"
    if not tls and settings.tls != TLSSettings():
        raise SettingsError(
            "broker.rabbitmq.tls is set, but broker.url begins with amqp://, which is not encrypted;"
            " write amqps://, or remove the table"
        )
    context = settings.tls.context() if tls else None
    credentials = pika.PlainCredentials(
        unquote(found["user"] or "guest"), unquote(found["password"] or "guest")
    )
    # "amqp://host" and "amqp://host/" both mean the default virtual host, as people expect.
    vhost = unquote(found["vhost"] or "") or "/"
    out = []
    for part in (found["hosts"] or "localhost").split(","):
        host = _HOST.fullmatch(part.strip())
        if host is None:
            raise SettingsError(f"broker.url names no host in {part!r}; write it like {EXAMPLE}")
        name = host["host"].strip("[]")
        out.append(
            pika.ConnectionParameters(
                host=name,
                port=int(host["port"] or (5671 if tls else 5672)),
                virtual_host=vhost,
                credentials=credentials,
                heartbeat=max(1, round(settings.heartbeat)),
                blocked_connection_timeout=30,
                socket_timeout=settings.connect_timeout,
                stack_timeout=settings.connect_timeout * 2,
                connection_attempts=1,
                ssl_options=pika.SSLOptions(context, settings.tls.server_name or name) if context else None,
                tcp_options=_tcp_options(),
                client_properties={"product": "Forebay"},
            )
        )
    return out


def _tcp_options() -> dict[str, int]:
    """So that a cut network is noticed also while nothing is sent."""
    wanted = {"TCP_USER_TIMEOUT": 10_000, "TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
    return {name: value for name, value in wanted.items() if hasattr(socket, name)}
