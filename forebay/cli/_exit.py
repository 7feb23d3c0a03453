"""Exit codes, and the one place that turns an exception into an exit code and a line for the user."""

from __future__ import annotations

from enum import IntEnum

from forebay.errors import (
    BrokerUnavailable,
    ForebayError,
    QueueFull,
    QueueNotFound,
    SettingsError,
    SinkMisconfigured,
    SinkUnavailable,
)


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    STARTUP_FAILED = 3
    NOT_FOUND = 4
    CONFLICT = 5
    BROKER_UNREACHABLE = 6
    DATABASE_UNREACHABLE = 7
    PARTLY_FAILED = 8
    JOURNAL_UNDRAINED = 9
    INTERRUPTED = 130


class CommandError(ForebayError):
    """
    The command cannot do what was asked; the text goes to stderr, the code to the shell.

    The text says what happened, to what, and what to do next.
    """

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


_CODES: tuple[tuple[type[ForebayError], ExitCode], ...] = (
    (SettingsError, ExitCode.USAGE),
    (QueueNotFound, ExitCode.NOT_FOUND),
    (BrokerUnavailable, ExitCode.BROKER_UNREACHABLE),
    (QueueFull, ExitCode.FAILED),
    (SinkUnavailable, ExitCode.DATABASE_UNREACHABLE),
    (SinkMisconfigured, ExitCode.DATABASE_UNREACHABLE),
)


def exit_code(error: ForebayError) -> ExitCode:
    if isinstance(error, CommandError):
        return error.code
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    # Imported only now: the database library costs more time than most commands take.
    from forebay.storage.schema import SchemaMismatch

    return ExitCode.STARTUP_FAILED if isinstance(error, SchemaMismatch) else ExitCode.FAILED
