# Each target does its own set-up: any of them works as the first command on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# Tests that measure no time, so that they may run beside others.
CALM := $(addprefix tests/postgres/test_,plan_runs.py warm_start.py search_commands.py methods.py ensemble_command.py report.py publish.py reproduce.py roles.py doctor.py tls.py canary.py)

.PHONY: help setup demo test lint bench chaos gpu-check image compose-check audit
help:
	@echo 'make demo   search a model on synthetic incidents and export the best (1 to 3 minutes after installation)'
	@echo 'make test   run the tests         make lint   check style, types and imports'
	@echo 'make bench  compare with peers    make chaos  run the long form of the fault tests'
	@echo 'make gpu-check   on a machine with a GPU: memory ladder, bfloat16, kill and resume'
	@echo 'make image       build the image without an engine and try its containers (root; docs/deployment.md)'
	@echo 'make audit       look for known vulnerabilities in the locked versions'
	@echo 'make compose-check   hold docker-compose.yml and the Dockerfile to the specification, linters and our rules'

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,browser,buckets]'
	touch $@

demo: setup examples/incidents.csv
	$(BIN)/hpo run examples/demo.yaml

examples/incidents.csv: | setup
	$(BIN)/hpo demo-data -o $@

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not chaos and not deploy' tests/unit tests/training tests/realdata tests/browser tests/deploy $(CALM)
	$(BIN)/python -m pytest -q -m 'not chaos' tests/postgres tests/chaos $(addprefix --ignore=,$(CALM))  # these measure time: nothing beside them

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m bench.trial
	$(BIN)/python -m bench.coordination --quick

chaos: setup
	$(BIN)/python -m pytest -q -m chaos

gpu-check: setup
	$(BIN)/python -m pytest -q -m gpu tests/gpu

image: setup
	deploy/build-without-engine.sh
	$(BIN)/python -m pytest -q -m deploy tests/deploy

audit: setup  # asks PyPI's advisories about every locked version; needs the network
	$(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --no-deps --disable-pip -r constraints.txt

compose-check: setup
	$(BIN)/python -m pytest -q tests/deploy/test_compose.py
