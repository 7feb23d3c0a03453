"""What only a real MariaDB does: its codes, its limits, its outages."""

from __future__ import annotations

import struct
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pymysql
import pytest
import sqlalchemy as sa

from forebay.brokers.api import Delivery
from forebay.errors import MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.classify import ConnectionLost, TransientError, classify
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore, _record
from forebay.storage.messages import MessageStore
from forebay.storage.mysqlcodes import MYSQL
from forebay.storage.once import claim
from forebay.storage.schema import migrate
from forebay.storage.settings import DatabaseSettings
from tests.servers.certificates import Certificates
from tests.servers.mariadb import MariaDB
from tests.servers.proxy import Proxy
from tests.unit.storage.conftest import FAST
from tests.unit.storage.deliveries import add_check, dead, delivery, stored, stored_count

pytestmark = pytest.mark.external

PATIENT = DatabaseSettings(lock_timeout=20, statement_timeout=20, connect_timeout=2)


def name_of(database: Database) -> str:
    with database.read() as connection:
        return str(connection.exec_driver_sql("SELECT database()").scalar_one())


def execute(database: Database, *statements: str) -> None:
    with database.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def add_trigger(database: Database, body: str, when: str = "BEFORE") -> None:
    """Server-side code that runs for each row."""
    execute(database, f"CREATE TRIGGER t {when} INSERT ON messages FOR EACH ROW BEGIN {body}; END")


def wait_until_someone_waits(mariadb: MariaDB) -> None:
    """Return when a transaction of the server waits for a lock.

    Asked at most every 0.15 s: the server renews what innodb_trx shows only when nobody has read it for 0.1 s
    (https://dev.mysql.com/doc/refman/8.0/en/innodb-information-schema-internal-data.html).
    """
    pause = threading.Event()
    for _ in range(70):
        if mariadb.execute(
            "SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
            " UNION ALL SELECT 1 FROM information_schema.processlist WHERE state = 'User lock'"
        ):
            return
        pause.wait(0.15)
    raise AssertionError("nobody waits")


# ---- the number of statements


@pytest.mark.parametrize("bad", [0, 500, 999])
def test_one_bad_row_among_a_thousand_costs_at_most_25_inserts(mariadb_database: Database, bad: int) -> None:
    add_check(mariadb_database, "polite", "queue <> 'rude'")
    with mariadb_database.read() as connection:  # the pool's only connection, so that it counts them all
        driver = connection.connection.driver_connection
    inserts = []
    query = pymysql.connections.Connection.query

    def counted(self: object, sql: str | bytes, unbuffered: bool = False) -> int:
        if isinstance(sql, bytes) and sql.startswith(b"INSERT INTO messages"):
            inserts.append(sql)
        return int(query(driver, sql, unbuffered))  # type: ignore[arg-type]

    driver.query = counted.__get__(driver)  # type: ignore[union-attr]

    results = MessageStore(mariadb_database).write(
        [delivery(queue="rude" if n == bad else "orders") for n in range(1000)]
    )

    assert 2 <= len(inserts) <= 25
    assert [n for n, r in enumerate(results) if r.error] == [bad]
    assert stored_count(mariadb_database) == 999


def test_a_batch_larger_than_one_statement_may_be_is_one_transaction(mariadb_database: Database) -> None:
    """Of several statements the second meets a known id; nothing is lost, doubled or called known wrongly."""
    store = MessageStore(mariadb_database)
    batch = [delivery(bytes([n]) * 900_000) for n in range(20)]
    store.write([batch[7], batch[19]])

    results = store.write(batch)

    assert [n for n, r in enumerate(results) if r.duplicate] == [7, 19]
    assert all(r.error is None for r in results)
    assert stored_count(mariadb_database) == 20


# ---- codes


