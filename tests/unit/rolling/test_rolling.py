from __future__ import annotations

from pathlib import Path

import pytest
from forebay_rolling.config import Config
from forebay_rolling.errors import Busy, CheckFailed, RollbackFailed, UsageError
from forebay_rolling.rolling import ROLES, Roll
from forebay_rolling.state import Store

from tests.unit.rolling.scripted import Host, Killed

N = 2


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def roll(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roll:
    monkeypatch.setattr("os.fsync", lambda _: None)  # hundreds of rolls, and no power cut
    config = Config(kind="processes", directory=tmp_path, gateways=N, consumers=N)
    return Roll(config, host, Store(tmp_path))


def all_run(host: Host, version: str) -> bool:
    expected = [version] * N
    return host.versions("gateway") == expected == host.versions("consumer") and len(host.running) == 2 * N


def test_a_first_roll_starts_everything(host: Host, roll: Roll) -> None:
    roll.roll("1")

    assert all_run(host, "1")
    assert host.migrated == ["1"]


def test_rotation_never_falls_below_the_number_of_gateways(host: Host, roll: Roll) -> None:
    roll.roll("1")
    host.watch()

    roll.roll("2")

    assert all_run(host, "2")
    assert host.least == N
    assert host.most_running == N + 1


def test_without_a_surge_there_is_never_one_more(host: Host, roll: Roll) -> None:
    roll.roll("1")
    host.most_running = 0
    host.watch()

    roll.roll("2", surge=0)

    assert all_run(host, "2")
    assert host.least == N - 1
    assert host.most_running == N


def test_a_version_that_fails_is_stopped_at_its_first_instance(host: Host, roll: Roll) -> None:
    roll.roll("1")
    before = dict(host.running)
    host.broken.add("2")
    host.watch()

    with pytest.raises(CheckFailed, match="was not ready within 60 s; all instances run 1 again"):
        roll.roll("2")

    assert host.running == before
    assert host.least == N


@pytest.mark.parametrize("surge", [0, 1])
def test_what_was_replaced_already_goes_back(host: Host, roll: Roll, surge: int) -> None:
    roll.roll("1")
    host.broken_in_rotation.add("2")  # so its consumers are in place when the first gateway fails

    with pytest.raises(CheckFailed, match="all instances run 1 again"):
        roll.roll("2", surge=surge)

    assert all_run(host, "1")


def test_when_the_old_version_fails_too_it_is_said(host: Host, roll: Roll) -> None:
    roll.roll("1")
    host.broken_in_rotation.add("2")
    host.broken.add("1")

    with pytest.raises(RollbackFailed, match="going back to 1 failed, too"):
        roll.roll("2")

    assert len(host.inside) == N


def test_in_an_outage_nothing_that_runs_is_touched(host: Host, roll: Roll) -> None:
    """Then no version is ready, the running one neither; that is no reason to replace it by itself."""
    roll.roll("1")
    before = dict(host.running)
    host.broken |= {"1", "2"}
    host.broken_in_rotation |= {"1", "2"}

    with pytest.raises(CheckFailed, match="all instances run 1 again"):
        roll.roll("2")

    assert host.running == before


@pytest.mark.parametrize("end", ["the same roll", "rollback"])
@pytest.mark.parametrize("surge", [0, 1])
def test_wherever_a_deployer_is_killed_a_second_one_goes_on(
    host: Host, roll: Roll, surge: int, end: str
) -> None:
    roll.roll("1")
    began = host.steps
    roll.roll("2")
    for at in range(1, host.steps - began + 1):
        roll.roll("1")
        host.steps, host.kill_at = 0, at
        host.watch()
        try:
            roll.roll("2", surge=surge)
        except Killed:
            pass
        host.kill_at = None

        if end == "rollback":
            roll.rollback(surge=surge)
        else:
            roll.roll("2", surge=surge)

        assert all_run(host, "1" if end == "rollback" else "2"), f"killed at step {at}"
        assert host.running.keys() <= host.proven, f"killed at step {at}"
        assert (host.least or 0) >= N - 1 + surge, f"killed at step {at}"


def test_rollback_goes_to_the_version_before_and_never_forward_again(host: Host, roll: Roll) -> None:
    """It may be said twice, as by a build whose stage is run again."""
    roll.roll("1")
    roll.roll("2")

    roll.rollback()
    assert all_run(host, "1")

    with pytest.raises(UsageError, match="no version to go back to"):
        roll.rollback()
    assert all_run(host, "1")

    roll.roll("2")
    roll.rollback()
    assert all_run(host, "1")


def test_one_does_not_go_back_to_what_was_broken_off(host: Host, roll: Roll) -> None:
    """`rollback` may be said once too often, by somebody who is not sure that it was done."""
    roll.roll("1")
    roll.roll("2")
    host.steps, host.kill_at = 0, 5
    with pytest.raises(Killed):
        roll.roll("3")
    host.kill_at = None
    roll.rollback()

    roll.rollback()

    assert all_run(host, "1")


def test_a_roll_to_what_runs_that_fails_leaves_nothing_broken_off(host: Host, roll: Roll) -> None:
    roll.roll("1")
    roll.roll("2")
    del host.running[host.inside[0].name]
    host.broken.add("2")
    with pytest.raises(CheckFailed, match="what ran still runs"):
        roll.roll("2")

    roll.rollback()

    assert all_run(host, "1")


def test_there_must_be_something_to_go_back_to(roll: Roll) -> None:
    roll.roll("1")

    with pytest.raises(UsageError, match="no version to go back to"):
        roll.rollback()


def test_a_version_that_is_not_there_touches_nothing(host: Host, roll: Roll) -> None:
    roll.roll("1")
    steps = host.steps

    with pytest.raises(UsageError, match="no version missing"):
        roll.roll("missing")

    assert host.steps == steps


def test_a_dead_instance_is_replaced_first(host: Host, roll: Roll) -> None:
    roll.roll("1")
    last = host.inside[-1]
    del host.running[last.name]

    roll.start()

    assert all_run(host, "1")
    assert last not in host.inside


def test_a_first_roll_that_fails_leaves_nothing(host: Host, roll: Roll) -> None:
    host.broken.add("1")

    with pytest.raises(CheckFailed, match="nothing of it runs now"):
        roll.roll("1")

    assert not host.running
    assert not host.inside


def test_what_runs_before_the_first_roll_is_gone_back_to(host: Host, roll: Roll) -> None:
    """A stack that was brought up by `docker compose up`."""
    for role in ROLES:
        for _ in range(N):
            host.proven.add(host.start(role, "0").name)
    host.inside = host.instances("gateway")
    host.watch()
    host.broken_in_rotation.add("1")

    with pytest.raises(CheckFailed, match="all instances run 0 again"):
        roll.roll("1")

    assert all_run(host, "0")
    assert host.least == N


def test_smoke_names_all_that_is_wrong(host: Host, roll: Roll) -> None:
    roll.roll("1")
    roll.smoke()
    host.broken.add("1")

    with pytest.raises(CheckFailed) as failure:
        roll.smoke()

    assert str(failure.value).count("was not ready") == 2 * N


def test_two_deployers_at_once_are_refused(tmp_path: Path) -> None:
    with Store(tmp_path).alone(), pytest.raises(Busy, match="another deployer"), Store(tmp_path).alone():
        pass
