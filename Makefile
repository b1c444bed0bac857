# `make demo` runs sample experiments; `make test` runs everything that CI checks.
# Both install what they need in .venv and nothing system-wide.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test bench setup setup-dev lint types layers pytest pins clean

demo: setup
	@$(BIN)/fullsend demo

test: lint types layers pytest

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/mypy

layers: setup-dev
	$(BIN)/lint-imports

# More workers than processors, because most tests wait most of the time.
# FULLSEND_TEST_SERVER=/usr/bin/redis-server runs the tests on another server than the one that is installed.
WORKERS ?= 4
pytest: setup-dev
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup --durations 15

# Compares the executor with other systems; takes hours (docs/benchmarks.md).  QUICK=1 compares it with a bare loop, in minutes.
bench: setup-dev
	$(BIN)/python -m benchmarks.peers $(if $(QUICK),--quick)

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is %d.%d. Try: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@echo "Setting up $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --require-hashes -r requirements.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@$(PIP_INSTALL) --require-hashes -r requirements-dev.txt
	@touch $@

# Compiles the pinned requirements from pyproject.toml; needs `uv`.  They must not contain download addresses.
# The larger set is compiled first: a requirement of the tests can limit the version of a shared package.
PIN := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command "make pins" pyproject.toml
pins:
	$(PIN) --extra build --extra dev -o requirements-dev.txt
	$(PIN) --extra build -c requirements-dev.txt -o requirements.txt

clean:
	rm -rf $(VENV) .fullsend .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