@pytest.mark.parametrize("code", sorted(c for c in MYSQL if 1000 < c < 2000 or c > 3000))
def test_a_code_that_the_server_sends_gets_the_verdict_of_the_table(mariadb: MariaDB, code: int) -> None:
    raising = f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'the row holds SECRET'"
    with pytest.raises(pymysql.err.Error) as raised:
        mariadb.execute(raising)

    error = classify(raised.value, "mysql")

    assert type(error) is MYSQL[code]
    assert str(code) in str(error)
    if isinstance(error, MessageRejected):
        assert "SECRET" not in str(error)
        assert "SECRET" in error.detail


def test_an_unknown_code_is_returned_as_it_is(mariadb_database: Database) -> None:
    with mariadb_database.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as raised:
        connection.exec_driver_sql("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 5999")
    assert classify(raised.value, "mysql") is raised.value
    assert isinstance(classify(KeyError("x"), "mysql"), KeyError)


def test_a_trigger_that_refuses_rows_rejects_them(mariadb_database: Database) -> None:
    add_trigger(
        mariadb_database,
        "IF NEW.queue = 'rude' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'SECRET'; END IF",
    )

    good, bad = MessageStore(mariadb_database).write([delivery(), delivery(queue="rude")])

    assert good.error is None
    assert str(bad.error) == "1644 ER_SIGNAL_EXCEPTION"


def test_reasons_name_constraint_and_column_but_no_value(mariadb_database: Database) -> None:
    execute(
        mariadb_database,
        "ALTER TABLE messages MODIFY `key` VARCHAR(12) CHARACTER SET latin1 NOT NULL,"
        " ADD CONSTRAINT one_key UNIQUE (`key`), ADD CONSTRAINT polite CHECK (queue <> 'rude'),"
        " ADD day DATE AS (CASE WHEN queue = 'dated' THEN `key` END) STORED",
        "CREATE TABLE parent (id VARCHAR(80) PRIMARY KEY) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        "INSERT INTO parent VALUES ('orders'), ('dated')",
        "ALTER TABLE messages ADD CONSTRAINT known_queue FOREIGN KEY (queue) REFERENCES parent (id)",
    )
    store = MessageStore(mariadb_database)
    store.write([delivery(key="secret")])

    results = store.write([
        delivery(key="secret"), delivery(key=None), delivery(key="secret" * 3), delivery(key="secret 狐"),
        delivery(key="secret 2", queue="unknown"), delivery(key="secret 3", queue="dated"),
        delivery(key="secret 4", queue="rude"),
    ])  # fmt: skip

    assert [str(r.error) for r in results] == [
        "1062 ER_DUP_ENTRY, key one_key",
        "1048 ER_BAD_NULL_ERROR, column key",
        "1406 ER_DATA_TOO_LONG, column key",
        "1366 ER_TRUNCATED_WRONG_VALUE_FOR_FIELD, column key",
        "1452 ER_NO_REFERENCED_ROW_2, constraint known_queue",
        "1292 ER_TRUNCATED_WRONG_VALUE, column day",
        "4025 ER_CONSTRAINT_FAILED, constraint polite",
    ]
    for result in results:
        assert isinstance(result.error, MessageRejected)
    assert stored_count(mariadb_database) == 1


def test_a_value_that_looks_like_a_text_of_the_server_names_nothing(mariadb_database: Database) -> None:
    execute(
        mariadb_database,
        "ALTER TABLE messages MODIFY `key` VARCHAR(80), ADD CONSTRAINT one_key UNIQUE (`key`)",
    )
    store = MessageStore(mariadb_database)
    store.write([delivery(key="secret' for key 'secret")])

    [result] = store.write([delivery(key="secret' for key 'secret")])

    assert str(result.error) == "1062 ER_DUP_ENTRY, key one_key"


