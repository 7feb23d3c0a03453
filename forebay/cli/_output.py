"""
What commands print: data on stdout, everything said to a person on stderr.

Without a terminal all of it is plain text and progress bars are silent; rich is
imported only for a terminal. NO_COLOR is honoured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol

from forebay.cli._exit import CommandError, ExitCode


def emit(text: str = "") -> None:
    """A line of data."""
    print(text)


def emit_json(value: Any) -> None:
    """The answer of a --json command: indented for a terminal, one line for a pipe."""
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(value, indent=indent, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def emit_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, plain: bool = False) -> None:
    """A table of data; None is shown as a dash. `plain`: in one line a row on a terminal, too."""
    cells = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and not plain:
        _rich_table(columns, cells)
        return
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    for row in [list(columns), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    room = console.width // 2
    for number, column in enumerate(columns):
        # Single words are what people copy (an id, a name): in one piece, while there is room.
        words = [column, *(row[number] for row in cells)]
        widest = max(map(len, words))
        whole = widest <= room and not any(" " in word for word in words)
        room -= widest if whole else 0
        table.add_column(column, overflow="fold", no_wrap=whole)
    for row in cells:
        # Text, not str: a message's reason may hold square brackets, which are markup to rich.
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def note(text: str) -> None:
    """Something a person should know; not data."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    note(f"{_colored('warning:', '33')} {text}")


def fail(text: str) -> None:
    """Why the command ends without having done its work."""
    note(f"{_colored('error:', '31')} {text}")


def _colored(text: str, code: str) -> str:
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        return f"\x1b[{code}m{text}\x1b[0m"
    return text


def confirm(question: str, *, yes: bool) -> None:
    """
    Return if the user agrees, by --yes or at the terminal.

    Raises:
        CommandError: they do not, or there is no terminal to ask at.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(f"{question} Nobody to ask: there is no terminal; add --yes", ExitCode.USAGE)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was changed", ExitCode.FAILED)


class Progress(Protocol):
    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        ...

    def describe(self, text: str) -> None:
        """What is going on now, before the bar."""
        ...


class _Silent:
    def advance(self, count: int = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass


@contextmanager
def progress(text: str, total: int | None) -> Iterator[Progress]:
    """A progress bar on stderr; silent when that is not a terminal. `total` None: unknown."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=total)

        class Shown:
            def advance(self, count: int = 1) -> None:
                bar.advance(task, count)

            def describe(self, text: str) -> None:
                bar.update(task, description=text)

        yield Shown()


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: 20 ms, 0.3 s, 42 s, 5 min, 3.2 h, 12 d."""
    if seconds is None:
        return "–"
    if 0 < seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h".replace(".0 h", " h")
    return f"{seconds / 86_400:.0f} d"


def size(count: float | None) -> str:
    """Bytes as a person reads them: 512 B, 4.2 MiB."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
