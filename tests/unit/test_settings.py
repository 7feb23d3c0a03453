"""Settings: which source wins, what is refused and how it is said, what is masked."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import SettingsError
from forebay.settings import Flag, Loaded, Settings, load
from forebay.settings_schema import kind_of, leaf_settings, mask_url
from forebay.settings_sources import variable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def loaded(
    folder: Path, toml: str = "", environ: Mapping[str, str] | None = None, *flags: Flag, **rest: object
) -> Loaded:
    if toml:
        (folder / "forebay.toml").write_text(toml)
    return load(None, flags, environ=environ or {}, cwd=folder)


def refused(folder: Path, toml: str = "", environ: Mapping[str, str] | None = None, *flags: Flag) -> str:
    with pytest.raises(SettingsError) as error:
        loaded(folder, toml, environ, *flags)
    return str(error.value)


# ---- which source wins


def test_without_any_source_everything_is_its_default(folder: Path) -> None:
    assert loaded(folder).settings == Settings()
    assert loaded(folder).provenance == {}


@given(
    fallback=st.none() | st.integers(1, 9),
    toml=st.none() | st.integers(10, 19),
    secret=st.none() | st.integers(20, 29),
    env=st.none() | st.integers(30, 39),
    flag=st.none() | st.integers(40, 49),
)
def test_flag_beats_environment_beats_secret_file_beats_file_beats_fallback(
    tmp_path_factory: pytest.TempPathFactory,
    fallback: int | None, toml: int | None, secret: int | None, env: int | None, flag: int | None,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("settings")
    if toml:
        (folder / "forebay.toml").write_text(f"[gateway]\nport = {toml}\n")
    environ = {}
    if secret:
        (folder / "secret").write_text(f"{secret}\n")
        environ["FOREBAY_GATEWAY__PORT_FILE"] = str(folder / "secret")
    if env:
        environ["FOREBAY_GATEWAY__PORT"] = str(env)

    got = load(
        None, [Flag("gateway.port", "--port", flag)], environ=environ, cwd=folder,
        fallbacks={"gateway.port": fallback} if fallback else {},
    )  # fmt: skip

    winner = next((v for v in (flag, env, secret, toml, fallback) if v is not None), 8080)
    assert got.settings.gateway.port == winner
    assert got.settings.gateway.model_dump(exclude={"port"}) == Settings().gateway.model_dump(
        exclude={"port"}
    )


def test_each_value_says_where_it_came_from(folder: Path) -> None:
    got = loaded(
        folder,
        '[gateway]\nhost = "localhost"\n',
        {"FOREBAY_GATEWAY__WORKERS": "2"},
        Flag("gateway.port", "--port", 81),
    )

    assert got.provenance["gateway.host"] == f"{folder}/forebay.toml:2:1"
    assert got.provenance["gateway.workers"] == "environment FOREBAY_GATEWAY__WORKERS"
    assert got.provenance["gateway.port"] == "flag --port"
    assert "gateway.body_timeout" not in got.provenance


def test_an_empty_variable_is_the_same_as_none(folder: Path) -> None:
    assert loaded(folder, environ={"FOREBAY_DATABASE__URL": ""}).settings.database.url is None


def test_what_clients_read_is_no_setting(folder: Path) -> None:
    environ = {"FOREBAY_URL": "http://127.0.0.1:9", "FOREBAY_API_KEY": "k"}
    assert loaded(folder, environ=environ).settings == Settings()


def test_every_setting_has_a_variable_that_reaches_it(folder: Path) -> None:
    for path in leaf_settings(Settings):
        name = variable(tuple("orders" if part == "<name>" else part for part in path))
        assert kind_of(Settings, tuple(name.removeprefix("FOREBAY_").lower().split("__"))) == "setting"


# ---- files


def test_a_named_file_that_is_missing_is_an_error(folder: Path) -> None:
    assert "FOREBAY_CONFIG names" in refused(folder, environ={"FOREBAY_CONFIG": "other.toml"})
    with pytest.raises(SettingsError, match="--config names"):
        load(Path("other.toml"), environ={}, cwd=folder)


def test_text_that_is_not_toml_is_refused_with_line_and_column(folder: Path) -> None:
    assert f"{folder}/forebay.toml:2:8: not TOML" in refused(folder, "[gateway]\nport = \n")


def test_relative_paths_belong_to_the_file_that_sets_them(folder: Path) -> None:
    (folder / "etc").mkdir()
    (folder / "etc" / "f.toml").write_text(
        '[broker]\nurl = "sqlite:///queue.db"\n[gateway]\nkeys_file = "keys"\n'
    )
    environ = {"FOREBAY_DATABASE__URL": "sqlite:///data/x.db"}

    settings = load(Path("etc/f.toml"), environ=environ, cwd=folder).settings

    assert settings.broker.url is not None
    assert settings.broker.url.get_secret_value() == f"sqlite:///{folder}/etc/queue.db"
    assert settings.gateway.keys_file == folder / "etc" / "keys"
    assert settings.database.url is not None
    assert settings.database.url.get_secret_value() == f"sqlite:///{folder}/data/x.db"


def test_a_secret_file_sets_the_value_it_holds(folder: Path) -> None:
    (folder / "url").write_text("postgresql://forebay:pa55@db/forebay\n")
    got = loaded(folder, environ={"FOREBAY_DATABASE__URL_FILE": str(folder / "url")})

    assert got.settings.database.url is not None
    assert got.settings.database.url.get_secret_value() == "postgresql://forebay:pa55@db/forebay"
    assert got.provenance["database.url"] == f"file {folder}/url (FOREBAY_DATABASE__URL_FILE)"


def test_a_setting_called_file_is_not_a_secret_file(folder: Path) -> None:
    got = loaded(folder, environ={"FOREBAY_GATEWAY__KEYS_FILE": "keys.json"})
    assert got.settings.gateway.keys_file == folder / "keys.json"


def test_a_secret_file_that_cannot_be_read_is_named(folder: Path) -> None:
    text = refused(folder, environ={"FOREBAY_DATABASE__URL_FILE": "/nowhere/url"})
    assert text == "FOREBAY_DATABASE__URL_FILE=/nowhere/url: cannot be read: No such file or directory"


# ---- queues


@pytest.mark.parametrize("toml", ['queue_names = "orders, clicks"', 'queue_names = ["orders", "clicks"]'])
def test_queue_names_may_be_one_text_or_a_list(folder: Path, toml: str) -> None:
    assert list(loaded(folder, toml).settings.queues) == ["orders", "clicks"]


def test_queue_defaults_reach_every_queue_and_lose_against_its_own_table(folder: Path) -> None:
    settings = loaded(
        folder,
        'queue_names = "clicks"\n'
        "[queue_defaults]\nbatch_size = 7\nretry = {max_attempts = 3, cap = '1m'}\n"
        "[queues.orders.retry]\nmax_attempts = 9\n",
    ).settings

    assert (settings.queue("clicks").batch_size, settings.queue("clicks").retry.max_attempts) == (7, 3)
    assert (settings.queue("orders").retry.max_attempts, settings.queue("orders").retry.cap) == (9, 60.0)
    assert settings.queue("never-named").batch_size == 7


def test_a_variable_reaches_one_queue_with_a_hyphen_in_its_name(folder: Path) -> None:
    settings = loaded(folder, environ={"FOREBAY_QUEUES__BIG_ORDERS__RETRY__MAX_ATTEMPTS": "4"}).settings
    assert settings.queue("big-orders").retry.max_attempts == 4


def test_a_handler_implies_the_python_sink(folder: Path) -> None:
    settings = loaded(folder, '[queues.orders]\nhandler = "shop.orders:handle"').settings
    assert settings.queue("orders").sink == "python"


def test_a_queue_with_another_sink_drops_the_default_handler(folder: Path) -> None:
    settings = loaded(
        folder, '[queue_defaults]\nhandler = "a:b"\n[queues.raw]\nsink = "database"\n[queues.cooked]\n'
    ).settings
    assert (settings.queue("raw").sink, settings.queue("raw").handler) == ("database", None)
    assert (settings.queue("cooked").sink, settings.queue("cooked").handler) == ("python", "a:b")


def test_a_handler_beside_another_sink_is_refused(folder: Path) -> None:
    text = refused(folder, '[queues.orders]\nsink = "database"\nhandler = "a:b"')
    assert "a handler needs sink" in text


@pytest.mark.parametrize("handler", ["shop.orders", "shop.orders:", "shop orders:handle", ":handle"])
def test_a_handler_that_is_not_module_and_function_is_refused(folder: Path, handler: str) -> None:
    assert "package.module:function" in refused(folder, f'[queues.orders]\nhandler = "{handler}"')


def test_the_python_sink_without_a_handler_is_refused(folder: Path) -> None:
    assert "needs a handler" in refused(folder, '[queues.orders]\nsink = "python"')


@pytest.mark.parametrize("name", ["Orders", "or_ders", "or.ders", "-x", "a" * 64])
def test_a_queue_name_outside_the_rule_is_refused(folder: Path, name: str) -> None:
    assert "is not allowed" in refused(folder, f'queue_names = "{name}"')
    assert "is not allowed" in refused(folder, f'[queues."{name}"]\nbatch_size = 1')


# ---- unknown names and wrong values


@pytest.mark.parametrize(
    ("environ", "meant"),
    [
        ("FOREBAY_GATWAY__PORT", "FOREBAY_GATEWAY__PORT"),
        ("FOREBAY_GATEWAY_PORT", "FOREBAY_GATEWAY__PORT"),
        ("FOREBAY_GATEWAY__PROT", "FOREBAY_GATEWAY__PORT"),
        ("FOREBAY_DATABASE_URL", "FOREBAY_DATABASE__URL"),
        ("FOREBAY_BROKER__SQLITE__LEASES", "FOREBAY_BROKER__SQLITE__LEASE"),
        ("FOREBAY_QUEUES__ORDERS__RETRY__MAX_ATTEMPT", "FOREBAY_QUEUES__ORDERS__RETRY__MAX_ATTEMPTS"),
        ("FOREBAY_QUEUE_NAME", "FOREBAY_QUEUE_NAMES"),
    ],
)
def test_an_unknown_variable_is_refused_with_what_was_meant(folder: Path, environ: str, meant: str) -> None:
    text = refused(folder, environ={environ: "x"})
    assert text == f"unknown setting environment {environ}; did you mean {meant}?".replace("environment ", "")


@pytest.mark.parametrize(
    ("toml", "place", "meant"),
    [
        ("[gatway]\nport = 1", "2:1", "gateway.port"),
        ("[gateway]\nprot = 1", "2:1", "gateway.port"),
        ("port = 1", "1:1", "gateway.port or admin.port"),
        (
            "[queues.orders]\n[queues.orders.retry]\nmax_atempts = 1",
            "3:1",
            "queues.orders.retry.max_attempts",
        ),
        ("[databse]", "1:2", "database"),
    ],
)
def test_an_unknown_key_is_refused_with_its_place(folder: Path, toml: str, place: str, meant: str) -> None:
    text = refused(folder, toml)
    assert text.startswith(f"unknown setting {folder}/forebay.toml:{place}: ")
    assert text.endswith(f"did you mean {meant}?")


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    text = refused(folder, '[gateway]\nport = "eighty"\nworkers = 0\n')
    assert text.splitlines()[0] == "2 settings are wrong:"
    assert f"  {folder}/forebay.toml:2:1: gateway.port must be a whole number, not 'eighty'; for" in text
    assert "; for example: gateway.port = 8080" in text
    assert "gateway.workers must be at least 1, not 0" in text


def test_a_wrong_duration_and_a_wrong_choice_show_how_it_is_written(folder: Path) -> None:
    assert '"15m"' in refused(folder, '[queues.orders.retry]\ncap = "soon"')
    assert "must be 'none' or 'key', not 'fifo'" in refused(folder, '[queues.orders]\norder = "fifo"')


def test_settings_that_contradict_each_other_name_the_place_of_one(folder: Path) -> None:
    text = refused(folder, '[gateway]\nmax_in_flight_bytes = "1kB"\n')
    assert text.startswith(f"{folder}/forebay.toml:2:1: gateway: max_in_flight_bytes is 1000")


def test_a_table_given_as_a_value_is_refused(folder: Path) -> None:
    assert "FOREBAY_GATEWAY is a table of settings" in refused(folder, environ={"FOREBAY_GATEWAY": "x"})


def test_a_whole_table_may_come_as_json_in_a_variable(folder: Path) -> None:
    got = loaded(folder, environ={"FOREBAY_QUEUES": '{"orders": {"retry": {"max_attempts": 2}}}'})
    assert got.settings.queue("orders").retry.max_attempts == 2


def test_what_kubernetes_sets_for_a_service_called_forebay_is_ignored(folder: Path) -> None:
    links = {
        "FOREBAY_SERVICE_HOST": "10.0.0.1",
        "FOREBAY_SERVICE_PORT_HTTP": "80",
        "FOREBAY_PORT": "tcp://10.0.0.1:80",
        "FOREBAY_PORT_80_TCP_ADDR": "10.0.0.1",
        "FOREBAY_GATEWAY_PORT": "tcp://10.0.0.1:80",
        "FOREBAY_GATEWAY_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    }
    assert loaded(folder, environ=links).settings == Settings()


# ---- brokers to drain


def drained(found: Loaded) -> list[str]:
    return [url.get_secret_value() for url in found.settings.broker.drain]


def test_only_a_comma_before_a_scheme_separates_the_brokers_to_drain(folder: Path) -> None:
    urls = "amqp://u:p@one:5672,two:5672/vhost, kafka://one:9092,two:9092,sqlite:///old.db"

    found = loaded(folder, environ={"FOREBAY_BROKER__DRAIN": urls})

    assert drained(found) == [
        "amqp://u:p@one:5672,two:5672/vhost",
        "kafka://one:9092,two:9092",
        f"sqlite:///{folder}/old.db",
    ]


def test_a_secret_file_has_a_broker_to_drain_per_line(folder: Path) -> None:
    (folder / "drain").write_text("amqp://u:p@one,two/v\nkafka://three\n")

    found = loaded(folder, environ={"FOREBAY_BROKER__DRAIN_FILE": str(folder / "drain")})

    assert drained(found) == ["amqp://u:p@one,two/v", "kafka://three"]


def test_a_file_lists_the_brokers_to_drain(folder: Path) -> None:
    found = loaded(folder, '[broker]\ndrain = ["sqlite:///old.db", "kafka://one,two"]\n')

    assert drained(found) == [f"sqlite:///{folder}/old.db", "kafka://one,two"]


def test_the_tables_of_the_drivers_apply_to_a_broker_to_drain_too(folder: Path) -> None:
    settings = loaded(
        folder, '[broker]\nurl = "kafka://new"\ndrain = ["amqp://old"]\nrabbitmq.prefix = "shop."\n'
    ).settings

    (old,) = settings.broker.old()

    assert old.url is not None
    assert (old.url.get_secret_value(), old.rabbitmq.prefix, old.drain) == ("amqp://old", "shop.", ())


def test_the_broker_in_use_cannot_be_drained(folder: Path) -> None:
    text = refused(folder, '[broker]\nurl = "kafka://a"\ndrain = ["kafka://b", "kafka://a"]\n')

    assert "drain is for the old broker, url for the new one" in text


@pytest.mark.parametrize("value", ['["amqp://u:pa55@h", 5]', '[["amqp://u:pa55@h"]]'])
def test_a_broker_to_drain_that_is_wrong_is_refused_without_its_password(folder: Path, value: str) -> None:
    text = refused(folder, f"[broker]\ndrain = {value}\n")

    assert "broker.drain" in text
    assert "pa55" not in text


# ---- secrets


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://u:pa55@db:5432/x?sslmode=require", "postgresql://u:***@db:5432/x?sslmode=require"),
        ("postgresql://u@db/x", "postgresql://u@db/x"),
        ("postgresql://u:p@ss@db/x", "postgresql://u:***@db/x"),
        ("postgresql://u:p/ss@db/x", "postgresql://***"),
        ("postgresql://u:p@s/s@db/x", "postgresql://***"),
        ("postgresql://db/x?user=u&password=pa55&a=b", "postgresql://db/x?user=u&password=***&a=b"),
        ("sqlite:////var/x.db", "sqlite:////var/x.db"),
        ("pa55", "***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_no_traceback_quotes_a_url_of_the_wrong_type(folder: Path) -> None:
    (folder / "forebay.toml").write_text('[database]\nurl = ["postgresql://u:pa55@db/x"]\n')
    with pytest.raises(SettingsError, match=r"forebay\.toml:2:1: database\.url") as caught:
        loaded(folder)

    assert "pa55" not in "".join(traceback.format_exception(caught.value))


@given(st.from_regex(r"[A-Z0-9]{12}", fullmatch=True))
def test_no_error_repeats_a_wrong_url(password: str) -> None:
    """A list where a URL should be is a mistake that must not print the URL."""
    environ = {"FOREBAY_DATABASE__URL": f'["postgresql://u:{password}@db/x"]'}
    with pytest.raises(SettingsError) as error:
        load(environ=environ, cwd=Path("/nonexistent"))
    assert password not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"), [("DATABASE__POOL_SIZE", "0"), ("CONSUMER__HEALTH_PORT", "99999")]
)
def test_numbers_that_would_mean_something_else_below_are_refused(
    folder: Path, name: str, value: str
) -> None:
    """An empty pool has no limit to SQLAlchemy, and a port beyond the last begins again at 0."""
    with pytest.raises(SettingsError, match=f"FOREBAY_{name}.*, not '{value}'"):
        loaded(folder, environ={f"FOREBAY_{name}": value})
