"""Which sink a queue gets from the tables it has, and what of them is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.errors import SettingsError
from forebay.settings import Settings, load
from forebay.settings_schema import shown_leaves


def loaded(folder: Path, toml: str, **environ: str) -> Settings:
    file = folder / "forebay.toml"
    file.write_text(toml)
    return load(file, environ=environ).settings


HTTP = '[queues.orders.http]\nurl = "https://shop.test/take"\n'


@pytest.mark.parametrize(
    ("toml", "sink"), [(HTTP, "http"), ('[queues.orders.forward]\nqueue = "there"\n', "broker")]
)
def test_the_table_of_a_sink_implies_it(tmp_path: Path, toml: str, sink: str) -> None:
    assert loaded(tmp_path, toml).queue("orders").sink == sink


def test_a_variable_implies_it_too(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "", FOREBAY_QUEUES__ORDERS__HTTP__URL="https://shop.test/")
    assert settings.queue("orders").sink == "http"


def test_a_queue_may_have_another_sink_than_the_defaults(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        '[queue_defaults.http]\nurl = "https://shop.test/"\n'
        '[queues.raw]\nsink = "database"\n[queues.own]\nhandler = "a:b"\n[queues.on.forward]\nqueue = "x"\n'
        "[queues.sent]\n",
    )

    assert {name: settings.queue(name).sink for name in ("raw", "own", "on", "sent")} == {
        "raw": "database", "own": "python", "on": "broker", "sent": "http",
    }  # fmt: skip


def test_a_default_handler_gives_way_to_a_table(tmp_path: Path) -> None:
    settings = loaded(tmp_path, '[queue_defaults]\nhandler = "a:b"\n' + HTTP)
    assert (settings.queue("orders").sink, settings.queue("orders").handler) == ("http", None)


@pytest.mark.parametrize("beside", ['sink = "database"', 'handler = "a:b"'])
def test_a_table_beside_another_sink_is_refused(tmp_path: Path, beside: str) -> None:
    with pytest.raises(SettingsError, match=r"http\.url needs sink = 'http', but .* remove one of the two"):
        loaded(tmp_path, f"[queues.orders]\n{beside}\n{HTTP}")


def test_two_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"forward\.queue needs sink = 'broker'"):
        loaded(tmp_path, HTTP + '[queues.orders.forward]\nqueue = "there"\n')


def test_no_secret_of_a_target_is_shown(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        '[queues.orders.http]\nurl = "https://u:sesame@shop.test/take?token=sesame"\n'
        'headers = ["X-Key: sesame"]\nproxy = "http://u:sesame@proxy.test:3128"\n'
        'signing_secrets = ["whsec_c2VzYW1l"]\n'
        '[queues.on.forward]\nqueue = "x"\nbroker_url = "amqp://u:sesame@host/"\n',
    )
    text = repr(list(shown_leaves(settings))) + repr(settings)

    assert "sesame" not in text
    assert "c2VzYW1l" not in text


def test_no_secret_of_a_target_is_quoted_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as told:
        loaded(
            tmp_path,
            '[queues.orders.http]\nurl = "ftp://u:sesame@shop.test/"\nheaders = ["sesame"]\n'
            'signing_secrets = ["sesame!"]\n',
        )

    assert "sesame" not in str(told.value)
    assert 'each is "Name: value"' in str(told.value)


def test_a_secret_file_holds_headers_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("Authorization: Bearer a, b\nX-Key: c\n")
    settings = loaded(tmp_path, HTTP, FOREBAY_QUEUES__ORDERS__HTTP__HEADERS_FILE=str(tmp_path / "headers"))

    lines = [line.get_secret_value() for line in settings.queue("orders").http.headers]
    assert lines == ["Authorization: Bearer a, b", "X-Key: c"]
