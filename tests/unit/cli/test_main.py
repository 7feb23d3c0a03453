"""The command line as a whole: help, unknown commands, exit codes, what goes where."""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path

import pytest

from forebay.cli import main as cli
from forebay.cli._exit import CommandError, ExitCode, exit_code
from forebay.errors import BrokerUnavailable, ForebayError, QueueNotFound, SettingsError, SinkUnavailable
from forebay.storage.schema import SchemaMismatch

from .processes import forebay

HEAVY = ("pydantic_settings", "fastapi", "sqlalchemy", "uvicorn", "aiohttp", "rich", "structlog", "asyncio")


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    done = forebay("--help", cwd=tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})

    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "forebay.cli.main" in imported or "typer" in imported
    assert not imported & set(HEAVY)


def test_help_answers_within_300_ms(tmp_path: Path) -> None:
    """Counted in processor seconds: on a machine busy with other tests the clock says little."""
    forebay("--help", cwd=tmp_path)  # the first one may have to compile

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert forebay("--help", cwd=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(5)) < 0.3


def test_help_begins_with_examples_and_names_every_command(tmp_path: Path) -> None:
    text = forebay("--help", cwd=tmp_path).stdout

    assert text.index("Examples:") < text.index("Run:")
    for name in cli.ENTRIES:
        assert f"\n  {name.split(' ')[0]} " in text


