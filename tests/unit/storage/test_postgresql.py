"""What only a real PostgreSQL does: its codes, its log, its outages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as sa

from forebay.errors import MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.classify import POSTGRESQL, ConnectionLost, classify
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore, _record
from forebay.storage.messages import MessageStore
from forebay.storage.schema import migrate
from forebay.storage.settings import DatabaseSettings
from tests.servers.postgres import Postgres
from tests.unit.storage.conftest import FAST
from tests.unit.storage.deliveries import add_check, dead, delivery, stored_count

pytestmark = pytest.mark.external


def name_of(database: Database) -> str:
    with database.read() as connection:
        return str(connection.exec_driver_sql("SELECT current_database()").scalar_one())


def execute(database: Database, *statements: str) -> None:
    with database.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


TRIGGER = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$;
CREATE {kind} TRIGGER {name} {when} INSERT ON messages {deferred} FOR EACH ROW EXECUTE FUNCTION {name}();
"""


def add_trigger(database: Database, body: str, *, at_commit: bool = False) -> None:
    """Server-side code that runs for each row, or for each row when the transaction commits."""
    execute(
        database,
        TRIGGER.format(
            name="storage_test",
            body=body,
            kind="CONSTRAINT" if at_commit else "",
            when="AFTER" if at_commit else "BEFORE",
            deferred="DEFERRABLE INITIALLY DEFERRED" if at_commit else "",
        ),
    )


# ---- the number of statements


@pytest.mark.parametrize("bad", [0, 500, 999])
def test_one_bad_row_among_a_thousand_costs_at_most_25_inserts(
    postgres: Postgres, postgres_database: Database, bad: int
) -> None:
    add_check(postgres_database, "polite", "queue <> 'rude'")
    name = name_of(postgres_database)
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name} SET log_statement = 'all'".encode())
        connection.execute(f"ALTER DATABASE {name} SET log_min_error_statement = 'panic'".encode())
    postgres_database.dispose()
    before = postgres.log.stat().st_size

    results = MessageStore(postgres_database).write(
        [delivery(queue="rude" if n == bad else "orders") for n in range(1000)]
    )

    with postgres.log.open("rb") as log:
        log.seek(before)
        inserts = log.read().count(b"INSERT INTO messages")
    assert 2 <= inserts <= 25
    assert [n for n, r in enumerate(results) if r.error] == [bad]
    assert stored_count(postgres_database) == 999


# ---- codes


@pytest.mark.parametrize("state", sorted(s if len(s) == 5 else f"{s}001" for s in POSTGRESQL))
def test_a_code_that_the_server_sends_gets_the_verdict_of_the_table(postgres: Postgres, state: str) -> None:
    expected = POSTGRESQL.get(state) or POSTGRESQL[state[:2]]
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'the row holds SECRET' USING ERRCODE = '{state}'; END $$"
    with postgres.connect() as connection, pytest.raises(psycopg.Error) as raised:
        connection.execute(raising.encode())

    error = classify(raised.value, "postgresql")

    assert type(error) is expected
    assert state in str(error)
    if isinstance(error, MessageRejected):
        assert "SECRET" not in str(error)
        assert "SECRET" in error.detail


def test_an_unknown_code_is_returned_as_it_is(postgres_database: Database) -> None:
    with postgres_database.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as raised:
        connection.exec_driver_sql("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'ZZ123'; END $$")
    assert classify(raised.value, "postgresql") is raised.value
    assert isinstance(classify(KeyError("x"), "postgresql"), KeyError)


def test_a_trigger_that_refuses_rows_rejects_them(postgres_database: Database) -> None:
    add_trigger(
        postgres_database, "IF NEW.queue = 'rude' THEN RAISE EXCEPTION USING MESSAGE = 'SECRET'; END IF"
    )

    good, bad = MessageStore(postgres_database).write([delivery(), delivery(queue="rude")])

    assert good.error is None
    assert str(bad.error) == "P0001 RaiseException"