def test_a_unique_key_of_the_user_s_is_never_taken_for_a_stored_id(mariadb_database: Database) -> None:
    execute(
        mariadb_database, "ALTER TABLE messages MODIFY `key` VARCHAR(80), ADD CONSTRAINT one UNIQUE (`key`)"
    )
    store = MessageStore(mariadb_database)
    known, taken = delivery(key="a"), delivery(key="b")
    store.write([known, taken])

    results = store.write([delivery(key="c"), known, delivery(key="b")])

    assert [(r.duplicate, type(r.error)) for r in results] == [
        (False, type(None)),
        (True, type(None)),
        (False, MessageRejected),
    ]


def test_an_unknown_error_of_the_server_is_raised_as_it_is(mariadb_database: Database) -> None:
    add_trigger(mariadb_database, "SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 5999")
    with pytest.raises(pymysql.err.Error):
        MessageStore(mariadb_database).write([delivery(), delivery()])


def test_an_unknown_error_with_one_row_is_that_row_s_alone(mariadb_database: Database) -> None:
    add_trigger(
        mariadb_database,
        "IF NEW.queue = 'rude' THEN SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 5999; END IF",
    )

    results = MessageStore(mariadb_database).write([delivery(), delivery(queue="rude"), delivery()])

    assert [r.error is None for r in results] == [True, False, True]
    assert isinstance(results[1].error, pymysql.err.Error)


def test_json_that_the_server_finds_too_deep_loses_only_its_copy(mariadb_database: Database) -> None:
    deep, neighbour = delivery(b"[" * 40 + b"]" * 40), delivery()

    results = MessageStore(mariadb_database).write([deep, neighbour])

    assert [r.error for r in results] == [None, None]
    assert stored(mariadb_database, deep.message.id)["payload"] is None
    assert stored(mariadb_database, neighbour.message.id)["payload"] == {"n": 1}


def test_ids_destinations_and_queues_are_told_apart_by_case(mariadb_database: Database) -> None:
    one, other = delivery(id="a-b"), delivery(id="A-B")
    with mariadb_database.begin() as connection:
        assert claim(connection, "handler:x", [one, other]) == {"a-b", "A-B"}
        assert claim(connection, "handler:X", [one]) == {"a-b"}


# ---- transient


def test_a_deadlock_runs_the_whole_batch_again(mariadb_database: Database) -> None:
    # A sequence is not rolled back, so it counts the tries.
    execute(mariadb_database, "CREATE SEQUENCE tries")
    add_trigger(
        mariadb_database,
        "IF NEXTVAL(tries) = 2 THEN SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF",
    )
    batch = [delivery() for _ in range(5)]

    assert MessageStore(mariadb_database).write(batch) == [
        WriteResult(message_id=d.message.id) for d in batch
    ]
    with mariadb_database.read() as connection:
        # 2 rows of the first try, 5 of the second; halving would have made other numbers.
        assert connection.exec_driver_sql("SELECT NEXTVAL(tries)").scalar_one() == 8


def insert_by_hand(
    connection: pymysql.connections.Connection[pymysql.cursors.Cursor], sent: Delivery
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO messages (id, queue, content_type, headers, body, accepted_at, stored_at, attempts)"
            " VALUES (%s, 'q', '', '{}', %s, now(), now(), 1)",
            (sent.message.id, sent.message.body),
        )


def test_a_deadlock_between_two_writers_is_survived(mariadb: MariaDB, mariadb_database: Database) -> None:
    """Whoever is the victim runs again; here it is the store, whose transaction is the smaller one."""
    name = name_of(mariadb_database)
    patient = Database(mariadb.url(name), PATIENT)
    first, second = sorted((delivery(b"1"), delivery(b"2")), key=lambda d: d.message.id)
    with ThreadPoolExecutor(1) as threads, mariadb.connect(name) as other:
        other.begin()
        for _ in range(50):
            insert_by_hand(other, delivery())
        insert_by_hand(other, second)
        written = threads.submit(MessageStore(patient).write, [first, second])
        wait_until_someone_waits(mariadb)
        insert_by_hand(other, first)
        other.commit()
        results = written.result(30)
    patient.dispose()

    assert [(r.error, r.duplicate) for r in results] == [(None, True), (None, True)]


