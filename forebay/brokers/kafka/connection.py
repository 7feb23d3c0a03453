"""From `kafka://user:password@host:9092,host2:9092` and the settings to what aiokafka needs to connect."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import ssl
from typing import Any
from urllib.parse import unquote

from aiokafka.conn import create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from forebay.brokers.api import Finding
from forebay.brokers.kafka.settings import KafkaSettings, KafkaTLSSettings
from forebay.errors import SettingsError

EXAMPLE = "kafka://user:password@host:9092,host2:9092"
PORT = "9092"
_URL = re.compile(
    r"kafka://(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^/@?#]+)/?", re.IGNORECASE
)
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(?::(?P<port>[0-9]{1,5}))?")
_LOGIN = "user, password and sasl_mechanism of broker.kafka, or user and password in broker.url"
_OF_ANOTHER_NAME = (62, 64)
"""OpenSSL's codes for a certificate that is good, but of another host or address."""
_LOOK = 2.0
"""Seconds for one broker to show why it does not take us."""


def read_url(url: str, settings: KafkaSettings) -> dict[str, Any]:
    """
    What producer, consumer and admin client of aiokafka have in common.

    Raises:
        SettingsError: never with the URL in its text, which may hold a password. Also for
            files of the `tls` table.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise SettingsError(
            f"broker.url is not readable as Kafka's; write it like {EXAMPLE},"
            " with @ : / in the password as %40 %3A %2F and nothing behind the hosts"
        )
    servers = []
    for part in found["hosts"].split(","):
        host = _HOST.fullmatch(part.strip())
        if host is None:
            raise SettingsError(f"broker.url names no host in {part!r}; write it like {EXAMPLE}")
        servers.append(f"{host['host']}:{host['port'] or PORT}")
    login = _login(unquote(found["user"] or ""), unquote(found["password"] or ""), settings)
    context = _context(settings.tls)
    return {
        "bootstrap_servers": servers,
        "client_id": "forebay",
        "request_timeout_ms": int(settings.request_timeout * 1000),
        "security_protocol": ("SASL_" if login else "") + ("SSL" if context else "PLAINTEXT"),
        "ssl_context": context,
        **login,
    }


def _login(user: str, password: str, settings: KafkaSettings) -> dict[str, str]:
    """Empty for none."""
    user = user or settings.user or ""
    if settings.password is not None:
        password = password or settings.password.get_secret_value()
    if not user and not password and settings.sasl_mechanism is None:
        return {}
    if not user or not password:
        raise SettingsError(
            "a login to Kafka needs both a user and a password: broker.kafka.user and broker.kafka.password,"
            f" or broker.url like {EXAMPLE}; for no login set none of them, nor broker.kafka.sasl_mechanism"
        )
    mechanism = settings.sasl_mechanism or "SCRAM-SHA-512"
    return {"sasl_mechanism": mechanism, "sasl_plain_username": user, "sasl_plain_password": password}


def _context(tls: KafkaTLSSettings) -> ssl.SSLContext | None:
    if not tls.enabled:
        if tls != KafkaTLSSettings():
            raise SettingsError(
                "broker.kafka.tls is set, but not enabled, so nothing would be encrypted;"
                " set broker.kafka.tls.enabled = true, or remove the table"
            )
        return None
    context = tls.context()
    if tls.server_name is not None:
        wrap, name = context.wrap_bio, tls.server_name

        def wrap_bio(incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *_: Any, **__: Any) -> ssl.SSLObject:
            return wrap(incoming, outgoing, server_hostname=name)

        # aiokafka asks for the host's name on the certificate, and cannot be told another.
        context.wrap_bio = wrap_bio  # type: ignore[method-assign]
    return context


def findings(connection: dict[str, Any]) -> list[Finding]:
    """What an operator should know of the way to the cluster; empty where all is well."""
    if connection["security_protocol"] != "SASL_PLAINTEXT" or connection["sasl_mechanism"] != "PLAIN":
        return []
    open_to = ", ".join(s for s in connection["bootstrap_servers"] if not _is_loopback(s))
    if not open_to:
        return []
    return [
        Finding(
            check="login",
            verdict="warn",
            text=f"the password goes to {open_to} unencrypted, for whoever listens on the way",
            fix="broker.kafka.tls.enabled = true, or a SCRAM mechanism as broker.kafka.sasl_mechanism",
        )
    ]


def _is_loopback(server: str) -> bool:
    host = server.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def why_not(connection: dict[str, Any]) -> str:
    """
    Why none of the brokers lets us in, and what to do.

    aiokafka says no more than that none did. So each is asked once more.
    """
    servers = connection["bootstrap_servers"]
    reasons = await asyncio.gather(*(_look(server, connection) for server in servers))
    by_reason: dict[str, list[str]] = {}
    for server, reason in zip(servers, reasons, strict=True):
        by_reason.setdefault(reason, []).append(server)
    return "; ".join(f"{', '.join(them)}: {reason}" for reason, them in by_reason.items())


async def _look(server: str, connection: dict[str, Any]) -> str:
    host, _, port = server.rpartition(":")
    options = {name: value for name, value in connection.items() if name != "bootstrap_servers"}
    protocol, mechanism = connection["security_protocol"], connection.get("sasl_mechanism")
    try:
        async with asyncio.timeout(_LOOK):
            conn = await create_conn(host.strip("[]"), int(port), **options)
            try:
                await conn.send(MetadataRequest([]))
            except KafkaConnectionError as error:
                # Before a login it tells its versions, so that we got here, and nothing else.
                return _alert(error) or (
                    "it closes the connection" if mechanism else f"it wants a login: {_LOGIN}"
                )
            finally:
                conn.close()
    except TimeoutError:
        return f"no answer within {_LOOK:g} s"
    except ssl.SSLCertVerificationError as error:
        misnamed = error.verify_code in _OF_ANOTHER_NAME
        fix = "server_name to the name on it" if misnamed else "ca_file to the file of who vouches for it"
        return f"its certificate is not accepted: {error.verify_message}; set broker.kafka.tls.{fix}"
    except SaslAuthenticationFailed:
        return f"it refuses the login by {mechanism}; look at {_LOGIN}"
    except UnsupportedSaslMechanismError:
        return f"it offers no login by {mechanism}; set broker.kafka.sasl_mechanism to one that it offers"
    except IllegalSaslStateError:
        return "it takes no login; remove user and password, or name the port of its listener for SASL"
    except (KafkaConnectionError, ssl.SSLError, ConnectionResetError) as error:
        if alert := _alert(error):
            return alert
        if "SSL" in protocol:
            return "it does not talk TLS there; name the port that does, or remove broker.kafka.tls"
        return (
            "it closes the connection at the first request; if it talks TLS there,"
            " set broker.kafka.tls.enabled = true"
        )
    except OSError as error:
        # asyncio's own text for a number repeats the address.
        number = error.errno or 0
        return os.strerror(number) if number > 0 else error.strerror or str(error)
    except KafkaError as error:
        return repr(error)
    return "it answers now; try again"


def _alert(error: BaseException) -> str:
    """Why the server broke off an encrypted connection; empty if it did not say."""
    reason = getattr(error.__cause__ or error, "reason", None)
    if not isinstance(reason, str) or "ALERT" not in reason:
        return ""
    return (
        f"it ends the encrypted connection ({reason}); where it wants a certificate of ours,"
        " set broker.kafka.tls.certificate_file and key_file"
    )