def test_a_constraint_that_is_checked_at_commit_rejects_only_its_row(postgres_database: Database) -> None:
    add_trigger(postgres_database, "IF NEW.queue = 'rude' THEN RAISE EXCEPTION ''; END IF", at_commit=True)

    results = MessageStore(postgres_database).write([delivery(), delivery(queue="rude"), delivery()])

    assert [type(r.error) for r in results] == [type(None), MessageRejected, type(None)]
    assert stored_count(postgres_database) == 2


def test_reasons_name_constraint_and_column_but_no_value(postgres_database: Database) -> None:
    execute(postgres_database, "ALTER TABLE messages ADD CONSTRAINT one_key UNIQUE (key)")
    execute(postgres_database, "ALTER TABLE messages ALTER COLUMN key SET NOT NULL")
    store = MessageStore(postgres_database)
    store.write([delivery(key="secret")])

    unique, missing = store.write([delivery(key="secret"), delivery(key=None)])

    assert str(unique.error) == "23505 UniqueViolation, constraint one_key"
    assert isinstance(unique.error, MessageRejected)
    assert "secret" in unique.error.detail
    assert str(missing.error) == "23502 NotNullViolation, column key"


def test_an_unknown_error_of_the_server_is_raised_as_it_is(postgres_database: Database) -> None:
    add_trigger(postgres_database, "RAISE EXCEPTION USING ERRCODE = 'ZZ123'")
    with pytest.raises(psycopg.Error):
        MessageStore(postgres_database).write([delivery(), delivery()])


def test_an_unknown_error_with_one_row_is_that_row_s_alone(postgres_database: Database) -> None:
    add_trigger(
        postgres_database, "IF NEW.queue = 'rude' THEN RAISE EXCEPTION USING ERRCODE = 'ZZ123'; END IF"
    )

    results = MessageStore(postgres_database).write([delivery(), delivery(queue="rude"), delivery()])

    assert [r.error is None for r in results] == [True, False, True]
    assert isinstance(results[1].error, psycopg.Error)
    assert stored_count(postgres_database) == 2


# ---- transient


def test_a_serialization_failure_runs_the_whole_batch_again(postgres_database: Database) -> None:
    # A sequence is not rolled back, so it counts the tries.
    execute(postgres_database, "CREATE SEQUENCE tries")
    add_trigger(
        postgres_database,
        "IF nextval('tries') = 2 THEN RAISE EXCEPTION USING ERRCODE = '40001'; END IF",
    )
    batch = [delivery() for _ in range(5)]

    assert MessageStore(postgres_database).write(batch) == [
        WriteResult(message_id=d.message.id) for d in batch
    ]
    with postgres_database.read() as connection:
        # 2 rows of the first try, 5 of the second; halving would have made other numbers.
        assert connection.exec_driver_sql("SELECT last_value FROM tries").scalar_one() == 7


def test_a_deadlock_between_two_writers_is_survived(postgres: Postgres, postgres_database: Database) -> None:
    """The victim's batch is run again and finds what the other one stored."""
    name = name_of(postgres_database)
    patient = Database(postgres.url(name), DatabaseSettings(lock_timeout=20, statement_timeout=20))
    first, second = sorted((delivery(b"1"), delivery(b"2")), key=lambda d: d.message.id)
    insert = (
        "INSERT INTO messages (id, queue, content_type, headers, body, accepted_at, stored_at, attempts)"
        " VALUES (%s, 'q', '', '{}', %s, now(), now(), 1)"
    )
    with ThreadPoolExecutor(1) as threads, psycopg.connect(postgres.url(name)) as other:
        other.execute("SET deadlock_timeout = '60s'")  # so that the victim is the store
        other.execute(insert, [second.message.id, second.message.body])
        written = threads.submit(MessageStore(patient).write, [first, second])
        wait_until_someone_waits(postgres)
        other.execute(insert, [first.message.id, first.message.body])
        other.commit()
        results = written.result(30)
    patient.dispose()

    assert [(r.error, r.duplicate) for r in results] == [(None, True), (None, True)]


