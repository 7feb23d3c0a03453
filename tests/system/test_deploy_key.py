"""A real sshd that allows everything, and the deployer's key, which may do four things."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.needs import missing_server
from tests.servers.nginx import NginxNotInstalled
from tests.servers.postgres import free_port
from tests.servers.sshd import Sshd, SshdNotInstalled, make_key
from tests.system.harness import Site, until
from tests.system.releases import CHECKOUT
from tests.system.rolling_run import ROLL, Rolled

REMOTE = CHECKOUT / "deploy" / "rolling" / "remote"
HOST = "127.0.0.1"


@dataclass
class Deployer:
    """A host with version 1 running, and the key."""

    rolled: Rolled
    sshd: Sshd
    key: Path

    def ssh(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.sshd.ssh(self.key, *arguments, env=env)


@pytest.fixture(scope="module")
def deployer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployer]:
    folder = tmp_path_factory.mktemp("deploy-key")
    try:
        sshd = Sshd()
        rolled = Rolled(
            Site(folder, f"sqlite:///{folder}/forebay.db"), gateways=1, consumers=0, settle=0.0, closing=0.1
        )
    except (SshdNotInstalled, NginxNotInstalled) as missing:
        missing_server(str(missing))
    for version in ("1", "2"):
        rolled.releases.add_stand_in(version)
    key = make_key(folder / "deployer")
    sshd.authorize(key, f'command="{sys.executable} -Es {REMOTE} {rolled.config}",restrict')
    with sshd:
        rolled.must("to", "1")
        yield Deployer(rolled, sshd, key)
    rolled.close()


def test_the_deployers_key_rolls(deployer: Deployer) -> None:
    command = [
        sys.executable, str(ROLL), "--host", f"{deployer.sshd.user}@{HOST}:{deployer.sshd.port}",
        "--identity", str(deployer.key), "--known-hosts", str(deployer.sshd.known_hosts),
    ]  # fmt: skip

    def roll(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=120, check=False)

    done = [roll("to", "2"), roll("smoke"), roll("rollback"), roll("status")]

    assert [one.returncode for one in done] == [0, 0, 0, 0], [one.stderr for one in done]
    assert "all instances run 2" in done[0].stderr
    assert "current 1; previous none" in done[3].stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [HOST],
        [HOST, "bash"],
        [HOST, "id"],
        [HOST, "to 2; id"],
        [HOST, "to 2\nid"],
        [HOST, "to $(id)"],
        [HOST, "to ../../tmp/evil"],
        [HOST, "to --config=/tmp/evil 2"],
        [HOST, "FOREBAY_BROKER__URL=memory:// to 2"],
        [HOST, "stop"],
        [HOST, "scp -t /tmp"],
    ],
    ids=lambda arguments: " ".join(arguments[-2:]),
)
def test_anything_else_is_refused(deployer: Deployer, arguments: list[str]) -> None:
    done = deployer.ssh(*arguments)

    assert done.returncode == 2
    assert "remote: refused: " in done.stdout + done.stderr
    assert "to VERSION, rollback, status, smoke" in done.stdout + done.stderr
    assert "uid=" not in done.stdout


def test_no_terminal_is_given(deployer: Deployer) -> None:
    done = deployer.ssh("-tt", HOST, "status")

    assert "PTY allocation request failed" in done.stderr


def test_nothing_is_forwarded_to_the_host(deployer: Deployer) -> None:
    """-R: the server refuses it, and with that the client gives up."""
    done = deployer.ssh("-o", "ExitOnForwardFailure=yes", "-R", f"{free_port()}:{HOST}:1", HOST, "status")

    assert done.returncode == 255
    assert "remote port forwarding failed" in done.stderr


@pytest.mark.parametrize("dynamic", [False, True], ids=["-L", "-D"])
def test_nothing_is_forwarded_from_the_host(deployer: Deployer, dynamic: bool) -> None:
    """-W asks at once for what -L and -D ask for when somebody connects: a connection made by the server."""
    port = free_port()
    if not dynamic:
        done = deployer.ssh("-W", f"{HOST}:{deployer.rolled.nginx.port}", HOST)
        assert done.returncode == 255
        assert "administratively prohibited" in done.stderr
        return
    tunnel = subprocess.Popen(
        deployer.sshd.client(deployer.key, "-N", "-D", f"{HOST}:{port}", HOST),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:

        def asked() -> bool:
            through = ["curl", "-s", "--socks5", f"{HOST}:{port}", f"{deployer.rolled.nginx.url}/readyz"]
            done = subprocess.run(through, capture_output=True, timeout=30, check=False)
            assert done.returncode != 0
            return done.returncode == 97  # the proxy refused

        until(asked, what="the refusal")
    finally:
        tunnel.kill()
        assert tunnel.stderr is not None
        said = tunnel.stderr.read().decode()
        tunnel.stderr.close()
        tunnel.wait()
    assert "administratively prohibited" in said


def test_no_file_is_taken_or_given(deployer: Deployer) -> None:
    """The server has sftp; what this key starts instead is `remote`, and that refuses."""
    done = deployer.ssh("-s", HOST, "sftp")

    assert done.returncode == 2
    assert not done.stdout


def test_an_agent_is_not_forwarded(deployer: Deployer, tmp_path: Path) -> None:
    before = len(deployer.sshd.log)
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        until(socket.exists, what="the agent")
        done = deployer.ssh("-A", HOST, "status", SSH_AUTH_SOCK=str(socket))
    finally:
        agent.terminate()
        agent.wait(10)

    assert done.returncode == 0
    assert "agent forwarding disabled" in deployer.sshd.log[before:]


def test_no_display_is_forwarded(deployer: Deployer) -> None:
    before = len(deployer.sshd.log)

    done = deployer.ssh("-o", "ForwardX11=yes", "-o", "ForwardX11Trusted=yes", HOST, "status", DISPLAY=":0")

    assert done.returncode == 0
    # Without xauth the client does not even ask.
    asked = "X11 forwarding request failed" in done.stderr
    assert asked or "x11-req" not in deployer.sshd.log[before:]


def test_an_environment_that_the_client_sends_changes_nothing(deployer: Deployer, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for module in ("sitecustomize", "usercustomize", "forebay_rolling"):
        (tmp_path / f"{module}.py").write_text(f"open({str(marker)!r}, 'w')")

    sent = f"PYTHONPATH={tmp_path} PYTHONHOME=/nowhere FOREBAY_BROKER__URL=memory://"
    done = deployer.ssh("-o", f"SetEnv={sent}", HOST, "status")

    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_another_key_is_not_let_in(deployer: Deployer, tmp_path: Path) -> None:
    done = deployer.sshd.ssh(make_key(tmp_path / "other"), HOST, "status")

    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr
