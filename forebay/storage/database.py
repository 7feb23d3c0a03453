"""One database as one process sees it: its URL read, its connections pooled, its errors translated."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection

from forebay.errors import SettingsError, SinkMisconfigured, SinkUnavailable
from forebay.storage.classify import ConnectionLost, classify
from forebay.storage.settings import DatabaseSettings

Dialect = Literal["postgresql", "sqlite", "mysql"]

_EXAMPLES = (
    "write postgresql://user:password@host/name, mysql://user:password@host/name or sqlite:///path/to/file.db"
)

_READ_ONLY = "forebay_read_only"

_ASK_READ_ONLY = {
    "postgresql": "SHOW transaction_read_only",
    # A superuser could write all the same; on a replica that would be the worse outcome.
    "mysql": "SELECT @@global.read_only",
}


class Database:
    """
    A URL and a small pool behind it. Connects when first used; safe to use from several threads.

    Everything here blocks: callers in an event loop run it in a thread. `begin` and
    `read` raise errors of our own tree; what is done with `engine` itself raises
    SQLAlchemy's, for `classify` to translate.
    """

    def __init__(self, url: str, settings: DatabaseSettings | None = None) -> None:
        self.settings = settings or DatabaseSettings()
        self.path: Path | None = None
        """The file, when the database is one."""
        scheme = url.partition(":")[0].lower()
        if scheme.startswith("sqlite"):
            self.dialect: Dialect = "sqlite"
            self.path = _sqlite_path(url)
            self.safe_url = f"sqlite:///{self.path}"
            self.engine = self._sqlite_engine(self.path)
        elif scheme in ("postgresql", "postgres", "postgresql+psycopg"):
            self.dialect = "postgresql"
            parameters = _postgresql_parameters("postgresql" + url[len(scheme) :], self.settings)
            self.safe_url = _safe_postgresql_url(parameters)
            self.engine = self._postgresql_engine(parameters)
        elif scheme in ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"):
            self.dialect = "mysql"
            self.safe_url, self.engine = self._mysql_engine(url)
        else:
            # Not the URL itself: it may hold a password that a missing scheme made unreadable.
            raise SettingsError(
                f"database.url has the scheme {scheme!r}, which is not supported; {_EXAMPLES}"
            )
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """
        A transaction that writes: committed at the end of the block, rolled back on an error.

        Raises:
            SinkUnavailable, SinkMisconfigured, MessageRejected, TransientError: see `classify`.
        """
        with (
            self._translated(),
            self.engine.connect() as connection,
            self._watched(connection),
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads; on SQLite it does not take the writer's turn."""
        with self._translated(), self.engine.connect() as connection, self._watched(connection):
            yield connection.execution_options(**{_READ_ONLY: True})

    @contextmanager
    def statement(self) -> Iterator[sa.Connection]:
        """
        As `begin`, for what is a single statement on PostgreSQL, which is spared the BEGIN and the
        COMMIT around it.
        """
        if self.dialect != "postgresql":
            with self.begin() as connection:
                yield connection
            return
        with self._translated(), self._autocommit.connect() as connection, self._watched(connection):
            yield connection

    def ping(self) -> None:
        """
        Return if a write could work now.

        Raises:
            SinkUnavailable, SinkMisconfigured: with the reason.
            TransientError: another process holds the SQLite file.
        """
        with self.read() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema").one()
                return
            if connection.exec_driver_sql(_ASK_READ_ONLY[self.dialect]).scalar_one() in ("on", 1):
                raise SinkUnavailable(f"{self.safe_url} takes no writes now: it is read-only")

    def dispose(self) -> None:
        """Close the pooled connections. Those in use are closed when they are given back."""
        self.engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            known = classify(error, self.dialect)
            if known is error:
                raise
            raise known from error

    @contextmanager
    def _watched(self, connection: sa.Connection) -> Iterator[None]:
        """When a connection turns out to be dead its pooled brothers are too: none of them is lent again."""
        try:
            yield
        except Exception as error:
            if not (_is_dead(connection) or _is_replaced(error)):
                raise
            waited = _gave_up(connection, error)
            connection.invalidate()
            self.engine.dispose()
            known = classify(error, self.dialect)
            if waited or not (isinstance(known, SinkUnavailable) or _is_replaced(error)):
                raise
            raise ConnectionLost(str(known)) from error

    def _sqlite_engine(self, path: Path) -> sa.Engine:
        settings = self.settings

        def connect() -> sqlite3.Connection:
            # mode=rw: a mistyped path must not become an empty database that nobody looks into.
            if not path.exists():
                raise SinkMisconfigured(f"database file {path} does not exist; run `forebay migrate`")
            return sqlite3.connect(
                f"file:{quote(str(path))}?mode=rw", uri=True, timeout=settings.lock_timeout,
                isolation_level=None, check_same_thread=False,
            )  # fmt: skip

        engine = sa.create_engine(
            "sqlite://",
            creator=connect,
            poolclass=sa.pool.QueuePool,
            pool_size=settings.pool_size,
            max_overflow=0,
            pool_timeout=settings.connect_timeout,
        )

        @event.listens_for(engine, "connect")
        def configure(connection: DBAPIConnection, _record: object) -> None:
            cursor = connection.cursor()
            # Why not WAL: docs/decisions/0003-storage.md.
            cursor.execute("PRAGMA journal_mode=TRUNCATE")
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.close()

        @event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            # A transaction that starts as a reader and turns writer fails at once
            # when another writes; the busy timeout only helps who asks at the start.
            read_only = connection.get_execution_options().get(_READ_ONLY, False)
            connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

        return engine

    def _postgresql_engine(self, parameters: Mapping[str, Any]) -> sa.Engine:
        from forebay.storage.patience import ImpatientConnection

        def connect() -> ImpatientConnection:
            # Never prepared by name: a pooler between us and the server may hand the next
            # transaction to another session. At batches of 500 no difference was measurable.
            made = ImpatientConnection.connect(**parameters, prepare_threshold=None)
            # The server's own timeout comes first wherever it works.
            made.answer_timeout = self.settings.statement_timeout + 5.0
            return made

        return sa.create_engine(
            "postgresql+psycopg://",
            creator=connect,
            pool_size=self.settings.pool_size,
            max_overflow=0,
            pool_timeout=self.settings.connect_timeout,
        )

    def _mysql_engine(self, url: str) -> tuple[str, sa.Engine]:
        try:
            from forebay.storage import mysqlconnection
        except ImportError as error:
            raise SettingsError(
                "database.url is MySQL's, but its driver is not installed: pip install 'forebay[mysql]'"
            ) from error
        parameters, safe_url = mysqlconnection.read_url(url)
        engine = sa.create_engine(
            "mysql+pymysql://",
            creator=lambda: mysqlconnection.connect(parameters, self.settings),
            pool_recycle=3600,  # seconds; before the server, or a proxy, ends it for having been idle
            pool_size=self.settings.pool_size,
            max_overflow=0,
            pool_timeout=self.settings.connect_timeout,
        )
        return safe_url, engine