def test_two_archivers_with_two_bodies_of_one_id_keep_both(
    postgres: Postgres, postgres_database: Database
) -> None:
    one = dead(b"1")
    other = dead(b"2", id=one.message.id, minute=1)
    patient = Database(postgres.url(name_of(postgres_database)), DatabaseSettings(lock_timeout=20))
    with ThreadPoolExecutor(1) as pool:
        with postgres_database.begin() as connection:
            DeadLetterStore(postgres_database)._archive(connection, _record(one))
            waiting = pool.submit(DeadLetterStore(patient).archive, [other])
            wait_until_someone_waits(postgres)
        waiting.result(30)
    patient.dispose()

    assert {r.body for r in DeadLetterStore(postgres_database).get(one.message.id)} == {b"1", b"2"}


def test_a_dead_letter_whose_twin_is_stored_while_it_is_archived_is_resolved(
    postgres: Postgres, postgres_database: Database
) -> None:
    twin = delivery(b"1")
    store = DeadLetterStore(postgres_database)
    patient = Database(
        postgres.url(name_of(postgres_database)), DatabaseSettings(lock_timeout=20, statement_timeout=20)
    )
    with ThreadPoolExecutor(1) as threads:
        with postgres_database.begin() as connection:
            # Holds the archiver up between its look at the messages and its commit.
            store._archive(connection, _record(dead(b"1", id=twin.message.id)))
            archived = threads.submit(
                DeadLetterStore(patient).archive, [dead(b"1", id=twin.message.id, minute=1)]
            )
            wait_until_someone_waits(postgres)
            MessageStore(postgres_database).write([twin])
        archived.result(30)
    patient.dispose()

    assert [r.status for r in store.get(twin.message.id)] == ["resolved"]


def wait_until_someone_waits(postgres: Postgres, kind: str = "Lock") -> None:
    """Return when a client's session of the cluster waits for a lock, or something of another kind."""
    pause = threading.Event()
    with postgres.connect() as connection:
        for _ in range(500):
            if connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = %s AND state = 'active'", [kind]
            ).fetchone():
                return
            pause.wait(0.02)
    raise AssertionError("nobody waits")


# ---- the destination and its configuration


