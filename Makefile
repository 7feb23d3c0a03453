# `make help` lists what there is.
#
# Everything is installed into .venv, from this checkout. A stamp beside it says what
# is installed already, so that a second run starts at once.

PYTHON ?= python3
BIN := .venv/bin
ONLY ?=

.DEFAULT_GOAL := help
.PHONY: help run test check contract soak bench bench-table profile compose-test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/.installed ## start Forebay on 127.0.0.1:8080 (ARGS="--port 9000" goes to `forebay dev`)
	@exec $(BIN)/python scripts/foreground.py $(BIN)/forebay dev $(ARGS)

test: .venv/.installed-dev ## everything that CI runs: style, types, and every test, with the servers they need
	@exec scripts/run-tests

check: .venv/.installed-dev ## style, format, types and imports
	@scripts/run-checks && exec $(BIN)/python -m pytest -q --no-header tests/architecture

contract: .venv/.installed-dev ## the contract suite on every broker; writes the table in docs/drivers.md
	@scripts/install-servers
	@exec $(BIN)/python -m tests.contract.table

soak: .venv/.installed-dev ## the long tests: real input, power cuts, faults under load (ONLY=flights, power, faults-rabbitmq, teeth ...)
	@scripts/install-servers
	@exec $(BIN)/python -m tests.soak $(ONLY)

bench: .venv/.installed-dev ## the benchmarks behind the README's figures (ONLY=ingest, publish, drain ...)
	@scripts/install-servers wrk
	@$(BIN)/python -c 'import celery, faststream' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@exec $(BIN)/python -m bench $(ONLY)

bench-table: .venv/.installed-dev ## the README's table and the plots, from the newest rows in bench/results
	@exec $(BIN)/python -m bench.table

profile: .venv/.installed-dev ## flame graphs of the hot paths, into bench/profiles (ONLY=accept-rabbitmq ...)
	@scripts/install-servers wrk
	@exec $(BIN)/python -m bench.profile $(ONLY)

compose-test: .venv/.installed-dev ## docker-compose.yml on a real engine (ONLY=rabbitmq, kafka, cluster, kafka-cluster, rolling)
	@exec $(BIN)/python -m tests.compose $(ONLY)

clean: ## remove .venv and what the tools cache; keeps forebay-data
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

.venv/.made: scripts/make-venv
	@PYTHON=$(PYTHON) scripts/make-venv

.venv/.installed: .venv/.made pyproject.toml
	@echo "Installing Forebay and what it needs into .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[postgresql]'
	@touch $@

.venv/.installed-dev: .venv/.made pyproject.toml
	@echo "Installing Forebay and what its tests need into .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch .venv/.installed $@
