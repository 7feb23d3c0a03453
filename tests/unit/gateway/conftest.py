"""What is said over HTTP is tested on both lanes: a gateway with the fast one, and one without it."""

from __future__ import annotations

import pytest

from tests.unit.gateway import support

BOTH = ("fast lane", "application")
ITSELF = ("test_lanes", "test_server")
"""Modules that choose a lane for themselves, or test what is the same for both."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module
    if hasattr(module, "running") and module.__name__.rpartition(".")[2] not in ITSELF:
        metafunc.fixturenames.append("lane")
        metafunc.parametrize("lane", BOTH, indirect=True)


@pytest.fixture
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What gateways are made with, unless a test says something else."""
    name: str = request.param
    monkeypatch.setattr(support, "FAST_LANE", name == BOTH[0])
    return name
