"""`forebay api-keys create`, `list` and `revoke` on a file."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.keys_file import read
from tests.unit.cli.installation import Installation


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "etc" / "keys.json"
    monkeypatch.setenv("FOREBAY_GATEWAY__KEYS_FILE", str(path))
    return path


def test_a_key_is_printed_once_and_only_its_hash_is_kept(site: Installation, file: Path) -> None:
    made = site.run("api-keys", "create", "shop", "--queues", "orders,web-*", "--rate", "200")

    key = made.out.strip()
    assert (made.code, key[:4], len(key)) == (0, "fbk_", 68)
    assert key not in file.read_text() + made.err
    [kept] = read(file).keys
    assert kept.sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert (kept.queues, kept.rate, kept.whose) == (("orders", "web-*"), 200.0, "shop")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_changed_file_keeps_its_mode_and_what_was_written_by_hand(site: Installation, file: Path) -> None:
    site.run("api-keys", "create", "shop", "--burst", "5")
    file.chmod(0o640)
    site.run("api-keys", "create", "web", "--expires", "1d")

    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [key.name for key in read(file).keys] == ["shop", "web"]
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_the_list_shows_limits_and_no_key(site: Installation, file: Path) -> None:
    key = site.run("api-keys", "create", "shop", "--rate", "5", "--bytes-per-second", "2MiB").out.strip()

    table = site.run("api-keys", "list")
    [entry] = site.run("api-keys", "list", "--json").json

    assert "5/s, 2.0 MiB/s" in table.out
    assert (entry["name"], entry["tenant"], entry["queues"]) == ("shop", "shop", ["*"])
    assert not {key, hashlib.sha256(key.encode()).hexdigest()} & set(map(str, entry.values()))


def test_a_name_is_taken_once_and_the_error_says_how_to_replace_a_key(site: Installation, file: Path) -> None:
    site.run("api-keys", "create", "shop")
    again = site.run("api-keys", "create", "shop")

    assert again.code == 5
    assert "--tenant shop" in again.err


def test_a_revoked_key_is_gone_and_an_unknown_one_is_not_found(site: Installation, file: Path) -> None:
    site.run("api-keys", "create", "shop")

    assert site.run("api-keys", "revoke", "shop").code == 0
    assert site.run("api-keys", "revoke", "shop").code == 4
    assert read(file).keys == ()


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--queues", "Orders", "queues"),
        ("--queues", "", "queues"),
        ("--rate", "0", "rate"),
        ("--in-flight-share", "1.5", "in_flight_share"),
        ("--tenant", "a b", "tenant"),
    ],
)
def test_a_limit_that_cannot_be_is_named_and_no_file_is_made(
    site: Installation, file: Path, option: str, value: str, named: str
) -> None:
    done = site.run("api-keys", "create", "shop", option, value)

    assert done.code == 2
    assert named in done.err
    assert not file.exists()


def test_what_a_name_may_hold_is_said_in_words_and_once(site: Installation, file: Path) -> None:
    name = site.run("api-keys", "create", "Shop")
    queues = site.run("api-keys", "create", "shop", "--queues", "Orders")

    assert "lower-case letters" in name.err
    assert queues.err.count("queues: ") == 1
    assert "a queue name or pattern is needed" in queues.err


def test_without_a_file_the_error_shows_three_ways_to_name_one(site: Installation) -> None:
    done = site.run("api-keys", "list")

    assert done.code == 2
    assert "FOREBAY_GATEWAY__KEYS_FILE=" in done.err


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    script = (
        "import sys; from pathlib import Path; from gateway.keys_file import changing, make\n"
        "for n in range(10):\n"
        "    with changing(Path(sys.argv[1])) as keys:\n"
        "        keys.append(make(f'{sys.argv[2]}-{n}', queues=['*'])[1])\n"
    )
    makers = [subprocess.Popen([sys.executable, "-c", script, str(file), name]) for name in ("a", "b")]

    assert [maker.wait(60) for maker in makers] == [0, 0]
    assert len(read(file).keys) == 20
