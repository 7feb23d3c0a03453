"""URLs are read or refused with an example, and passwords are never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.errors import SettingsError
from forebay.storage.database import Database


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "scheme ''"),
        ("forebay.db", "write postgresql://"),
        ("oracle://scott:tiger@h/x", "scheme 'oracle'"),
        ("sqlite://", "sqlite:///relative"),
        ("sqlite:///", "sqlite:///relative"),
        ("sqlite:forebay.db", "sqlite:///relative"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///x.db?mode=ro", "takes none"),
        ("postgresql://u:tiger@h", "names no database"),
        ("postgresql://u:tiger@h:port/x", "port"),
        ("postgresql://u:tiger@h:99999/x", "port"),
        ("postgresql://u:ti%ger@h/x", "with % for special characters"),
        ("postgresql://u:tiger@h/x?colour=red", "cannot be read"),
        ("mysql://u:tiger@h", "names no database"),
        ("mysql://u:tiger@h/", "names no database"),
        ("mysql://u:tiger@h:port/x", "port"),
        ("mysql://u:tiger@h:99999/x", "port"),
        ("mysql://u:ti/ger:x@h/x", "% for special characters"),
        ("mysql://u:tiger#1@h/x", "% for special characters|names no database"),
        ("mysql://u:p@h/x#tiger", "% for special characters"),
        ("mysql://u:tiger@h/x?charset=latin1", "charset, which is not known"),
        ("mysql://u:tiger@a:1,b:2/x", "several hosts|port"),
        ("mysql:name", "names no database"),
    ],
)
def test_an_unreadable_url_is_refused_with_an_example(url: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text.replace("?", r"\?")) as raised:
        Database(url)
    assert "tiger" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "dialect", "safe"),
    [
        ("sqlite:///a/b.db", "sqlite", "sqlite:///a/b.db"),
        ("sqlite:////a/b.db", "sqlite", "sqlite:////a/b.db"),
        ("sqlite:///a%20b.db", "sqlite", "sqlite:///a b.db"),
        ("postgresql://u:tiger@h/x", "postgresql", "postgresql://u@h/x"),
        ("postgres://u:tiger@h:5433/x", "postgresql", "postgresql://u@h:5433/x"),
        ("postgresql+psycopg://u:t%40iger@h/x?sslmode=require", "postgresql", "postgresql://u@h/x"),
        ("postgresql://u:tiger@a:1,b:2/x", "postgresql", "postgresql://u@a:1,b:2/x"),
        ("postgresql://u:tiger@/x?host=/run/pg", "postgresql", "postgresql://u@/run/pg/x"),
        ("mysql://u:tiger@h/x", "mysql", "mysql://u@h/x"),
        ("mysql://u:t%40iger@h:3307/x", "mysql", "mysql://u@h:3307/x"),
        ("mariadb://u:tiger@h/x", "mysql", "mysql://u@h/x"),
        ("mysql+pymysql://u%40d:tiger@h/x?ssl_ca=/ca.pem", "mysql", "mysql://u%40d@h/x"),
        ("mysql://u:tiger@[::1]:3306/x", "mysql", "mysql://u@[::1]:3306/x"),
        ("mysql://u:tiger@localhost/x?unix_socket=/run/s", "mysql", "mysql://u@/run/s/x"),
    ],
)
def test_a_url_can_be_shown_without_its_password(url: str, dialect: str, safe: str) -> None:
    database = Database(url)
    assert (database.dialect, database.safe_url) == (dialect, safe)
    assert "tiger" not in repr(database.engine.url)


def test_making_one_does_not_connect(tmp_path: Path) -> None:
    Database("postgresql://u:p@127.0.0.1:1/x").dispose()
    Database("mysql://u:p@127.0.0.1:1/x").dispose()
    Database(f"sqlite:///{tmp_path / 'x.db'}").dispose()
    assert list(tmp_path.iterdir()) == []
