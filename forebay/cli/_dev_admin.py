"""The admin API of `forebay dev`: on the first free port, with a token that is kept in the data folder."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from forebay.errors import SettingsError

if TYPE_CHECKING:
    from forebay.admin.settings import AdminSettings

TOKEN_FILE = "admin-token"  # noqa: S105  # its name, not the token

_TRIED = 20
"""Ports from the one in the settings on, before any that is free will do."""


def bind_near(settings: AdminSettings) -> socket.socket:
    """
    A listening socket on the port of the settings, or on the next one that is free.

    Raises:
        SettingsError: the host is none of this machine's.
    """
    from forebay.admin.server import bind

    ports = range(settings.port, min(settings.port + _TRIED, 65_536)) if settings.port else ()
    for port in ports:
        try:
            return bind(settings.model_copy(update={"port": port}))
        except SettingsError:
            continue
    return bind(settings.model_copy(update={"port": 0}))


def token_in(data: Path) -> tuple[str, Path]:
    """
    The token of this data folder and its file, made at the first start and readable by its owner alone.

    Raises:
        OSError: the file can be neither read nor made.
    """
    file = data / TOKEN_FILE
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        kept = file.read_text().strip()
        if len(kept) >= 16:
            return kept, file
        file.unlink()
        return token_in(data)
    token = secrets.token_urlsafe(24)
    with os.fdopen(fd, "w") as out:
        out.write(token + "\n")
    return token, file