def test_a_deadlock_that_a_handler_kept_to_itself_is_not_committed(
    mariadb: MariaDB, mariadb_database: Database
) -> None:
    """The server has rolled back everything, the once-only record too; what follows must not count."""
    execute(
        mariadb_database,
        "CREATE TABLE effects (n INT PRIMARY KEY) ENGINE=InnoDB",
        "CREATE TABLE done (n INT)",
        "INSERT INTO effects VALUES (1), (2)",
    )
    patient = Database(mariadb.url(name_of(mariadb_database)), PATIENT)

    def handle() -> None:
        with patient.begin() as connection:
            savepoint = connection.begin_nested()
            claim(connection, "handler:x", [delivery()])
            connection.exec_driver_sql("SELECT * FROM effects WHERE n = 1 FOR UPDATE")
            at_one.set()
            with pytest.raises(sa.exc.OperationalError, match="1213"):
                connection.exec_driver_sql("SELECT * FROM effects WHERE n = 2 FOR UPDATE")
            connection.exec_driver_sql("INSERT INTO done VALUES (1)")
            savepoint.commit()

    at_one = threading.Event()
    with ThreadPoolExecutor(1) as threads, mariadb.connect(name_of(mariadb_database)) as other:
        other.begin()
        with other.cursor() as cursor:
            cursor.execute("UPDATE effects SET n = n + 10 WHERE n = 2")
            for n in range(50):
                cursor.execute("INSERT INTO effects VALUES (%s)", (100 + n,))
            handled = threads.submit(handle)
            assert at_one.wait(10)
            wait_until_someone_waits(mariadb)
            cursor.execute("SELECT * FROM effects WHERE n = 1 FOR UPDATE")
        other.commit()
        with pytest.raises(TransientError, match="SAVEPOINT"):
            handled.result(30)
    patient.dispose()
    with mariadb_database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM done").scalar_one() == 0


def test_two_archivers_with_two_bodies_of_one_id_keep_both(
    mariadb: MariaDB, mariadb_database: Database
) -> None:
    one = dead(b"1")
    other = dead(b"2", id=one.message.id, minute=1)
    holder = Database(mariadb.url(name_of(mariadb_database)), PATIENT)
    patient = Database(mariadb.url(name_of(mariadb_database)), PATIENT)
    with ThreadPoolExecutor(1) as pool:
        with holder.begin() as connection:
            DeadLetterStore(holder)._archive(connection, _record(one))
            waiting = pool.submit(DeadLetterStore(patient).archive, [other])
            wait_until_someone_waits(mariadb)
        waiting.result(30)
    holder.dispose()
    patient.dispose()

    assert {r.body for r in DeadLetterStore(mariadb_database).get(one.message.id)} == {b"1", b"2"}


def test_a_dead_letter_whose_twin_is_stored_while_it_is_archived_is_resolved(
    mariadb: MariaDB, mariadb_database: Database
) -> None:
    twin = delivery(b"1")
    store = DeadLetterStore(mariadb_database)
    holder = Database(mariadb.url(name_of(mariadb_database)), PATIENT)
    patient = Database(mariadb.url(name_of(mariadb_database)), PATIENT)
    with ThreadPoolExecutor(1) as threads:
        with holder.begin() as connection:
            # Holds the archiver up between its look at the messages and its commit.
            store._archive(connection, _record(dead(b"1", id=twin.message.id)))
            archived = threads.submit(
                DeadLetterStore(patient).archive, [dead(b"1", id=twin.message.id, minute=1)]
            )
            wait_until_someone_waits(mariadb)
            MessageStore(mariadb_database).write([twin])
        archived.result(30)
    holder.dispose()
    patient.dispose()

    assert [r.status for r in store.get(twin.message.id)] == ["resolved"]


