"""scripts/ci: what the stages of the Jenkinsfile run, as somebody runs it by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.harness import Site

CI = Path(__file__).parents[2] / "scripts" / "ci"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The scripts beside a rolling tool that only says how it was called."""
    shutil.copytree(CI, tmp_path / "scripts" / "ci")
    roll = tmp_path / "deploy" / "rolling" / "roll"
    roll.parent.mkdir(parents=True)
    roll.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    roll.chmod(0o755)
    return tmp_path


def call(script: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FOREBAY_")}
    return subprocess.run([script, *args], env={**clean, **env}, capture_output=True, text=True, timeout=120)


def test_deploy_rolls_host_by_host_with_the_key_and_returns_the_tools_code(repository: Path) -> None:
    deploy = repository / "scripts" / "ci" / "deploy"
    env = {"ROLL_HOSTS": "forebay@a forebay@b", "DEPLOY_KEY": "/k e y", "VERSION": "1f2e3d4c5b6a"}

    done = call(deploy, **env)
    assert done.stdout == "--host forebay@a --host forebay@b --identity /k e y to 1f2e3d4c5b6a\n"
    assert done.returncode == 1

    back = call(deploy, "rollback", **env, DEPLOY_KNOWN_HOSTS="/hosts")
    assert back.stdout.endswith("--known-hosts /hosts rollback\n")


def test_deploy_without_hosts_says_what_to_set(repository: Path) -> None:
    done = call(repository / "scripts" / "ci" / "deploy", VERSION="1")

    assert done.returncode == 2
    assert "ROLL_HOSTS" in done.stderr


def test_the_registrys_password_does_not_outlive_the_push(repository: Path) -> None:
    """docker keeps what `login` was given, and the next build's tests run as the same user."""
    home, bin = repository / "home", repository / "bin"
    home.mkdir()
    bin.mkdir()
    (bin / "docker").write_text(
        "#!/bin/sh\nconfig=${DOCKER_CONFIG:-$HOME/.docker}\n"
        'case $1 in\nlogin) mkdir -p "$config" && cat >"$config/config.json" ;;\n'
        'push) cat "$config/config.json" ;;\nesac\n'
    )
    (bin / "docker").chmod(0o755)
    env = {"HOME": str(home), "TMPDIR": str(repository), "PATH": f"{bin}:{os.environ['PATH']}"}

    done = call(
        repository / "scripts" / "ci" / "image", **env,
        VERSION="1", PUSH="true", REGISTRY_USER="ci", REGISTRY_PASSWORD="s3cret",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "s3cret" in done.stdout, "it was logged in when it pushed"
    assert not list(repository.rglob("config.json"))


@pytest.mark.system
def test_the_smoke_test_proves_that_what_it_sends_is_stored(tmp_path: Path, postgres_url: str) -> None:
    """With an API key; and fails when nothing takes the messages off the queue."""
    site = Site(tmp_path, postgres_url, queues="forebay-canary")
    site.migrate()
    made = site.run("api-keys", "create", "ci", "--queues", "forebay-canary", "--file", "keys.json")
    (tmp_path / "api-key").write_text(made.stdout.strip())
    site.settings["GATEWAY__KEYS_FILE"] = str(tmp_path / "keys.json")
    env = {
        "FOREBAY_URL": site.url,
        "SMOKE_API_KEY_FILE": str(tmp_path / "api-key"),
        "FOREBAY_DATABASE__URL": postgres_url,
        "SMOKE_MESSAGES": "50",
    }
    try:
        site.gateway()
        assert call(CI / "smoke", **env, SMOKE_WAIT="1s").returncode != 0

        site.consumer()
        done = call(CI / "smoke", **env)
        assert done.returncode == 0, done.stderr
        assert "50" in done.stdout
    finally:
        site.close()
