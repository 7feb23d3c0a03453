"""A `tls` table: how an encrypted connection to a broker is checked, and who we are on it."""

from __future__ import annotations

import ssl
from pathlib import Path

from forebay.errors import SettingsError
from forebay.section import Password, Section


class TLSSettings(Section):
    """Encrypted connections. The server's certificate is checked, unless `verify` is off."""

    ca_file: Path | None = None
    """Who may vouch for the server's certificate (PEM). None: whom this system trusts."""
    certificate_file: Path | None = None
    """Our own certificate (PEM, with its chain), for servers that ask for one."""
    key_file: Path | None = None
    """Its private key (PEM). None: it is in `certificate_file`."""
    key_password: Password | None = None
    """For an encrypted `key_file`."""
    server_name: str | None = None
    """The name on the server's certificate, where it is not the host of the URL."""
    verify: bool = True
    """False takes any certificate, and so anybody who stands in between: to try things only."""

    def context(self) -> ssl.SSLContext:
        """
        Raises:
            SettingsError: a file is missing or not what it should be.
        """
        if self.ca_file is not None and not self.ca_file.is_file():
            raise SettingsError(
                f"tls.ca_file {self.ca_file} cannot be read; give a file of certificates (PEM)"
            )
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"tls.ca_file {self.ca_file} holds no certificates (PEM): {error}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_file is None:
            if self.key_file is not None:
                raise SettingsError("tls.key_file is set without tls.certificate_file; set both or neither")
            return context
        # Asked for a password, OpenSSL would wait at the terminal.
        password = "" if self.key_password is None else self.key_password.get_secret_value()
        try:
            context.load_cert_chain(self.certificate_file, self.key_file, password=lambda: password)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"tls.certificate_file {self.certificate_file} and its key cannot be used: {error};"
                " both are PEM files, and an encrypted key needs tls.key_password"
            ) from error
        return context