def test_two_operators_who_take_the_same_dead_letters_share_them_out(
    mariadb: MariaDB, mariadb_database: Database
) -> None:
    store = DeadLetterStore(mariadb_database)
    store.archive([dead(b"%d" % n) for n in range(200)])
    patient = Database(mariadb.url(name_of(mariadb_database)), PATIENT)
    from forebay.storage.dead_letters import DeadLetterFilter

    records = store.list(DeadLetterFilter(), limit=1000)
    with ThreadPoolExecutor(4) as threads:
        takes = [
            threads.submit(DeadLetterStore(patient).take, records, status="redriving", expected="dead")
            for _ in range(4)
        ]
        taken = [r.id for take in takes for r in take.result(30)]
    patient.dispose()
    assert sorted(taken) == sorted(r.id for r in records)


# ---- the destination and its configuration


@pytest.fixture
def writer(mariadb: MariaDB, mariadb_database: Database) -> Iterator[Database]:
    """The database as a user sees it who may just do what is needed."""
    name = name_of(mariadb_database)
    mariadb.execute(
        f"CREATE USER '{name}'@'127.0.0.1' IDENTIFIED BY 'pw' WITH MAX_USER_CONNECTIONS 1",
        f"GRANT SELECT, UPDATE, DELETE ON {name}.* TO '{name}'@'127.0.0.1'",
        *(
            f"GRANT INSERT ON {name}.{table} TO '{name}'@'127.0.0.1'"
            for (table,) in mariadb.execute("SHOW TABLES", database=name)
        ),
    )
    database = Database(mariadb.url(name, user=name, password="pw"), FAST)
    yield database
    database.dispose()


def test_a_read_only_server_is_unavailable(mariadb: MariaDB, writer: Database) -> None:
    mariadb.execute("SET GLOBAL read_only = 1")
    try:
        with pytest.raises(SinkUnavailable, match="1290"):
            MessageStore(writer).write([delivery()])
        with pytest.raises(SinkUnavailable, match="read-only"):
            writer.ping()
    finally:
        mariadb.execute("SET GLOBAL read_only = 0")
    writer.ping()


def test_a_missing_table_is_a_misconfiguration_that_names_the_command(mariadb_database: Database) -> None:
    execute(mariadb_database, "DROP TABLE messages")
    with pytest.raises(SinkMisconfigured, match=r"1146.*messages.*run `forebay migrate`"):
        MessageStore(mariadb_database).write([delivery()])


def test_a_missing_column_is_a_misconfiguration(mariadb_database: Database) -> None:
    execute(mariadb_database, "ALTER TABLE messages DROP COLUMN attempts")
    with pytest.raises(SinkMisconfigured, match=r"1054.*attempts"):
        MessageStore(mariadb_database).write([delivery()])


def test_a_column_that_nobody_fills_is_a_misconfiguration(mariadb_database: Database) -> None:
    execute(mariadb_database, "ALTER TABLE messages ADD COLUMN region VARCHAR(9) NOT NULL")
    with pytest.raises(SinkMisconfigured, match=r"1364.*region"):
        MessageStore(mariadb_database).write([delivery()])


def test_a_revoked_permission_is_a_misconfiguration(
    mariadb: MariaDB, mariadb_database: Database, writer: Database
) -> None:
    store = MessageStore(writer)
    store.write([delivery()])
    name = name_of(mariadb_database)
    mariadb.execute(f"REVOKE INSERT ON {name}.messages FROM '{name}'@'127.0.0.1'")

    with pytest.raises(SinkMisconfigured, match="1142 ER_TABLEACCESS_DENIED_ERROR: INSERT command denied"):
        store.write([delivery()])


def test_too_many_connections_are_an_outage(writer: Database) -> None:
    with writer.read() as connection:
        connection.exec_driver_sql("SELECT 1")
        with pytest.raises(SinkUnavailable, match="max_user_connections"):
            MessageStore(writer).write([delivery()])


