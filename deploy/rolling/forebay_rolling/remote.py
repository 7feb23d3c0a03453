"""The language of the deployer's key: `to VERSION`, `rollback`, `status`, `smoke`, and nothing else."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from forebay_rolling.errors import UsageError

_COMMAND = re.compile(r"(rollback|status|smoke)|(to) ([A-Za-z0-9][A-Za-z0-9._-]{0,63})")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def understood(command: str) -> list[str]:
    """
    The arguments of `roll` for what a client asked for.

    Raises:
        UsageError: it is anything but one of the four.
    """
    match = _COMMAND.fullmatch(command)
    if match is None:
        raise UsageError(
            f"refused: {command[:80]!r}; this key may say: to VERSION, rollback, status, smoke"
            if command
            else "refused: this key opens no shell; it may say: to VERSION, rollback, status, smoke"
        )
    return [word for word in match.groups() if word]


def main(arguments: Sequence[str] | None = None) -> int:
    """Become `roll`, with an environment that the client has no say in."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        print("remote: name the configuration in authorized_keys: remote FILE", file=sys.stderr)
        return 2
    try:
        words = understood(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    except UsageError as error:
        print(f"remote: {error}", file=sys.stderr)
        return error.code
    roll = str(Path(__file__).resolve().parents[1] / "roll")
    environment = {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME") if name in os.environ}
    # The interpreter that runs this one also where it is not on the system's PATH.
    environment |= {"PATH": f"{Path(sys.executable).parent}:{PATH}", "LANG": "C.UTF-8"}
    return os.execve(roll, [roll, "--config", given[0], *words], environment)  # noqa: S606  # no shell, on purpose
