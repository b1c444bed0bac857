# Two commands matter: `make demo` shows it, `make test` proves it.
# Both set up everything they need in .venv; nothing is installed system-wide.

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

# More at once than there are processors, as most of the tests' time is spent waiting.
WORKERS ?= 4
pytest: setup-dev
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup --durations 15

# Side by side with other systems, for hours (docs/benchmarks.md); QUICK=1: ourselves against a bare loop, in minutes.
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

# Compile the pins anew from pyproject.toml (needs `uv`); no download address may end up in them.
# The larger set first: what only the tests need may hold back what both use.
PIN := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command "make pins" pyproject.toml
pins:
	$(PIN) --extra build --extra dev -o requirements-dev.txt
	$(PIN) --extra build -c requirements-dev.txt -o requirements.txt

clean:
	rm -rf $(VENV) .fullsend .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