def _is_dead(connection: sa.Connection) -> bool:
    if connection.invalidated:  # SQLAlchemy saw it first
        return True
    if connection.closed:
        return False
    driver = connection.connection.driver_connection
    return bool(getattr(driver, "closed", False))


def _is_replaced(error: Exception) -> bool:
    """Was the SQLite file moved away under the connection: another one may be in its place by now."""
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_DBMOVED


def _gave_up(connection: sa.Connection, error: Exception) -> bool:
    """Was it we who closed the connection, after waiting long enough."""
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    if getattr(original, "gave_up", False):
        return True
    if connection.invalidated:
        return False
    return bool(getattr(connection.connection.driver_connection, "gave_up", False))


def _sqlite_path(url: str) -> Path:
    scheme, _, rest = url.partition(":")
    path, _, query = rest.partition("?")
    if scheme.lower() != "sqlite" or not path.startswith("///") or len(path) == 3:
        raise SettingsError(
            "database.url is not the URL of an SQLite file; write sqlite:///relative/path.db"
            " or sqlite:////absolute/path.db"
        )
    if path == "///:memory:":
        raise SettingsError(
            "database.url names a database in memory, which no other process would see; write sqlite:///path.db"
        )
    if query:
        raise SettingsError(f"database.url has parameters ({query}); an SQLite URL takes none")
    return Path(unquote(path[3:]))


def _postgresql_parameters(url: str, settings: DatabaseSettings) -> dict[str, Any]:
    """
    What libpq makes of `url`, with our defaults below it: the URL wins.

    Several hosts are `postgresql://u:p@one:5432,two:5432/name`; the first that takes writes is used.
    """
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise SettingsError(
            "database.url is PostgreSQL's, but its driver is not installed: pip install 'forebay[postgresql]'"
        ) from error
    try:
        given = conninfo_to_dict(url)
    except ProgrammingError as error:
        # libpq quotes the part that it could not read, which may be a password.
        raise SettingsError(
            "database.url cannot be read as a PostgreSQL URL; write"
            " postgresql://user:password@host:5432/name, with % for special characters in the password"
        ) from error
    if not given.get("dbname") and not given.get("service"):
        raise SettingsError("database.url names no database; write postgresql://user:password@host/name")
    milliseconds = {
        "statement_timeout": settings.statement_timeout,
        "lock_timeout": settings.lock_timeout,
        "idle_in_transaction_session_timeout": settings.statement_timeout,
    }
    options = " ".join(f"-c {name}={math.ceil(value * 1000)}" for name, value in milliseconds.items())
    defaults: dict[str, Any] = {
        "connect_timeout": max(2, math.ceil(settings.connect_timeout)),  # libpq takes no less
        "application_name": "forebay",
        # A peer that vanished without a word: found within 10 s, not after the kernel's 15 minutes.
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    if "," in str(given.get("host", "")):
        defaults["target_session_attrs"] = "read-write"
    ports = str(given.get("port") or "5432").split(",")
    if not all(p.isdigit() and 0 < int(p) < 65536 for p in ports):
        raise SettingsError("database.url has a port that is not a number from 1 to 65535")
    theirs = given.pop("options", None)
    merged = defaults | given
    merged["options"] = f"{options} {theirs}" if theirs else options
    return merged


def _safe_postgresql_url(parameters: Mapping[str, Any]) -> str:
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "").split(",")
    ports = str(parameters.get("port") or "").split(",")
    if len(ports) < len(hosts):
        ports += ports[-1:] * (len(hosts) - len(ports))
    where = ",".join(f"{h}:{p}" if p else h for h, p in zip(hosts, ports, strict=False))
    user = f"{parameters['user']}@" if parameters.get("user") else ""
    return f"postgresql://{user}{where}/{parameters.get('dbname', '')}"
