"""Secrets as services hand them out, and the keys that they stand for."""

from __future__ import annotations

import base64
import binascii
from typing import Literal

from forebay.section import Password

SecretEncoding = Literal["text", "hex", "base64", "whsec"]
"""How a secret is written; whsec: as Standard Webhooks has them, "whsec_" and base64."""

SHORTEST = 16
"""Bytes of a key. A shorter one can be tried out on one delivery that somebody saw."""


def key_of(secret: Password, encoding: SecretEncoding) -> bytes:
    """
    The key of an HMAC.

    Raises:
        ValueError: it is too short, or not written so. The text says nothing of the secret.
    """
    text = secret.get_secret_value()
    try:
        key = _decoded(text, encoding)
    except (binascii.Error, ValueError):
        raise ValueError(
            'a secret is not "whsec_" and base64, as the service shows it'
            if encoding == "whsec"
            else f"a secret is not {encoding}; is secret_encoding right?"
        ) from None
    if len(key) < SHORTEST:
        raise ValueError(
            f"a secret has {len(key)} bytes; at least {SHORTEST} are needed. Where you choose it yourself:"
            " openssl rand -hex 24"
        )
    return key


def _decoded(text: str, encoding: SecretEncoding) -> bytes:
    if encoding == "text":
        return text.encode()
    if encoding == "hex":
        return binascii.unhexlify(text)
    # With or without padding, as secrets are copied; both are the same bytes.
    text = text.removeprefix("whsec_") if encoding == "whsec" else text
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
