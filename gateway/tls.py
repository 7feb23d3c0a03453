"""HTTPS without a proxy: the certificate, and its renewal while we serve."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

from forebay.errors import SettingsError
from gateway.settings import GatewaySettings

log = structlog.get_logger()

LOOK_EVERY = 30.0
"""Seconds after which a renewed certificate counts, at the latest."""

_Signature = tuple[tuple[int, int], ...]


class Certificate:
    """
    What connections are encrypted with.

    A renewed pair of files is read while we serve: whoever connects from then on gets the new
    certificate. A pair that cannot be used changes nothing but the log.
    """

    def __init__(self, certificate: Path, key: Path | None) -> None:
        """
        Raises:
            SettingsError: the files cannot be used.
        """
        self._certificate = certificate
        self._key = key
        self._seen = self._signature()
        self.context = _context(certificate, key)

    async def watch(self) -> None:
        """Look for a renewed certificate now and then; never ends."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Take a renewed certificate."""
        seen = self._signature()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            # The pair may be half renewed; into the one in use only what has been seen to fit.
            _context(self._certificate, self._key)
            self.context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (SettingsError, OSError) as error:
            log.error("the renewed certificate cannot be used; the one before is served", error=str(error))
        else:
            log.info("renewed certificate in use", file=str(self._certificate))

    def _signature(self) -> _Signature:
        try:
            found = [p.stat() for p in (self._certificate, self._key) if p is not None]
        except OSError:
            return ()
        return tuple((f.st_mtime_ns, f.st_ino) for f in found)


def certificate(settings: GatewaySettings) -> Certificate | None:
    """
    None: it is HTTP.

    Raises:
        SettingsError: the files cannot be used.
    """
    if settings.tls_cert is None:
        return None
    return Certificate(settings.tls_cert, settings.tls_key)


def _context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for setting, path in (("tls_cert", certificate), ("tls_key", key)):
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise SettingsError(
                f"gateway.{setting} {path} cannot be read ({error.strerror}); it must be a PEM file that"
                " whoever runs the gateway may read"
            ) from error
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"gateway.tls_cert {certificate} and gateway.tls_key {key or certificate} cannot be used:"
            f" {error}; both are PEM, the key unencrypted and that of the first certificate in the file"
        ) from error
    return context


def _no_password() -> str:
    # Asked for one, OpenSSL would wait at the terminal.
    return ""
