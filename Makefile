# Everything that is done with the project; `make help` lists the targets.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test
BENCH_STAMP := $(VENV)/.installed-bench
JAVASCRIPT := tests/javascript
# What npm writes when it has installed everything.
JAVASCRIPT_STAMP := $(JAVASCRIPT)/node_modules/.package-lock.json
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Universal: one file for all platforms and versions of Python that we support; with hashes, and no registry's address.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
# Two more than two cores: tests of real processes wait for them, and others can go on meanwhile.
WORKERS ?= 4
# Options for the server (make run ARGS="--port 9000") or for pytest (make test ARGS="-k contract").
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install run test quick check format lock bench clean fuzz

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

install: $(RUN_STAMP) ## make .venv with what the server needs

run: $(RUN_STAMP) ## start the server (options: make run ARGS="--port 9000")
	@exec $(BIN)/minutebook serve $(ARGS)

# The tests start some hundred processes of ours: without its bytecode, each compiles all modules anew.
test quick: export PYTHONDONTWRITEBYTECODE :=

test: check $(JAVASCRIPT_STAMP) ## run the checks and all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

quick: $(TEST_STAMP) $(JAVASCRIPT_STAMP) ## run the tests but the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow' $(ARGS)

# The peers that we measure against are installed for it too: the types of bench/ are checked like all others.
check: $(BENCH_STAMP) ## lint, formatting, types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(TEST_STAMP) ## format the code
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

bench: $(BENCH_STAMP) ## measure, beside others on the same machine
	$(BIN)/python -m bench.append
	$(BIN)/python -m bench.http
	$(BIN)/python -m bench.rebuild
	$(BIN)/python -m bench.audit
	$(BIN)/python -m bench.fanout

fuzz: $(TEST_STAMP) ## fuzz the parsers for ten minutes (less: make fuzz ARGS="--seconds 60")
	$(BIN)/python -m tests.fuzz_protocols $(ARGS)

lock: $(TEST_STAMP) ## pin anew what is installed, after a change of setup.cfg
	$(PIP) uv
	$(COMPILE) --extra build setup.cfg -o requirements/run.txt
	$(COMPILE) --extra build --extra test setup.cfg -o requirements/test.txt
	$(COMPILE) --extra build --extra test --extra bench setup.cfg -o requirements/bench.txt

clean: ## remove .venv and what tools leave behind
	rm -rf $(VENV) $(JAVASCRIPT)/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

# The environment is made anew when an interpreter is missing from it (the folder was moved), and its packages
# are installed again when a lock file or setup.cfg is newer than the stamp.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Minutebook needs Python 3.11 or later with venv (Debian: apt install python3-venv)" >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): requirements/run.txt setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) --require-hashes -r requirements/run.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(TEST_STAMP): requirements/test.txt $(RUN_STAMP)
	$(PIP) --require-hashes -r requirements/test.txt
	@touch $@

$(BENCH_STAMP): requirements/bench.txt $(TEST_STAMP)
	$(PIP) --require-hashes -r requirements/bench.txt
	@touch $@

# npm and Node come with the packages for the tests. The lock file names no registry: npm asks the one that it is set up with.
$(JAVASCRIPT_STAMP): $(JAVASCRIPT)/package-lock.json $(JAVASCRIPT)/package.json $(TEST_STAMP)
	$(BIN)/npm --prefix $(JAVASCRIPT) --loglevel error ci
	@touch $@
