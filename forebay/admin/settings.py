"""The `[admin]` table."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from forebay.section import Password, Section

SHORTEST = 16


def _long_enough(token: Password) -> Password:
    text = token.get_secret_value()
    if len(text) < SHORTEST or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(
            f"a token is at least {SHORTEST} visible ASCII characters; make one: openssl rand -hex 24"
        )
    return token


Token = Annotated[Password, AfterValidator(_long_enough)]


class AdminToken(Section):
    """One operator, or one program, that may use the admin API. Its name is in the audit log."""

    token: Token
    """Sent as `Authorization: Bearer TOKEN`. At least 16 characters."""


class AdminSettings(Section):
    """The admin API, `forebay admin`."""

    host: str = "127.0.0.1"
    """Where to listen. Beyond loopback a token must be set."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8081
    """Where to listen; 0 picks a free port and prints it."""
    token: Token | None = None
    """The token of "admin", who may do everything here. None on loopback: one is made at each start."""
    tokens: dict[str, AdminToken] = Field(default_factory=dict)
    """One table per name, `[admin.tokens.ann]`, with a token for each."""

    def named(self) -> dict[str, str]:
        """The tokens by the name that the audit log gets."""
        found = {name: one.token.get_secret_value() for name, one in self.tokens.items()}
        return found | ({"admin": self.token.get_secret_value()} if self.token else {})
