"""How MySQL and MariaDB are connected to: the URL read, the session's modes set, and no wait without end."""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pymysql
from pymysql.constants import CLIENT, CR, ER
from pymysql.err import OperationalError

from forebay.errors import SettingsError
from forebay.storage.settings import DatabaseSettings

_EXAMPLE = "mysql://user:password@host:3306/name"

_TLS = ("ssl_ca", "ssl_cert", "ssl_key")

# Whatever the server's own is: what does not fit must be refused, never cut to size. The text of our
# statements, and PyMySQL's, is written for backslash escapes.
SQL_MODE = "STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"


class NoAnswer(OperationalError):
    """The server did not answer in time; the connection was closed by us."""

    gave_up = True


if TYPE_CHECKING:
    _Connection = pymysql.connections.Connection[pymysql.cursors.Cursor]
else:
    _Connection = pymysql.connections.Connection


class MySQLConnection(_Connection):
    """
    PyMySQL's connection, which gives up a server that does not answer and asks it less.

    A statement longer than the server's `max_allowed_packet` fails before it is sent:
    the server would cut the connection in the middle of it, as in an outage.
    """

    answer_timeout: float | None = None
    """Seconds without a byte from the server after which the connection is closed."""
    longest_statement = 2**30
    """Bytes; the server's `max_allowed_packet`."""

    _used = True

    @property
    def closed(self) -> bool:
        return not self.open

    def wait_at_most(self, seconds: float | None) -> None:
        """For every statement from now on; None waits for ever."""
        self.answer_timeout = seconds
        self._read_timeout = self._write_timeout = seconds

    def rollback(self) -> None:
        # The pool asks for one after each use, also when nothing was asked since the commit. Of a dead
        # connection the server does it; an error here would hide why it died.
        if self._used and self.open:
            super().rollback()
            self._used = False

    def commit(self) -> None:
        super().commit()
        self._used = False

    def _execute_command(self, command: int, sql: str | bytes) -> None:
        if isinstance(sql, str):
            sql = sql.encode()
        if len(sql) >= self.longest_statement:
            raise OperationalError(
                ER.NET_PACKET_TOO_LARGE,
                f"a statement of {len(sql)} bytes; max_allowed_packet is {self.longest_statement}",
            )
        self._used = True
        super()._execute_command(command, sql)  # type: ignore[misc]  # the stubs leave it out

    def _read_bytes(self, num_bytes: int) -> bytes:
        try:
            return super()._read_bytes(num_bytes)  # type: ignore[misc,no-any-return]
        except OperationalError as error:
            raise self._explained(error) from error

    def _write_bytes(self, data: bytes) -> None:
        try:
            super()._write_bytes(data)  # type: ignore[misc]
        except OperationalError as error:
            raise self._explained(error) from error

    def _explained(self, error: OperationalError) -> OperationalError:
        if isinstance(error.__context__, TimeoutError):
            # What was asked may still be done.
            return NoAnswer(CR.CR_SERVER_LOST, f"no answer within {self._read_timeout:g} s")
        return error


def connect(parameters: Mapping[str, Any], settings: DatabaseSettings) -> MySQLConnection:
    """A connection whose session has our modes, whatever the server's defaults are."""
    # A frozen server's kernel still accepts connections: the greeting must come in time too.
    try:
        made = MySQLConnection(
            **parameters,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.connect_timeout,
            write_timeout=settings.connect_timeout,
            charset="utf8mb4",
            # UPDATE counts the rows it found, as on every other database, not those it changed.
            client_flag=CLIENT.FOUND_ROWS,
            program_name="forebay",
            autocommit=False,
        )
    except OperationalError as error:
        cause = getattr(error, "original_exception", None)
        if isinstance(cause, ssl.SSLCertVerificationError):
            # The driver calls it a host that cannot be reached: an outage, which nobody would mend.
            raise OperationalError(CR.CR_SSL_CONNECTION_ERROR, str(cause)) from error
        raise
    try:
        _set_session(made, settings)
    except BaseException:
        made.close()
        raise
    # The server's own timeout comes first wherever it has one.
    made.wait_at_most(settings.statement_timeout + 5.0)
    return made