def test_a_read_only_database_is_unavailable(postgres_database: Database) -> None:
    name = name_of(postgres_database)
    execute(postgres_database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    postgres_database.dispose()

    with pytest.raises(SinkUnavailable, match="25006"):
        MessageStore(postgres_database).write([delivery()])
    with pytest.raises(SinkUnavailable, match="read-only"):
        postgres_database.ping()


def test_a_missing_table_is_a_misconfiguration_that_names_the_command(postgres_database: Database) -> None:
    execute(postgres_database, "DROP TABLE messages")
    with pytest.raises(SinkMisconfigured, match=r'42P01.*"messages".*run `forebay migrate`'):
        MessageStore(postgres_database).write([delivery()])


@pytest.fixture
def writer(postgres: Postgres, postgres_database: Database) -> Iterator[Database]:
    """The database as a user sees it who may just do what is needed."""
    name = name_of(postgres_database)
    user = f"writer_{name}"
    execute(
        postgres_database,
        f"CREATE ROLE {user} LOGIN PASSWORD 'pw' CONNECTION LIMIT 1",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {user}",
    )
    database = Database(postgres.url(name, user=user, password="pw"), FAST)
    yield database
    database.dispose()


def test_a_revoked_permission_is_a_misconfiguration(postgres_database: Database, writer: Database) -> None:
    store = MessageStore(writer)
    store.write([delivery()])
    execute(postgres_database, f"REVOKE INSERT ON messages FROM writer_{name_of(postgres_database)}")

    with pytest.raises(SinkMisconfigured, match="42501 InsufficientPrivilege: permission denied"):
        store.write([delivery()])


def test_too_many_connections_are_an_outage(writer: Database) -> None:
    with writer.read() as connection:
        connection.exec_driver_sql("SELECT 1")
        with pytest.raises(SinkUnavailable, match="too many connections"):
            MessageStore(writer).write([delivery()])


def test_an_exhausted_pool_is_an_outage(postgres: Postgres, postgres_database: Database) -> None:
    small = Database(
        postgres.url(name_of(postgres_database)), DatabaseSettings(pool_size=1, connect_timeout=0.1)
    )
    with small.read(), pytest.raises(SinkUnavailable, match="pool_size"):
        MessageStore(small).write([delivery()])
    small.dispose()


def test_a_statement_that_takes_too_long_is_an_outage(
    postgres: Postgres, postgres_database: Database
) -> None:
    add_trigger(postgres_database, "PERFORM pg_sleep(5)")
    hasty = Database(postgres.url(name_of(postgres_database)), DatabaseSettings(statement_timeout=0.1))
    with pytest.raises(SinkUnavailable, match="57014"):
        MessageStore(hasty).write([delivery()])
    hasty.dispose()


@pytest.mark.parametrize(
    ("url", "expected", "text"),
    [
        ("postgresql://nobody:x@127.0.0.1:{port}/postgres", SinkMisconfigured, "password authentication"),
        (
            "postgresql://forebay:wrong@127.0.0.1:{port}/postgres",
            SinkMisconfigured,
            "password authentication",
        ),
        ("postgresql://forebay:{password}@127.0.0.1:{port}/nowhere", SinkMisconfigured, "does not exist"),
        ("postgresql://forebay:x@127.0.0.1:1/postgres", SinkUnavailable, "refused"),
        ("postgresql://forebay:x@nowhere.invalid/postgres", SinkUnavailable, "nowhere.invalid"),
    ],
)
def test_a_refused_connection_tells_a_wrong_setting_from_an_outage(
    postgres: Postgres, url: str, expected: type[Exception], text: str
) -> None:
    database = Database(url.format(port=postgres.port, password=postgres.password), FAST)
    for call in (database.ping, lambda: MessageStore(database).write([delivery()])):
        with pytest.raises(expected, match=text) as raised:
            call()
        assert postgres.password not in str(raised.value)
        assert "wrong" not in str(raised.value)


def test_the_first_host_that_takes_writes_is_used(postgres: Postgres, postgres_database: Database) -> None:
    name = name_of(postgres_database)
    database = Database(
        f"postgresql://forebay:{postgres.password}@127.0.0.1:1,127.0.0.1:{postgres.port}/{name}", FAST
    )
    assert MessageStore(database).write([delivery()])[0].error is None
    assert database.safe_url == f"postgresql://forebay@127.0.0.1:1,127.0.0.1:{postgres.port}/{name}"
    database.dispose()


def test_settings_reach_the_server(postgres_database: Database) -> None:
    with postgres_database.read() as connection:
        shown = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in (
                "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout",
                "application_name", "tcp_keepalives_idle",
            )
        }  # fmt: skip
    assert shown | {"tcp_keepalives_idle": ""} == {
        "statement_timeout": "5s",
        "lock_timeout": "200ms",
        "idle_in_transaction_session_timeout": "5s",
        "application_name": "forebay",
        "tcp_keepalives_idle": "",
    }


# ---- outages: a server of their own


@pytest.fixture(scope="module")
def breakable() -> Iterator[Postgres]:
    with Postgres(durable=False) as server:
        yield server


@pytest.fixture
def fragile(breakable: Postgres) -> Iterator[Database]:
    database = Database(breakable.create_database(), FAST)
    migrate(database)
    yield database
    database.dispose()
    if not breakable.running:
        breakable.start()


