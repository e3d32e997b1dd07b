# `make demo` and `make test` work in a fresh clone with nothing but Python and make: each installs what it needs
# into .venv, once, and again when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

.PHONY: help demo test test-slow bench check docs format clean

help:
	@echo "make demo       train on the built-in digit scenes and draw the maps (about 2 minutes on two cores)"
	@echo "make test       run the test suite"
	@echo "make test-slow  run the slow tests, which the suite leaves out"
	@echo "make bench      measure speed beside its peers, a quarter of an hour; PARTS='startup learned-maps' picks"
	@echo "make check      formatter, linter, types, order of the rooms"
	@echo "make docs       build the documentation into site/; a broken link, anchor or reference fails"
	@echo "make format     let the formatter and the linter repair what they can"
	@echo "make clean      remove .venv and the caches"

demo: $(VENV)/.installed
	$(BIN)/heedmap demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		echo "Left out: tests/test_explorer_browser.py, which needs a browser; on Debian: apt-get install chromium"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	@$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html."

bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks $(PARTS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("heedmap needs Python 3.11 or newer, $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % v[:2])'
	@echo "Installing heedmap into $(VENV). The first time this downloads PyTorch, which can take some minutes."
	@$(PYTHON) -m venv $(VENV)
	@started=$$(date +%s) && $(PIP) -e . && echo "Installed in $$(( $$(date +%s) - started )) s."
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools into $(VENV)."
	@started=$$(date +%s) && $(PIP) -e '.[dev]' && echo "Installed in $$(( $$(date +%s) - started )) s."
	@touch $@