def is_mariadb(connection: MySQLConnection) -> bool:
    return "mariadb" in connection.get_server_info().lower()  # type: ignore[no-untyped-call]


def set_lock_timeout(connection: MySQLConnection, seconds: float) -> None:
    """For rows and for tables. Whole seconds, at least one."""
    whole = max(1, math.ceil(seconds))
    _ask(connection, f"SET SESSION innodb_lock_wait_timeout = {whole}, lock_wait_timeout = {whole}")


def set_statement_timeout(connection: MySQLConnection, seconds: float) -> None:
    """0 means none. MySQL has it for SELECT only."""
    if is_mariadb(connection):
        _ask(connection, f"SET SESSION max_statement_time = {seconds:.3f}")
    else:
        _ask(connection, f"SET SESSION max_execution_time = {math.ceil(seconds * 1000)}")


def _set_session(connection: MySQLConnection, settings: DatabaseSettings) -> None:
    if is_mariadb(connection):
        # Of a process that was stopped in the middle of a transaction, with its locks.
        whole = max(1, math.ceil(settings.statement_timeout))
        _ask(connection, f"SET SESSION idle_transaction_timeout = {whole}")
    _ask(connection, f"SET SESSION sql_mode = '{SQL_MODE}', time_zone = '+00:00'")
    # Some servers close a connection that was quiet for a minute.
    _ask(connection, "SET SESSION wait_timeout = 28800")
    _ask(connection, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    set_lock_timeout(connection, settings.lock_timeout)
    set_statement_timeout(connection, settings.statement_timeout)
    [(packet,)] = _ask(connection, "SELECT @@max_allowed_packet")
    connection.longest_statement = int(packet)


def _ask(connection: MySQLConnection, statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def read_url(url: str) -> tuple[dict[str, Any], str]:
    """
    What to call `connect` with, and the URL to show, which has no password.

    After the name may stand `?unix_socket=/path`, and `ssl_ca`, `ssl_cert`, `ssl_key`
    with paths: with an authority the connection is encrypted and the server's
    certificate and name are checked.
    """
    try:
        parts = urlsplit("mysql" + url[url.index(":") :])
        port = parts.port or 3306
    except ValueError as error:
        # Not its words: they may quote a part of the password.
        raise SettingsError(
            "database.url has a port that is not a number from 1 to 65535, or a host that cannot be read;"
            f" write {_EXAMPLE}, with % for special characters in the password"
        ) from error
    name = unquote(parts.path[1:])
    if not name or not url.partition(":")[2].startswith("//"):
        raise SettingsError(f"database.url names no database; write {_EXAMPLE}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = options.keys() - {*_TLS, "unix_socket"}
    if unknown or parts.fragment:
        what = ", ".join(sorted(unknown)) or "a #"
        raise SettingsError(
            f"database.url has {what}, which is not known for MySQL;"
            f" known are unix_socket, {', '.join(_TLS)}; write % for special characters in the password"
        )
    if "," in parts.netloc.rpartition("@")[2]:
        raise SettingsError(
            "database.url names several hosts, which is not supported for MySQL;"
            " name the proxy or the virtual address in front of them"
        )
    # The driver would encode a password in Latin-1.
    parameters: dict[str, Any] = {
        "host": parts.hostname or "localhost",
        "port": port,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or "").encode(),
        "database": name,
        **options,
    }
    if "ssl_ca" in options:
        parameters |= {"ssl_verify_cert": True, "ssl_verify_identity": True}
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
    where = f"{host}:{parts.port}" if parts.port else host
    user = f"{quote(parameters['user'])}@" if parameters["user"] else ""
    return parameters, f"mysql://{user}{options.get('unix_socket') or where}/{name}"
