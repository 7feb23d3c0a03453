"""Which parts the demo plays with, and that it says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.demo import servers
from forebay.demo.crew import Crew
from forebay.demo.stage import choose


def test_where_no_server_is_installed_files_play_and_it_is_said_which(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(servers, "_SQL_BIN", "/nowhere")
    monkeypatch.setattr(servers, "_RABBIT_BIN", "/nowhere")

    with Crew() as crew:
        parts = choose(crew, database_url=None, broker_url=None, embedded=False)

    assert (parts.database.label, parts.broker.label) == ("SQLite", "the embedded queue")
    assert [note.partition(":")[0] for note in parts.notes] == [
        "no PostgreSQL on this machine",
        "no RabbitMQ on this machine",
    ]


def test_a_postgresql_without_its_driver_is_of_no_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("initdb", "postgres"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setattr(servers, "_SQL_BIN", "/nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(servers, "find_spec", lambda name: None)

    with Crew() as crew:
        parts = choose(crew, database_url=None, broker_url=None, embedded=False)

    assert parts.database.label == "SQLite"
    assert "pip install 'forebay[demo]'" in parts.notes[0]


def test_what_is_asked_for_needs_no_excuse() -> None:
    with Crew() as crew:
        parts = choose(crew, database_url=None, broker_url=None, embedded=True)

    assert parts.notes == ()