def test_an_exhausted_pool_is_an_outage(mariadb: MariaDB, mariadb_database: Database) -> None:
    small = Database(
        mariadb.url(name_of(mariadb_database)), DatabaseSettings(pool_size=1, connect_timeout=0.1)
    )
    with small.read(), pytest.raises(SinkUnavailable, match="pool_size"):
        MessageStore(small).write([delivery()])
    small.dispose()


def test_a_statement_that_takes_too_long_is_an_outage(mariadb: MariaDB, mariadb_database: Database) -> None:
    add_trigger(mariadb_database, "DO SLEEP(5)")
    hasty = Database(mariadb.url(name_of(mariadb_database)), DatabaseSettings(statement_timeout=0.1))
    with pytest.raises(SinkUnavailable, match="1969"):
        MessageStore(hasty).write([delivery()])
    hasty.dispose()


@pytest.mark.parametrize(
    ("url", "expected", "text"),
    [
        ("mysql://nobody:x@127.0.0.1:{port}/mysql", SinkMisconfigured, "1045"),
        ("mysql://forebay:wrong@127.0.0.1:{port}/mysql", SinkMisconfigured, "1045"),
        ("mysql://forebay:{password}@127.0.0.1:{port}/nowhere", SinkMisconfigured, "1049"),
        ("mysql://forebay:x@127.0.0.1:1/mysql", SinkUnavailable, "refused"),
        ("mysql://forebay:x@nowhere.invalid/mysql", SinkUnavailable, "nowhere.invalid"),
    ],
)
def test_a_refused_connection_tells_a_wrong_setting_from_an_outage(
    mariadb: MariaDB, url: str, expected: type[Exception], text: str
) -> None:
    database = Database(url.format(port=mariadb.port, password=mariadb.password), FAST)
    for call in (database.ping, lambda: MessageStore(database).write([delivery()])):
        with pytest.raises(expected, match=text) as raised:
            call()
        assert mariadb.password not in str(raised.value)
        assert "wrong" not in str(raised.value)


def test_settings_reach_the_server_whatever_its_own_are(mariadb_database: Database) -> None:
    with mariadb_database.read() as connection:
        names = (
            "sql_mode", "time_zone", "tx_isolation", "innodb_lock_wait_timeout", "lock_wait_timeout",
            "max_statement_time", "idle_transaction_timeout", "character_set_client",
            "character_set_connection",
        )  # fmt: skip
        row = connection.exec_driver_sql("SELECT " + ", ".join(f"@@{n}" for n in names)).one()
    mode, *rest = row
    assert "STRICT_ALL_TABLES" in mode
    assert rest == ["+00:00", "READ-COMMITTED", 1, 1, 5.0, 5, "utf8mb4", "utf8mb4"]


def test_a_password_may_hold_anything(mariadb: MariaDB, mariadb_database: Database) -> None:
    from urllib.parse import quote

    name, password = name_of(mariadb_database), "pä:/@ 狐%"
    mariadb.execute(
        f"CREATE USER 'odd'@'127.0.0.1' IDENTIFIED BY '{password}'",
        f"GRANT ALL ON {name}.* TO 'odd'@'127.0.0.1'",
    )
    database = Database(mariadb.url(name, user="odd", password=quote(password, safe="")), FAST)
    database.ping()
    assert database.safe_url == f"mysql://odd@127.0.0.1:{mariadb.port}/{name}"
    database.dispose()


