"""deploy/kubernetes: valid by Kubernetes' own schemas, and in line with what the program does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from forebay.cli.main import ENTRIES
from forebay.settings import Settings, load
from tests.servers.postgres import free_port
from tests.system.harness import Site, http

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest that we say works, and the newest known."""

Manifest = dict[str, Any]


def manifests() -> Iterator[Manifest]:
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


ALL = list(manifests())


def pod(manifest: Manifest) -> Manifest | None:
    """What it starts, if it starts something."""
    spec = manifest.get("spec", {})
    template = spec.get("jobTemplate", {"spec": spec})["spec"].get("template")
    return template["spec"] if template else None


PODS = {m["metadata"]["name"]: found for m in ALL if (found := pod(m)) is not None}


def name(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def one(kind: str, called: str) -> Manifest:
    (found,) = [m for m in ALL if m["kind"] == kind and m["metadata"]["name"] == called]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", ALL, ids=name)
def test_it_is_valid(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    manifest = copy.deepcopy(one("StatefulSet", "gateway"))
    started = manifest["spec"]["template"]["spec"]
    started["terminationGracePeriod"] = started.pop("terminationGracePeriodSeconds")

    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


def test_all_files_are_applied_but_the_examples() -> None:
    applied = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    files = {path.name for path in FOLDER.glob("*.yaml")}

    assert files - set(applied) == {
        "kustomization.yaml", "secret.example.yaml", "ingress.yaml", "jobs.example.yaml",
    }  # fmt: skip


def test_the_example_of_the_secret_holds_none() -> None:
    assert set(one("Secret", "forebay")["stringData"].values()) == {""}


@pytest.fixture(params=sorted(PODS))
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def settings_of(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the container would read them, with the files of the volumes in `tmp_path`."""
    contents = {
        "broker-url": "amqp://user:password@rabbitmq/",
        "database-url": "postgresql://user:password@postgres/forebay",
        "keys.json": '{"keys": []}',
        "forebay.toml": one("ConfigMap", "forebay")["data"]["forebay.toml"],
    }
    assert set(contents) - {"forebay.toml"} == set(one("Secret", "forebay")["stringData"])
    for file, text in contents.items():
        (tmp_path / file).write_text(text)
    for variable in PODS[role]["containers"][0]["env"]:
        path = Path(variable["value"])
        monkeypatch.setenv(variable["name"], str(tmp_path / path.name if path.name in contents else path))
    return load().settings


def test_its_settings_are_understood(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting or variable is refused as the container would refuse it, when it starts."""
    settings = settings_of(role, tmp_path, monkeypatch)

    assert settings.database.url is not None
    assert settings.queues


def test_its_command_is_one_of_ours(role: str) -> None:
    assert PODS[role]["containers"][0]["args"][0] in ENTRIES


def test_it_holds_no_rights_and_writes_nowhere_but_in_volumes(role: str) -> None:
    started, container = PODS[role], PODS[role]["containers"][0]

    assert started["automountServiceAccountToken"] is False
    assert started["securityContext"]["runAsNonRoot"] is True
    # The user of the image, so that what is in the volumes is its.
    assert (
        f"--uid {started['securityContext']['runAsUser']}" in (FOLDER.parents[1] / "Dockerfile").read_text()
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


def test_every_volume_that_is_mounted_is_there(role: str) -> None:
    claims = [c["metadata"]["name"] for c in one("StatefulSet", "gateway")["spec"]["volumeClaimTemplates"]]
    there = {volume["name"] for volume in PODS[role]["volumes"]} | (
        set(claims) if role == "gateway" else set()
    )

    assert {mount["name"] for mount in PODS[role]["containers"][0]["volumeMounts"]} == there


def test_a_gateway_is_killed_only_after_all_the_time_that_it_takes_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = settings_of("gateway", tmp_path, monkeypatch).gateway
    grace = PODS["gateway"]["terminationGracePeriodSeconds"]
    probe = PODS["gateway"]["containers"][0]["readinessProbe"]

    assert gateway.drain_delay > probe["periodSeconds"] * probe["failureThreshold"]
    assert grace >= gateway.drain_delay + gateway.shutdown_timeout + 5


def test_a_consumer_is_killed_only_after_all_the_time_that_it_takes_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = settings_of("consumer", tmp_path, monkeypatch).consumer

    assert PODS["consumer"]["terminationGracePeriodSeconds"] >= consumer.shutdown_timeout + 10


def test_a_journal_fits_on_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = settings_of("gateway", tmp_path, monkeypatch).gateway
    (claim,) = one("StatefulSet", "gateway")["spec"]["volumeClaimTemplates"]
    mounted = {m["name"]: m["mountPath"] for m in PODS["gateway"]["containers"][0]["volumeMounts"]}

    assert str(gateway.journal) == mounted[claim["metadata"]["name"]]
    size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 2**30
    assert size >= 1.5 * gateway.journal_max_bytes


def test_services_and_budgets_are_those_of_the_pods_that_they_mean() -> None:
    for called in ("gateway", "consumer"):
        workload = one("StatefulSet" if called == "gateway" else "Deployment", called)
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert one("PodDisruptionBudget", called)["spec"]["selector"]["matchLabels"] == labels
        services = [m for m in ALL if m["kind"] == "Service" and m["metadata"]["labels"] == labels]
        assert [m["spec"]["selector"] for m in services] == [labels] * len(services)
    named = one("StatefulSet", "gateway")["spec"]["serviceName"]
    assert one("Service", named)["spec"]["clusterIP"] == "None"


def test_status_asks_services_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = settings_of("gateway", tmp_path, monkeypatch).status

    for url in (*status.gateways, *status.consumers):
        parts = urlsplit(url)
        (port,) = one("Service", parts.hostname or "")["spec"]["ports"]
        assert port["port"] == parts.port


@pytest.mark.system
@pytest.mark.parametrize("role", ["gateway", "consumer"])
def test_its_probes_are_answered_by_the_command_that_it_runs(role: str, tmp_path: Path) -> None:
    """With the manifest's own arguments, but for a port that is free here."""
    container = PODS[role]["containers"][0]
    (port,) = [p["containerPort"] for p in container["ports"] if p["name"] == "http"]
    args = container["args"]
    assert args[args.index("--port") + 1] == str(port)
    site = Site(tmp_path, f"sqlite:///{tmp_path}/forebay.db")
    site.migrate()
    site.settings |= {"GATEWAY__INSECURE_NO_AUTH": "true"}
    try:
        here = free_port()
        process = site.start(*[str(here) if a == str(port) else a for a in args], log=role)
        process.until(lambda: site.ready(here), what="/readyz")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == "http"
            path = container[probe]["httpGet"]["path"]
            assert http("GET", f"http://127.0.0.1:{here}{path}").status == 200
        process.stop()
    finally:
        site.close()
