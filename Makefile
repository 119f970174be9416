# Needs python3 (>= 3.11) with venv, and make. Everything else is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# uv only if it is there; pip otherwise. Versions come from constraints.txt either way.
UV     := $(shell command -v uv 2>/dev/null)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Also binds what the build of this package itself pulls in.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

ifdef UV
VENV_CMD = $(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
INSTALL  = $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt
else
VENV_CMD = $(PYTHON) -m venv $(VENV)
INSTALL  = $(BIN)/python -m pip install --quiet
endif

.PHONY: setup run test check bench loadtest clean

run: $(VENV)/.installed
	$(BIN)/central-logger serve

setup: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("central-logger needs Python 3.11 or newer") if sys.version_info < (3, 11) else 0'
	$(VENV_CMD)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	@touch $@

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m loadtests.bench

loadtest: setup
	$(BIN)/python -m loadtests.run

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