def test_a_connection_is_encrypted_and_the_server_s_certificate_and_name_are_checked() -> None:
    # pytest's own folders are closed to the user that the server runs as.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        certificates = Certificates(Path(folder))
        ca, (cert, key) = certificates.ca, certificates.sign("localhost")
        key.chmod(0o644)
        settings = {"ssl-ca": str(ca), "ssl-cert": str(cert), "ssl-key": str(key)}
        with MariaDB(durable=False, settings=settings) as server:
            by_name = server.url().replace("127.0.0.1", "localhost")
            trusted = Database(f"{by_name}?ssl_ca={ca}", FAST)
            with trusted.read() as connection:
                [(_, cipher)] = connection.exec_driver_sql("SHOW STATUS LIKE 'Ssl_cipher'")
            assert cipher
            trusted.dispose()
            for refused in (f"{by_name}?ssl_ca={cert}", f"{server.url()}?ssl_ca={ca}"):
                with pytest.raises(SinkMisconfigured, match=r"2026.*certificate verify failed"):
                    Database(refused, FAST).ping()


def test_a_server_without_encryption_is_not_used_where_it_is_asked_for(mariadb: MariaDB) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ca = Certificates(Path(folder)).ca
        with pytest.raises(SinkMisconfigured, match="2026"):
            Database(f"{mariadb.url()}?ssl_ca={ca}", FAST).ping()


# ---- max_allowed_packet


@pytest.fixture(scope="module")
def narrow() -> Iterator[MariaDB]:
    with MariaDB(durable=False, settings={"max-allowed-packet": "1M"}) as server:
        yield server


def test_what_is_too_long_for_a_statement_of_its_own_is_rejected_and_its_neighbours_are_stored(
    narrow: MariaDB,
) -> None:
    database = Database(narrow.create_database(), FAST)
    migrate(database)
    batch = [delivery(b"x" * size) for size in (400_000, 400_000, 1_100_000, 400_000)]

    results = MessageStore(database).write(batch)

    assert [type(r.error) for r in results] == [type(None), type(None), MessageRejected, type(None)]
    assert str(results[2].error) == "1153 ER_NET_PACKET_TOO_LARGE"
    assert stored_count(database) == 3
    database.dispose()


# ---- outages: a server of their own


@pytest.fixture(scope="module")
def breakable() -> Iterator[MariaDB]:
    with MariaDB(durable=False) as server:
        yield server


@pytest.fixture
def fragile(breakable: MariaDB) -> Iterator[Database]:
    database = Database(breakable.create_database(), FAST)
    migrate(database)
    yield database
    database.dispose()
    if not breakable.running:
        breakable.start()


def test_a_stopped_server_is_unavailable_and_the_pool_recovers(breakable: MariaDB, fragile: Database) -> None:
    store = MessageStore(fragile)
    store.write([delivery()])
    breakable.stop()

    for _ in range(3):
        with pytest.raises(SinkUnavailable, match="refused"):
            store.write([delivery()])
        with pytest.raises(SinkUnavailable):
            fragile.ping()

    breakable.start()
    fragile.ping()
    assert store.write([delivery()])[0].error is None


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_between_two_batches_is_not_noticed(
    breakable: MariaDB, fragile: Database, mode: str
) -> None:
    """Connections that outlived the server are replaced before anyone hears of it."""
    store = MessageStore(fragile)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(store.write, [[delivery()] for _ in range(12)]))
    breakable.stop("fast" if mode == "fast" else "immediate")
    breakable.start()

    assert store.write([delivery()])[0].error is None
    assert store.write([delivery()])[0].error is None


def test_a_server_killed_before_it_has_committed_has_stored_nothing(
    breakable: MariaDB, fragile: Database
) -> None:
    add_trigger(fragile, "DO GET_LOCK('test', 30)", when="AFTER")
    patient = Database(breakable.url(name_of(fragile)), PATIENT)
    store = MessageStore(patient)
    batch = [delivery(b"%d" % n) for n in range(100)]
    with ThreadPoolExecutor(1) as threads:
        blocker = breakable.connect()
        blocker.query("SELECT GET_LOCK('test', 0)")
        written = threads.submit(store.write, batch)
        wait_until_someone_waits(breakable)
        breakable.stop("immediate")
        with pytest.raises(SinkUnavailable):
            written.result(30)
    breakable.start()

    results = store.write(batch)

    assert [(r.error, r.duplicate) for r in results] == [(None, False)] * 100
    assert stored_count(patient) == 100
    patient.dispose()


