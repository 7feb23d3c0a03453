"""`forebay healthcheck`: for whoever supervises the process."""

from __future__ import annotations

from typing import Annotated

import typer

from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import emit
from forebay.healthcheck import READY, TIMEOUT, ask


def healthcheck(
    url: Annotated[
        str, typer.Argument(metavar="[URL]", help="What to ask; /livez is the other one there is.")
    ] = READY,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="How long the answer may take.")
    ] = TIMEOUT,
) -> None:
    """
    Ask a gateway or consumer on this machine whether it is ready.

    Examples:
      forebay healthcheck
      forebay healthcheck http://127.0.0.1:9100/livez
      python -m forebay.healthcheck              the same, for every few seconds: it starts sooner

    Exit codes: 0 it answered 200, 1 it answered anything else or not at all, 2 the URL cannot be read.
    """
    try:
        ready, said = ask(url, timeout)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    if not ready:
        raise CommandError(said)
    emit(said)
