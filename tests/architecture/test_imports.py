"""Imports point one way, and only the places that join the parts know more than their neighbours."""

from __future__ import annotations

import grimp
import pytest

DRIVERS = ("sqlite", "memory", "rabbitmq", "kafka")
CLIENT_LIBRARIES = {"pika": "rabbitmq", "aiokafka": "kafka", "apsw": "sqlite"}


@pytest.fixture(scope="session")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("forebay", "gateway", "consumers", include_external_packages=True)


def importers(graph: grimp.ImportGraph, target: str) -> set[str]:
    """The modules that import `target` or anything in it by a statement of their own."""
    targets = {target} | {m for m in graph.modules if m.startswith(target + ".")}
    found = {m for t in targets if t in graph.modules for m in graph.find_modules_that_directly_import(t)}
    return {m for m in found if m != target and not m.startswith(target + ".")}


def test_gateway_and_consumers_never_import_each_other(graph: grimp.ImportGraph) -> None:
    assert not [m for m in importers(graph, "gateway") if m.startswith("consumers")]
    assert not [m for m in importers(graph, "consumers") if m.startswith("gateway")]


def test_only_the_top_of_forebay_knows_the_two_processes(graph: grimp.ImportGraph) -> None:
    top = ("forebay.wiring", "forebay.cli", "forebay.settings", "forebay.testing")
    for process in ("gateway", "consumers"):
        outside = {m for m in importers(graph, process) if not m.startswith((*top, process))}
        assert not outside, f"{outside} import {process}"


def test_nothing_below_imports_the_wiring(graph: grimp.ImportGraph) -> None:
    for top in ("forebay.wiring", "forebay.settings"):
        below = {m for m in importers(graph, top) if not m.startswith(("forebay.cli", "forebay.wiring"))}
        assert not below, f"{below} import {top}"
    assert not {m for m in importers(graph, "forebay.cli") if not m.startswith("forebay.cli")}


def test_only_the_factory_names_drivers(graph: grimp.ImportGraph) -> None:
    allowed = ("forebay.brokers.factory", "forebay.brokers.settings")
    for driver in DRIVERS:
        name = f"forebay.brokers.{driver}"
        outside = {m for m in importers(graph, name) if not m.startswith((*allowed, name, "forebay.testing"))}
        assert not outside, f"{outside} import {name}"


def test_client_libraries_stay_inside_their_driver(graph: grimp.ImportGraph) -> None:
    for library, driver in CLIENT_LIBRARIES.items():
        outside = {m for m in importers(graph, library) if not m.startswith(f"forebay.brokers.{driver}")}
        assert not outside, f"{outside} import {library}"


def test_brokers_and_storage_do_not_know_each_other(graph: grimp.ImportGraph) -> None:
    assert not [m for m in importers(graph, "forebay.storage") if m.startswith("forebay.brokers")]
    storage = {m for m in graph.modules if m.startswith("forebay.storage")}
    used = {t for m in storage for t in graph.find_modules_directly_imported_by(m)}
    allowed = {"forebay.brokers", "forebay.brokers.api"}
    assert not {t for t in used if t.startswith("forebay.brokers")} - allowed


def test_importing_forebay_is_light(graph: grimp.ImportGraph) -> None:
    """A handler module that says `from forebay import Message` loads no server and no client library."""
    light = {"forebay.errors", "forebay.message"}
    assert graph.find_modules_directly_imported_by("forebay") <= light
