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


# ---- targets of requests that are forwarded


BILLING = '[forward.billing]\nurl = "https://billing.test/api"\n'


def test_a_target_makes_its_queue(tmp_path: Path) -> None:
    """One table is enough for both sides: a gateway declares it, a consumer hands over what is in it."""
    settings = loaded(tmp_path, BILLING + 'headers = ["Authorization: Bearer t"]\nconnections = 3\n')
    queue = settings.queue("billing")

    assert list(settings.queues) == ["billing"]
    assert (queue.sink, queue.order, queue.batch_size, queue.max_wait) == ("http", "none", 3, 0.0)
    assert queue.http.url is not None
    assert queue.http.url.get_secret_value() == "https://billing.test/api"
    assert [h.get_secret_value() for h in queue.http.headers] == ["Authorization: Bearer t"]


@pytest.mark.parametrize(("order", "of_queue"), [("none", "none"), ("key", "key"), ("all", "key")])
def test_a_targets_order_is_its_queues(tmp_path: Path, order: str, of_queue: str) -> None:
    assert loaded(tmp_path, f'{BILLING}order = "{order}"\n').queue("billing").order == of_queue


def test_a_targets_queue_may_have_another_name_and_settings_of_its_own(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        '[queue_defaults]\nhandler = "a:b"\nretry.max_attempts = 4\n'
        f'{BILLING}queue = "to-billing"\n[queues.to-billing]\nbatch_size = 2\n',
    )
    queue = settings.queue("to-billing")

    assert (queue.sink, queue.handler, queue.batch_size, queue.retry.max_attempts) == ("http", None, 2, 4)


def test_a_variable_makes_a_target(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("Authorization: Bearer t\nX-Team: a")
    settings = loaded(
        tmp_path,
        "",
        FOREBAY_FORWARD__BIG_BILLING__URL="http://b:1",
        FOREBAY_FORWARD__BIG_BILLING__HEADERS_FILE=str(secret),
    )

    assert settings.queue("big-billing").sink == "http"
    assert len(settings.forward["big-billing"].headers) == 2


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        (BILLING + '[queues.billing]\nsink = "database"\n', r"keeps the requests of \[forward.billing\]"),
        (BILLING + '[queues.billing]\norder = "key"\n', r"in what order; set it there"),
        (BILLING + '[forward.b]\nurl = "http://b"\nqueue = "billing"\n', "have the same queue 'billing'"),
        ('[forward.billing]\nurl = "https://b.test/api?key=1"\n', r"can have no \? and no #"),
        ('[forward.billing]\nurl = "ftp://b.test"\n', "https://host/path"),
        ("[forward.billing]\nwait = 1\n", r"forward\.billing\.url is missing"),
        (BILLING + 'wait = "31s"\n', "at most 30s"),
        (BILLING + 'methods = ["CONNECT"]\n', "'DELETE'"),
        (BILLING + 'keep_headers = ["Host"]\n', "no header that can be passed on"),
        (BILLING + "wiat = 1\n", r"did you mean forward\.billing\.wait"),
        ('[forward.Big_One]\nurl = "http://b"\n', "Big_One"),
    ],
)
def test_what_is_wrong_with_a_target_is_said(tmp_path: Path, toml: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        loaded(tmp_path, toml)


def test_no_secret_of_a_forward_target_is_shown(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path, '[forward.billing]\nurl = "https://u:SECRET@b.test"\nheaders = ["X-Key: SECRET"]\n'
    )

    assert "SECRET" not in str(dict(shown_leaves(settings)))
    assert "SECRET" not in repr(settings)
    assert "SECRET" not in settings.queue("billing").model_dump_json()


def test_it_is_said_where_the_settings_of_a_targets_queue_come_from(tmp_path: Path) -> None:
    file = tmp_path / "forebay.toml"
    file.write_text(BILLING + "[queues.billing]\nmax_wait = 1\n")
    origins = load(file, environ={}).provenance

    implied = ("sink", "order", "batch_size", "http.url", "http.timeout", "http.tls.verify")
    assert {origins[f"queues.billing.{name}"] for name in implied} == {"implied by forward.billing"}
    assert str(file) in origins["queues.billing.max_wait"]
