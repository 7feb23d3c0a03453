from __future__ import annotations

import pytest
from forebay_rolling.errors import CheckFailed, RollbackFailed, UsageError
from forebay_rolling.hosts import Hosts


class Scripted:
    """Answers each host's commands with the exit codes that a test gives it."""

    def __init__(self, codes: dict[tuple[str, str], int]) -> None:
        self._codes = codes
        self.said: list[tuple[str, str]] = []

    def __call__(self, command: list[str]) -> int:
        assert command[0] == "ssh"
        assert command[-3] == "--"
        self.said.append((command[-2], command[-1]))
        return self._codes.get(self.said[-1], 0)

    def hosts(self) -> Hosts:
        return Hosts(["forebay@a", "b:2222", "c"], identity=None, known_hosts=None, run=self)


def test_hosts_are_rolled_in_their_order() -> None:
    ssh = Scripted({})

    ssh.hosts().roll("2")

    assert ssh.said == [("a", "to 2"), ("b", "to 2"), ("c", "to 2")]


def test_when_one_fails_those_before_it_go_back() -> None:
    ssh = Scripted({("c", "to 2"): 1})

    with pytest.raises(CheckFailed, match="c failed; all hosts run what they ran before"):
        ssh.hosts().roll("2")

    assert ssh.said[3:] == [("b", "rollback"), ("a", "rollback")]


@pytest.mark.parametrize(
    ("codes", "stuck"),
    [
        ({("b", "to 2"): 3}, "b:2222 went back"),
        ({("b", "to 2"): 255}, "b:2222 went back"),  # the connection broke off
        ({("b", "to 2"): 1, ("a", "rollback"): 3}, "forebay@a went back"),
    ],
)
def test_what_may_not_have_gone_back_is_named(codes: dict[tuple[str, str], int], stuck: str) -> None:
    with pytest.raises(RollbackFailed, match=f"not sure that {stuck}"):
        Scripted(codes).hosts().roll("2")


def test_a_version_that_the_first_host_does_not_have_touches_nothing() -> None:
    ssh = Scripted({("a", "to 2"): 2})

    with pytest.raises(UsageError, match="nothing was touched"):
        ssh.hosts().roll("2")

    assert len(ssh.said) == 1


@pytest.mark.parametrize("host", ["-oProxyCommand=id", "a b", "a;id", "", "x@-a", "a:port"])
def test_a_host_is_never_an_option_or_a_command(host: str) -> None:
    with pytest.raises(UsageError, match="is no host"):
        Hosts([host], identity=None, known_hosts=None)


def test_all_hosts_are_asked_and_those_that_fail_are_named() -> None:
    ssh = Scripted({("a", "smoke"): 1, ("c", "smoke"): 1})

    with pytest.raises(CheckFailed, match="`smoke` failed on forebay@a, c"):
        ssh.hosts().each("smoke")

    assert len(ssh.said) == 3
