"""`forebay doctor` judges a MySQL or MariaDB server in words."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from forebay.storage.database import Database
from forebay.storage.mysqlserver import examine, judge

SOUND = {
    "version": "10.11.19-MariaDB-0+deb12u1",
    "sql_mode": "STRICT_TRANS_TABLES",
    "max_allowed_packet": "16777216",
    "innodb_flush_log_at_trx_commit": "1",
    "log_bin": "OFF",
    "sync_binlog": "0",
    "binlog_format": "MIXED",
}


def judged(
    changed: Mapping[str, str] = SOUND, *, body: int = 900_000, engines: tuple[str, ...] = ()
) -> dict[str, tuple[str, str]]:
    remarks = judge(SOUND | dict(changed), list(engines), max_body_bytes=body)
    return {r.check: (r.verdict, r.text) for r in remarks}


def test_a_sound_server_is_ok() -> None:
    assert {verdict for verdict, _ in judged().values()} == {"ok"}


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ("10.6.0-MariaDB", "ok"),
        ("11.8.2-MariaDB-log", "ok"),
        ("10.5.29-MariaDB", "fail"),
        ("8.0.19", "ok"),
        ("8.4.6-cluster", "ok"),
        ("9.0.1", "ok"),
        ("8.0.18", "fail"),
        ("5.7.44-log", "fail"),
    ],
)
def test_what_is_older_than_what_we_use_fails(version: str, verdict: str) -> None:
    assert judged({"version": version})["server"][0] == verdict


@pytest.mark.parametrize(
    ("changed", "verdict", "named"),
    [
        ({"innodb_flush_log_at_trx_commit": "2"}, "warn", "innodb_flush_log_at_trx_commit = 2"),
        ({"innodb_flush_log_at_trx_commit": "0"}, "warn", "power cut"),
        ({"innodb_flush_log_at_trx_commit": "3"}, "ok", "survives"),
        ({"log_bin": "ON"}, "warn", "sync_binlog = 0"),
        ({"log_bin": "ON", "sync_binlog": "1"}, "ok", "survives"),
    ],
)
def test_commits_that_are_not_synced_are_a_warning(changed: dict[str, str], verdict: str, named: str) -> None:
    found = judged(changed)["commits"]
    assert found[0] == verdict
    assert named in found[1]


def test_a_packet_that_the_largest_message_may_exceed_is_a_warning() -> None:
    assert judged({"max_allowed_packet": "1048576"})["packet size"][0] == "warn"
    assert judged(body=10_000_000)["packet size"][0] == "warn"


def test_statement_based_replication_fails() -> None:
    assert judged({"log_bin": "ON", "binlog_format": "STATEMENT"})["binary log"][0] == "fail"


def test_tables_without_transactions_are_named() -> None:
    assert judged(engines=("stock",))["engine"] == (
        "warn", "not InnoDB, so that what a handler does there is not undone: stock",
    )  # fmt: skip


@pytest.mark.external
def test_a_real_server_is_examined(mariadb_database: Database) -> None:
    with mariadb_database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE stock (n INT) ENGINE=Aria")
    found = {r.check: r for r in examine(mariadb_database, max_body_bytes=900_000)}
    assert found["server"].text.startswith("MariaDB ")
    assert found["packet size"].verdict == "ok"
    assert found["commits"].verdict == "warn", "the tests' server is fast, not durable"
    assert found["engine"].text.endswith(": stock")