class Commits:
    """Follows one connection: the packet after COMMIT is its confirmation."""

    def __init__(self) -> None:
        self._committing = False

    def asked(self, data: bytes) -> bool:
        self._committing = data == struct.pack("<iB", 7, 3) + b"COMMIT"
        return False

    def answered(self, data: bytes) -> bool:
        return self._committing


def test_a_connection_cut_after_the_commit_but_before_its_answer_stores_nothing_twice(
    breakable: MariaDB, fragile: Database
) -> None:
    batch = [delivery(b"%d" % n) for n in range(100)]
    with Proxy(breakable.port, conversation=Commits) as proxy:
        url = breakable.url(name_of(fragile)).replace(str(breakable.port), str(proxy.port))
        database = Database(url, FAST)
        store = MessageStore(database)
        store.write([delivery()])
        proxy.cut_before_confirm()

        results = store.write(batch)

        assert proxy.was_cut
        assert [(r.error, r.duplicate) for r in results] == [(None, True)] * 100
        assert stored_count(fragile) == 101
        database.dispose()


@pytest.mark.parametrize("connected", [True, False])
def test_a_server_that_stops_answering_is_given_up(
    breakable: MariaDB, fragile: Database, connected: bool
) -> None:
    hasty = Database(
        breakable.url(name_of(fragile)), DatabaseSettings(statement_timeout=0.5, connect_timeout=1)
    )
    store = MessageStore(hasty)
    if connected:
        store.write([delivery()])
    # A frozen server's kernel takes connections; its greeting is waited for as long as for a connection.
    text = r"no answer within 5\.5 s" if connected else "no answer within 1 s"
    with breakable.frozen(), pytest.raises(SinkUnavailable, match=text):
        store.write([delivery()])
    assert store.write([delivery()])[0].error is None
    hasty.dispose()


def test_a_cut_connection_is_replaced_and_the_batch_run_again(breakable: MariaDB, fragile: Database) -> None:
    add_trigger(fragile, "DO GET_LOCK('test', 30)")
    patient = Database(breakable.url(name_of(fragile)), PATIENT)
    sent = delivery()
    with ThreadPoolExecutor(1) as threads, breakable.connect() as blocker:
        blocker.query("SELECT GET_LOCK('test', 0)")
        written = threads.submit(MessageStore(patient).write, [sent])
        wait_until_someone_waits(breakable)
        for (id,) in breakable.execute(
            "SELECT id FROM information_schema.processlist WHERE state = 'User lock'"
        ):
            blocker.query(f"KILL CONNECTION {id}")
        blocker.query("DO RELEASE_LOCK('test')")
        assert written.result(30) == [WriteResult(message_id=sent.message.id)]
    patient.dispose()


def test_a_connection_that_died_says_so(breakable: MariaDB, fragile: Database) -> None:
    def lose_it() -> None:
        with fragile.begin() as connection:
            id = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
            breakable.execute(f"KILL CONNECTION {id}")
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(ConnectionLost):
        lose_it()


def test_a_failed_statement_leaves_no_lock_behind_in_the_pool(breakable: MariaDB, fragile: Database) -> None:
    """An error says nothing of the transaction it leaves open; the pool rolls it back all the same."""
    sent = delivery()
    MessageStore(fragile).write([sent])
    with pytest.raises(sa.exc.IntegrityError), fragile.engine.connect() as connection:
        connection.exec_driver_sql(
            "INSERT INTO messages SELECT * FROM messages WHERE id = %s", (sent.message.id,)
        )
    assert breakable.execute("SELECT count(*) FROM information_schema.innodb_trx") == [(0,)]
