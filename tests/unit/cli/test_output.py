"""What commands print: plain without a terminal, and never a question that nobody can answer."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pytest

from forebay.cli import _output as output
from forebay.cli._exit import CommandError, ExitCode


def test_without_a_terminal_a_table_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_table(("queue", "ready"), [("orders", 12), ("c", None)])
    assert capsys.readouterr().out == "queue   ready\norders  12\nc       –\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["80", "110"])
def test_an_id_stays_in_one_piece_on_a_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    id, reason = "0190c0de-1f2a-7c3b-8d4e-5f6a7b8c9d0e", "some words of a reason " * 5

    output.emit_table(("id", "queue", "class", "reason"), [(id, "orders", "ValueError", reason)])

    assert id in terminal.getvalue()


def test_a_table_loses_nothing_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr("sys.stdout", terminal := Terminal())

    output.emit_table(("id", "n"), [("x" * 40, 1)])

    assert terminal.getvalue().count("x") == 40


def test_json_for_a_pipe_is_one_line_with_times_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_json({"at": datetime(2026, 1, 2, tzinfo=UTC), "name": "ü"})
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"at": "2026-01-02T00:00:00+00:00", "name": "ü"}


def test_notes_and_errors_leave_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("a")
    output.warn("b")
    output.fail("c")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a\nwarning: b\nerror: c\n")


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("sending", 3) as bar:
        bar.advance()
        bar.describe("still sending")
    assert capsys.readouterr() == ("", "")


def test_a_question_without_a_terminal_is_refused_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(CommandError, match="--yes") as error:
        output.confirm("Discard 3?", yes=False)
    assert error.value.code == ExitCode.USAGE
    output.confirm("Discard 3?", yes=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0, "0 s"), (0.02, "20 ms"), (0.5, "0.5 s"), (9, "9 s"), (42, "42 s"), (300, "5 min"),
     (7_200, "2 h"), (86_400, "24 h"), (864_000, "10 d")],
)  # fmt: skip
def test_durations_read_as_a_person_says_them(seconds: float | None, text: str) -> None:
    assert output.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 * 2**20, "300 MiB"),
     (5 * 2**40, "5.0 TiB")],
)  # fmt: skip
def test_sizes_read_as_a_person_says_them(count: int | None, text: str) -> None:
    assert output.size(count) == text