def test_a_stopped_server_is_unavailable_and_the_pool_recovers(
    breakable: Postgres, fragile: Database
) -> None:
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


def test_a_restart_between_two_batches_is_not_noticed(breakable: Postgres, fragile: Database) -> None:
    """Connections that outlived the server are replaced before anyone hears of it."""
    store = MessageStore(fragile)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(store.write, [[delivery()] for _ in range(12)]))
    breakable.stop("immediate")
    breakable.start()

    assert store.write([delivery()])[0].error is None
    assert store.write([delivery()])[0].error is None


def test_a_server_killed_before_it_has_committed_has_stored_nothing(
    breakable: Postgres, fragile: Database
) -> None:
    add_trigger(fragile, "PERFORM pg_advisory_xact_lock(1)", at_commit=True)
    patient = Database(breakable.url(name_of(fragile)), DatabaseSettings(lock_timeout=30, connect_timeout=2))
    store = MessageStore(patient)
    batch = [delivery(b"%d" % n) for n in range(100)]
    with ThreadPoolExecutor(1) as threads, breakable.connect(name_of(fragile)) as blocker:
        blocker.execute("SELECT pg_advisory_lock(1)")
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


def test_a_server_killed_after_it_has_committed_but_before_its_answer_stores_nothing_twice() -> None:
    """The commit is on the server's disk and waits for a standby that does not exist."""
    waiting = {"synchronous_standby_names": "nobody", "synchronous_commit": "local"}
    batch = [delivery(b"%d" % n) for n in range(100)]
    with Postgres(durable=False, settings=waiting) as server, ThreadPoolExecutor(1) as threads:
        url = server.create_database()
        database = Database(url, FAST)
        migrate(database)
        patient = Database(f"{url}?options=-csynchronous_commit%3Don", FAST)
        written = threads.submit(MessageStore(patient).write, batch)
        try:
            wait_until_someone_waits(server, "IPC")
        finally:
            server.stop("immediate")
        with pytest.raises(SinkUnavailable):
            written.result(30)
        server.start()

        results = MessageStore(database).write(batch)

        assert [(r.error, r.duplicate) for r in results] == [(None, True)] * 100
        assert stored_count(database) == 100
        patient.dispose()
        database.dispose()


def test_a_server_that_stops_answering_is_given_up(breakable: Postgres, fragile: Database) -> None:
    import os
    import signal

    url = breakable.url(name_of(fragile))
    hasty = Database(url, DatabaseSettings(statement_timeout=0.5))
    store = MessageStore(hasty)
    store.write([delivery()])
    with hasty.read() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(SinkUnavailable, match=r"no answer within 5\.5 s"):
            store.write([delivery()])
    finally:
        os.kill(pid, signal.SIGCONT)
    assert store.write([delivery()])[0].error is None
    hasty.dispose()


def test_a_cut_connection_is_replaced_and_the_batch_run_again(breakable: Postgres, fragile: Database) -> None:
    add_trigger(fragile, "PERFORM pg_advisory_xact_lock(1)")
    patient = Database(breakable.url(name_of(fragile)), DatabaseSettings(lock_timeout=30))
    sent = delivery()
    with ThreadPoolExecutor(1) as threads, breakable.connect(name_of(fragile)) as blocker:
        blocker.execute("SELECT pg_advisory_lock(1)")
        written = threads.submit(MessageStore(patient).write, [sent])
        wait_until_someone_waits(breakable)
        blocker.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        )
        blocker.execute("SELECT pg_advisory_unlock(1)")
        assert written.result(30) == [WriteResult(message_id=sent.message.id)]
    patient.dispose()


def test_a_connection_that_died_says_so(breakable: Postgres, fragile: Database) -> None:
    def lose_it() -> None:
        with fragile.begin() as connection, breakable.connect() as killer:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            killer.execute("SELECT pg_terminate_backend(%s)", [pid])
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(ConnectionLost):
        lose_it()
