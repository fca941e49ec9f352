# Every target works as the first command after a clone: what it needs is installed into .venv by itself.
# `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV := $(BIN)/uv --no-config
BREAK ?= schema
SERVER := $(BIN)/python -m tests.support.elasticsearch
# One more than most machines have cores to spare: services under test often wait.
WORKERS ?= 3
# A service is started hundreds of times in the tests, and compiling its modules anew takes longer than all else.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=

# The first Python here that the service runs on and that can make a virtual environment.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help install demo test soak quick check format bench wheels lock clean

help: ## List the targets.
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name what; do \
	  printf '  make %-8s %s\n' "$$name" "$$what"; done

install: $(INSTALLED) ## Install everything into .venv, each package checked against its locked hash.

$(INSTALLED): requirements-build.lock requirements-dev.lock pyproject.toml shippers/pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later that can make a virtual environment;" \
	  "install one (on Debian: apt-get install python3 python3-venv) or name it: make install PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "installing into $(VENV) (once, and again when a lock changes)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-build.lock
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes --only-binary :all: requirements-dev.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-index --no-deps --no-build-isolation -e shippers -e .
	@touch $@

demo: $(INSTALLED) ## Run the demo: an application breaks, a ticket opens (BREAK=schema|dependency|silence|none).
	$(BIN)/logsvc demo --break $(BREAK) $(ARGS)

# The server is fetched and started before the tests, outside their time limits, unless one is kept running already.
test: $(INSTALLED) ## Run every test, those against a real Elasticsearch included (ARGS="-k name" narrows).
	@if ! $(SERVER) url >/dev/null; then \
	  trap '$(SERVER) stop' EXIT; \
	  echo "starting Elasticsearch for the tests (fetched once per machine)"; \
	  $(SERVER) start || true; \
	fi; \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

soak: $(INSTALLED) ## Break a real service in every way and find each record again (ARGS="--short", "--list", "kill fsync").
	$(BIN)/python -m tests.soak $(ARGS)

quick: $(INSTALLED) ## Run the unit tests: under a minute on a quiet machine, no server needed.
	$(BIN)/python -m pytest -n $(WORKERS) --hypothesis-profile=quick -m "not slow and not elasticsearch" tests/unit $(ARGS)

check: $(INSTALLED) ## Check formatting, lint, types and the boundaries between packages.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 shippers
	$(BIN)/mypy tests
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED) ## Format the code and apply the lint's safe fixes.
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(INSTALLED) ## Measure throughput, CPU per record and search latencies.
	$(BIN)/python -m tests.benchmarks $(ARGS)

wheels: $(INSTALLED) ## Build both distributions into dist/.
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	cd shippers && ../$(BIN)/python -m hatchling build -d ../dist

# No addresses, no folders of this machine: the same file installs from any mirror, and the hashes decide.
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-index-url --no-emit-find-links --no-emit-package logsvc-shippers

lock: $(INSTALLED) ## Write the locks anew from pyproject.toml (ARGS=--upgrade takes newer versions).
	$(LOCK) $(ARGS) --group build -o requirements-build.lock
	$(LOCK) $(ARGS) pyproject.toml --extra postgres -c requirements-build.lock -o requirements.lock
	$(LOCK) $(ARGS) pyproject.toml --extra postgres --group dev -c requirements-build.lock -c requirements.lock -o requirements-dev.lock

clean: ## Remove what was built and cached; .venv and data stay.
	rm -rf build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find logsvc detectors logsvc_demo shippers tests -name __pycache__ -type d -prune -exec rm -rf {} +
