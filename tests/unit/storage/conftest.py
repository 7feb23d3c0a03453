"""A migrated, empty database of each kind for each test."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.storage.database import Database
from forebay.storage.schema import VERSION_TABLE, migrate
from forebay.storage.settings import DatabaseSettings
from tests.servers.mariadb import MariaDB
from tests.servers.postgres import Postgres

FAST = DatabaseSettings(connect_timeout=2.0, lock_timeout=0.2, statement_timeout=5.0)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("storage") / "template.db"
    made = Database(f"sqlite:///{path}")
    migrate(made)
    made.dispose()
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    # Of its own name: folders that borrow these fixtures make their own.
    name = f"storage_template_{secrets.token_hex(4)}"
    made = Database(postgres.create_database(name))
    migrate(made)
    made.dispose()
    return name


@pytest.fixture(scope="session")
def mariadb_schema(mariadb: MariaDB) -> list[str]:
    """The statements that make our tables: it has no templates, and migrating takes its time."""
    name = f"storage_template_{secrets.token_hex(4)}"
    made = Database(mariadb.create_database(name))
    migrate(made)
    made.dispose()
    tables = [row[0] for row in mariadb.execute("SHOW TABLES", database=name)]
    statements = [mariadb.execute(f"SHOW CREATE TABLE {table}", database=name)[0][1] for table in tables]
    return [*statements, f"INSERT INTO {VERSION_TABLE} SELECT * FROM {name}.{VERSION_TABLE}"]


@pytest.fixture
def sqlite_database(sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(sqlite_template, tmp_path / "forebay.db")
    database = Database(f"sqlite:///{tmp_path / 'forebay.db'}", FAST)
    yield database
    database.dispose()


@pytest.fixture
def postgres_database(postgres: Postgres, postgres_template: str) -> Iterator[Database]:
    name = f"storage_{secrets.token_hex(6)}"
    with postgres.connect() as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {postgres_template}".encode())
    database = Database(postgres.url(name), FAST)
    yield database
    database.dispose()


@pytest.fixture
def mariadb_database(mariadb: MariaDB, mariadb_schema: list[str]) -> Iterator[Database]:
    name = f"storage_{secrets.token_hex(6)}"
    mariadb.create_database(name)
    mariadb.execute(*mariadb_schema, database=name)
    database = Database(mariadb.url(name), FAST)
    yield database
    database.dispose()


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.external),
        pytest.param("mariadb", marks=pytest.mark.external),
    ]
)
def database(request: pytest.FixtureRequest) -> Database:
    """Tests with this fixture run against each."""
    made: Database = request.getfixturevalue(f"{request.param}_database")
    return made


@pytest.fixture
def another(request: pytest.FixtureRequest, database: Database) -> Iterator[Callable[[], Database]]:
    """Makes further `Database` objects for the same database, as other processes have them."""
    made: list[Database] = []

    def make() -> Database:
        if database.path is not None:
            url = f"sqlite:///{database.path}"
        elif database.dialect == "mysql":
            with database.read() as connection:
                name = connection.exec_driver_sql("SELECT database()").scalar_one()
            url = request.getfixturevalue("mariadb").url(name)
        else:
            with database.read() as connection:
                driver = connection.connection.driver_connection
                assert driver is not None
                info = driver.info
                url = f"postgresql://{info.user}:{info.password}@{info.host}:{info.port}/{info.dbname}"
        made.append(Database(url, FAST))
        return made[-1]

    yield make
    for one in made:
        one.dispose()
