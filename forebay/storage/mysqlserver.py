"""What an operator should know of a MySQL or MariaDB server: for `forebay doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from forebay.storage.database import Database

OLDEST = {"MariaDB": (10, 6), "MySQL": (8, 0, 19)}
"""Older ones lack a part of the SQL that we use, or have never been tried."""

_VARIABLES = (
    "version", "sql_mode", "max_allowed_packet", "innodb_flush_log_at_trx_commit", "log_bin", "sync_binlog",
    "binlog_format",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Remark:
    check: str
    verdict: Literal["ok", "warn", "fail"]
    text: str
    fix: str = ""


def examine(database: Database, *, max_body_bytes: int) -> list[Remark]:
    """Version, limits and durability of the server, judged for bodies of up to `max_body_bytes`."""
    with database.read() as connection:
        names = ", ".join(f"'{name}'" for name in _VARIABLES)
        asked = connection.exec_driver_sql(f"SHOW GLOBAL VARIABLES WHERE variable_name IN ({names})")
        found = {str(name).lower(): str(value) for name, value in asked}
        other = connection.execute(
            sa.text(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = database()"
                " AND table_type = 'BASE TABLE' AND engine <> 'InnoDB' ORDER BY table_name"
            )
        ).scalars()
        return list(judge(found, list(other), max_body_bytes=max_body_bytes))


def judge(found: dict[str, str], other_engines: list[str], *, max_body_bytes: int) -> Iterator[Remark]:
    """`found` are the server's variables, `other_engines` the tables that are not InnoDB's."""
    version = found["version"]
    maker = "MariaDB" if "mariadb" in version.lower() else "MySQL"
    number = version.partition("-")[0]
    oldest = OLDEST[maker]
    if tuple(int(part) for part in number.split(".") if part.isdigit()) < oldest:
        least = ".".join(map(str, oldest))
        yield Remark(
            "server", "fail", f"{maker} {number} is older than {least}", f"upgrade it to {least} or newer"
        )
    else:
        yield Remark("server", "ok", f"{maker} {number}")
    yield from _durability(found)
    yield _packet(int(found["max_allowed_packet"]), max_body_bytes)
    if "STRICT_" not in found["sql_mode"]:
        yield Remark(
            "sql mode", "ok", "the server's is not strict; Forebay's sessions are, also those of handlers"
        )
    if found.get("log_bin") == "ON" and found.get("binlog_format") == "STATEMENT":
        yield Remark(
            "binary log", "fail", "binlog_format is STATEMENT, which does not go with READ COMMITTED",
            "SET GLOBAL binlog_format = 'ROW'; and binlog_format = ROW in the server's configuration",
        )  # fmt: skip
    if other_engines:
        tables = ", ".join(other_engines)
        yield Remark(
            "engine", "warn", f"not InnoDB, so that what a handler does there is not undone: {tables}",
            f"ALTER TABLE {other_engines[0]} ENGINE=InnoDB",
        )  # fmt: skip


def _durability(found: dict[str, str]) -> Iterator[Remark]:
    lax = []
    if found["innodb_flush_log_at_trx_commit"] not in ("1", "3"):
        lax.append("innodb_flush_log_at_trx_commit")
    if found.get("log_bin") == "ON" and found.get("sync_binlog") == "0":
        lax.append("sync_binlog")
    if not lax:
        yield Remark("commits", "ok", "synced to disk: what is stored survives a power cut")
        return
    names = " and ".join(f"{name} = {found[name]}" for name in lax)
    sets = ", ".join(f"GLOBAL {name} = 1" for name in lax)
    yield Remark(
        "commits", "warn", f"{names}: a power cut may lose what was stored and is gone from the queue",
        f"SET {sets}; and the same in the server's configuration",
    )  # fmt: skip


def _packet(longest: int, max_body_bytes: int) -> Remark:
    # Escaping doubles a body at worst; the rest of a row, with its headers, is small against it.
    wanted = 2 * max_body_bytes + 2**20
    if longest >= wanted:
        return Remark(
            "packet size", "ok", f"max_allowed_packet of {longest:,} bytes takes the largest message"
        )
    text = (
        f"max_allowed_packet is {longest:,} bytes; a message of {max_body_bytes:,} may need {wanted:,},"
        " and would become a dead letter that cannot be archived"
    )
    rounded = -(-wanted // 2**20) * 2**20
    fix = f"SET GLOBAL max_allowed_packet = {rounded}; and the same in the server's configuration"
    return Remark("packet size", "warn", text, fix)
