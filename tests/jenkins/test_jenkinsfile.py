"""The Jenkinsfile, read as Jenkins reads it, and the Jenkins that deploy/jenkins describes for it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.needs import missing_server
from tests.servers.codenarc import CodeNarcNotInstalled, groovy
from tests.servers.kafka import KafkaNotInstalled

ROOT = Path(__file__).parents[2]
DECLARATIVE = Path(__file__).with_name("Declarative.groovy")
JENKINS = ROOT / "deploy" / "jenkins"
CASC: dict[str, Any] = yaml.safe_load((JENKINS / "casc.yaml").read_text())

BROKEN = """
pipeline {
    agent { label 'build' }
    stages {
        stage('Test') {
            step {
                sh 'scripts/ci/test'
            }
        }
        stage('Deploy') {
            steps {
                sh "deploy --key ${env.DEPLOY_KEY}"
                def unused = 1
            }
        }
    }
}
"""


def read(jenkinsfile: Path, *others: Path) -> tuple[list[dict[str, Any]], str]:
    """What it would run, or what is wrong with it."""
    try:
        done = groovy(
            Path(__file__).with_name("Declarative.groovy"), jenkinsfile, JENKINS / "codenarc.groovy"
        )
    except (CodeNarcNotInstalled, KafkaNotInstalled) as missing:
        missing_server(str(missing))
    return (json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []), done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """And the job of our Jenkins, which needs only be Groovy, is read in the same go."""
    job = tmp_path_factory.mktemp("jenkins") / "job.groovy"
    job.write_text(CASC["jobs"][0]["script"])
    found, wrong = read(ROOT / "Jenkinsfile", job)
    assert found, wrong
    return found


def test_each_stage_runs_a_script_of_the_repository(runs: list[dict[str, Any]]) -> None:
    commands = [(run["stages"][-1], run["what"]) for run in runs if run["step"] == "sh"]

    assert commands == [
        ("Lint", "scripts/ci/version"),
        ("Lint", "scripts/ci/lint"),
        ("Test", "scripts/ci/test"),
        ("Image", "PUSH=true scripts/ci/image"),
        ("Deploy", "scripts/ci/deploy"),
        ("Smoke test", "scripts/ci/smoke"),
        ("Smoke test", "scripts/ci/deploy rollback"),
    ]
    for _, command in commands:
        (script,) = [word for word in command.split() if "/" in word]
        assert os.access(ROOT / script, os.X_OK)


def test_its_credentials_are_those_of_our_jenkins(runs: list[dict[str, Any]]) -> None:
    (domain,) = CASC["credentials"]["system"]["domainCredentials"]
    kept = {next(iter(one.values()))["id"] for one in domain["credentials"]}

    assert {name for run in runs for name in run["credentials"]} == kept


def test_only_the_agent_that_deploys_gets_the_key(runs: list[dict[str, Any]]) -> None:
    with_key = {tuple(run["stages"]) for run in runs if "deploy-key" in run["credentials"]}

    assert with_key == {("Release", "Deploy"), ("Release", "Smoke test")}


def test_variables_of_credentials_are_read_by_the_script_that_gets_them(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        for variable in run["variables"]:
            script = run["what"].split()[-1] if "rollback" not in run["what"] else "scripts/ci/deploy"
            # The last is a setting of Forebay's.
            assert variable in (ROOT / script).read_text() or variable == "FOREBAY_DATABASE__URL_FILE"


def test_mistakes_are_found(tmp_path: Path) -> None:
    (tmp_path / "Jenkinsfile").write_text(BROKEN)

    _, wrong = read(tmp_path / "Jenkinsfile")

    assert "stage 'Test': step does not belong here" in wrong
    assert "Groovy would put secrets into the text" in wrong
    assert "UnusedVariable" in wrong


def test_our_jenkins_lets_nobody_in_unasked_and_builds_nothing_itself() -> None:
    jenkins = CASC["jenkins"]

    assert jenkins["numExecutors"] == 0
    assert jenkins["securityRealm"]["local"]["allowsSignup"] is False
    grantees = [
        one["name"]
        for entry in jenkins["authorizationStrategy"]["globalMatrix"]["entries"]
        for one in entry.values()
    ]
    assert grantees == ["admin", "authenticated"]


def test_no_secret_is_in_it() -> None:
    text = (JENKINS / "casc.yaml").read_text()

    secrets = re.findall(r"(?:password|privateKey|secretBytes): (\S+)", text)
    assert len(secrets) == 6
    assert all(re.match(r'"\$\{[^}]+\}"', secret) for secret in secrets)