@pytest.mark.parametrize("name", cli.ENTRIES)
def test_every_command_is_there_and_begins_its_help_with_a_sentence_and_examples(name: str) -> None:
    doc = cli.entry_point(name).__doc__ or ""
    first, _, rest = doc.strip().partition("\n")
    assert first.endswith((".", ":"))
    assert "Examples:\n" in rest


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = forebay("--version", cwd=tmp_path)
    assert done.stdout.startswith("forebay 0.")
    assert sys.version.split()[0] in done.stdout


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["gatway"], "did you mean 'gateway'?"),
        (["config", "shw"], "did you mean 'show'?"),
        (["zzz"], "listed by --help"),
        (["dev", "--prot", "1"], "--port"),
        (["dev", "--port", "eighty"], "--port"),
    ],
)
def test_a_slip_exits_with_2_and_a_hint(args: list[str], hint: str, tmp_path: Path) -> None:
    done = forebay(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr


@pytest.mark.parametrize(
    ("args", "next_step"),
    [
        (("send", "orders", "--file", "nosuch"), "nosuch: No such file or directory; name a file"),
        (("send", "orders", "--ndjson", "nosuch"), "nosuch: No such file or directory; name a file"),
        (("send", "orders", "x", "--record", "nosuch/r"), "nosuch/r: No such file or directory; --record"),
        (("config", "init", "nosuch/x.toml"), "nosuch/x.toml: No such file or directory; make its folder"),
        (
            ("config", "check", "--config", "x" * 300),
            "cannot be read: File name too long; run the command as",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value)[:40],
)
def test_a_file_that_cannot_be_used_exits_with_2_and_the_next_step(
    args: tuple[str, ...], next_step: str, tmp_path: Path
) -> None:
    done = forebay(*args, cwd=tmp_path)

    assert done.returncode == ExitCode.USAGE
    assert next_step in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("x"), 2),
        (QueueNotFound("orders"), 4),
        (BrokerUnavailable("x"), 6),
        (SinkUnavailable("x"), 7),
        (SchemaMismatch("x"), 3),
        (CommandError("x", ExitCode.PARTLY_FAILED), 8),
        (ForebayError("x"), 1),
    ],
)
def test_each_error_has_its_exit_code(error: ForebayError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize("command", ["gateway", "consume", "migrate"])
def test_without_urls_a_process_exits_with_2_and_three_lines_to_choose_from(
    command: str, tmp_path: Path
) -> None:
    done = forebay(command, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    section = "database" if command == "migrate" else "broker"
    for example in (f"export FOREBAY_{section.upper()}__URL=", f"--{section}-url ", f'{section}.url = "'):
        assert example in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_gateway_needs_a_queue(tmp_path: Path) -> None:
    done = forebay("gateway", "--broker-url", "sqlite:///q.db", cwd=tmp_path)
    assert done.returncode == 2
    assert "FOREBAY_QUEUE_NAMES=orders" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_setting_ends_every_command_with_2_and_one_line(tmp_path: Path) -> None:
    done = forebay("gateway", cwd=tmp_path, env={"FOREBAY_GATWAY__PORT": "1"})
    assert done.returncode == 2
    assert done.stderr == (
        "error: unknown setting FOREBAY_GATWAY__PORT; did you mean FOREBAY_GATEWAY__PORT?\n"
    )


# ---- config


def test_config_init_writes_a_file_that_changes_nothing(tmp_path: Path) -> None:
    before = json.loads(forebay("config", "show", "--json", cwd=tmp_path).stdout)
    assert forebay("config", "init", cwd=tmp_path).returncode == 0

    assert forebay("config", "check", cwd=tmp_path).returncode == 0
    after = json.loads(forebay("config", "show", "--json", cwd=tmp_path).stdout)
    assert after == before


def test_every_line_of_the_starter_file_may_be_uncommented(tmp_path: Path) -> None:
    forebay("config", "init", cwd=tmp_path)
    file = tmp_path / "forebay.toml"
    lines = file.read_text().splitlines()
    kept = [line[1:] if _is_example(line) else line for line in lines]
    assert kept != lines
    file.write_text("\n".join(kept))

    done = forebay("config", "check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def _is_example(line: str) -> bool:
    """A commented setting with a value; those without a default show an empty text."""
    return line.startswith("#") and not line.startswith("# ") and not line.endswith('""')


def test_durations_and_sizes_are_shown_with_their_unit(tmp_path: Path) -> None:
    env = {"FOREBAY_QUEUE_DEFAULTS__MAX_WAIT": "0.25", "FOREBAY_GATEWAY__MAX_BODY_BYTES": "65536"}
    shown = forebay("config", "show", cwd=tmp_path, env=env).stdout

    for name, value in (
        ("queue_defaults.max_wait", '"250ms"'),
        ("queue_defaults.retry.max_age", '"1d"'),
        ("database.lock_timeout", '"5s"'),
        ("gateway.drain_delay", '"0s"'),
        ("gateway.max_body_bytes", "65536"),
        ("broker.sqlite.ballast_bytes", '"64MiB"'),
    ):
        assert re.search(rf"^{re.escape(name)} +{value} ", shown, re.MULTILINE), name


def test_config_init_replaces_nothing_unless_told(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text("# mine\n")
    assert forebay("config", "init", cwd=tmp_path).returncode == ExitCode.CONFLICT
    assert (tmp_path / "forebay.toml").read_text() == "# mine\n"
    assert forebay("config", "init", "--force", cwd=tmp_path).returncode == 0


def test_config_show_masks_credentials_and_says_where_values_come_from(tmp_path: Path) -> None:
    env = {"FOREBAY_DATABASE__URL": "postgresql://u:pa55@db/x"}
    done = forebay("config", "show", "--json", cwd=tmp_path, env=env)

    shown = json.loads(done.stdout)
    assert shown["database.url"] == {
        "value": "postgresql://u:***@db/x",
        "from": "environment FOREBAY_DATABASE__URL",
    }
    assert "pa55" not in done.stdout + done.stderr


def test_config_show_shows_nothing_of_a_password_even_if_it_looks_like_a_url(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("tell://nobody\n")
    env = {"FOREBAY_BROKER__KAFKA__PASSWORD_FILE": str(tmp_path / "password")}
    done = forebay("config", "show", "--json", cwd=tmp_path, env=env)

    assert json.loads(done.stdout)["broker.kafka.password"]["value"] == "***"
    assert "nobody" not in done.stdout + done.stderr


def test_config_check_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text("[gateway]\nport = 'x'\n")
    done = forebay("config", "check", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/forebay.toml:2:1: gateway.port must be a whole number" in done.stderr


def test_config_check_says_the_same_in_json(tmp_path: Path) -> None:
    file = tmp_path / "forebay.toml"
    file.write_text("[queues.orders]\n")
    good = forebay("config", "check", "--json", cwd=tmp_path)
    file.write_text("[gateway]\nport = 'x'\n")
    bad = forebay("config", "check", "--json", cwd=tmp_path)

    assert json.loads(good.stdout) == {"verdict": "ok", "file": str(file), "queues": ["orders"]}
    assert json.loads(bad.stdout)["verdict"] == "fail"
    assert f"{file}:2:1: gateway.port must be" in json.loads(bad.stdout)["error"]
    assert (good.returncode, bad.returncode) == (0, 2)


def test_config_check_knows_which_sinks_are_installed(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text("[queues.orders]\nsink = 'databse'\n")
    done = forebay("config", "check", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "forebay.toml:2:1: queues.orders.sink 'databse' is not installed;"
        " there are broker, database, http, python" in done.stderr
    )


def test_the_reference_of_the_settings_is_current() -> None:
    from forebay.cli._settings_docs import reference

    written = Path(__file__).parents[3] / "docs" / "configuration.md"
    assert written.read_text(encoding="utf-8") == reference(), (
        "run `forebay config docs > docs/configuration.md`"
    )


# ---- doctor, explain


def test_doctor_without_anything_names_what_is_missing_and_exits_1(tmp_path: Path) -> None:
    done = forebay("doctor", "--json", cwd=tmp_path)

    report = json.loads(done.stdout)
    failed = {f["check"]: f["text"] for f in report["findings"] if f["verdict"] == "fail"}
    assert (done.returncode, report["verdict"]) == (1, "fail")
    assert failed == {"broker": "broker.url is not set", "database": "database.url is not set"}
    assert list(tmp_path.iterdir()) == []


def test_doctor_creates_neither_queue_nor_database(tmp_path: Path) -> None:
    env = {"FOREBAY_BROKER__URL": "sqlite:///q.db", "FOREBAY_DATABASE__URL": "sqlite:///d.db"}
    done = forebay("doctor", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "q.db" in done.stdout
    assert "d.db" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_database_file_that_is_none_is_named_by_doctor(tmp_path: Path) -> None:
    (tmp_path / "d.db").write_bytes(b"not a database at all" * 100)
    env = {"FOREBAY_DATABASE__URL": "sqlite:///d.db"}

    migrating = forebay("migrate", cwd=tmp_path, env=env)
    doctor = forebay("doctor", cwd=tmp_path, env=env)

    assert migrating.returncode == ExitCode.DATABASE_UNREACHABLE
    assert "the database cannot be used: " in migrating.stderr
    assert "forebay doctor" in migrating.stderr
    assert f"sqlite:///{tmp_path}/d.db: " in doctor.stdout


def test_doctor_finds_a_handler_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text('[queues.orders]\nhandler = "nosuch.module:handle"\n')
    report = json.loads(forebay("doctor", "--json", cwd=tmp_path).stdout)
    (finding,) = [f for f in report["findings"] if f["check"] == "handler orders"]
    assert finding["verdict"] == "fail"
    assert "nosuch" in finding["text"]


def test_explain_prints_the_schedule_of_the_queue(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text(
        "[queues.orders.retry]\nmax_attempts = 3\nbase = 2\n[queues.clicks]\n"
    )
    done = forebay("explain", "orders", cwd=tmp_path)
    schedule = json.loads(forebay("explain", "orders", "--json", cwd=tmp_path).stdout)

    assert "is tried 3 times" in done.stdout
    assert schedule["settings"]["schema"]["mode"] == "reject"
    assert [step["longest_delay"] for step in schedule["retry_schedule"]] == [2.0, 4.0]
    assert schedule["longest_life"] == 6.0


def test_explain_says_what_bodies_are_checked_against(tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text('{"type": "object"}')
    (tmp_path / "forebay.toml").write_text('[queues.orders.schema]\nfile = "order.json"\n')
    done = forebay("explain", "orders", cwd=tmp_path)
    assert f"does not fit {tmp_path / 'order.json'} is answered 422" in done.stdout


def test_explain_says_who_is_refused_while_the_broker_is_away(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text(
        '[gateway]\njournal = "journal"\n[queues.orders]\norder = "key"\n[queues.clicks]\n'
    )
    assert "queues.orders.journal = true" in forebay("explain", "orders", cwd=tmp_path).stdout
    assert "keeps them in its journal" in forebay("explain", "clicks", cwd=tmp_path).stdout


def test_explaining_a_queue_that_is_nowhere_exits_with_4(tmp_path: Path) -> None:
    done = forebay("explain", "order", cwd=tmp_path, env={"FOREBAY_QUEUE_NAMES": "orders"})
    assert done.returncode == ExitCode.NOT_FOUND
    assert "did you mean 'orders'?" in done.stderr


def test_a_name_that_no_queue_can_have_is_not_explained(tmp_path: Path) -> None:
    done = forebay("explain", "Orders", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
