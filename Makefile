# `make demo` and `make test` work in a fresh clone with nothing but Python and make: each installs what it needs
# into .venv, once, and again when pyproject.toml or constraints.txt changes.

PYTHON  ?= python3
WORKERS ?= 2
VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := -m pip --disable-pip-version-check install -qq
PIP     := $(BIN)/python $(INSTALL) -c constraints.txt
# A file's tests stay in one process: what they share is made once.
PYTEST  := -m pytest -n $(WORKERS) --dist loadfile

OLDEST        := .venv-oldest
OLDEST_PYTHON ?= python3.11
# Not the dev extra: schemathesis asks for a newer rich than heedmap does, and its one test is skipped without it.
OLDEST_EXTRAS := tensorboard,predict,captum,onnx,hub,serve,explore
OLDEST_TOOLS  := httpx ipykernel nbclient playwright pytest pytest-timeout pytest-xdist torchcam

.PHONY: help demo test test-all test-oldest wheel bench check docs format clean

help:
	@echo "make demo         train on the built-in digit scenes and draw the maps (about 2 minutes on two cores)"
	@echo "make test         run the tests, without the slow ones; WORKERS=4 for four processes"
	@echo "make test-all     run the slow tests too"
	@echo "make test-oldest  run the tests with the oldest versions of constraints-oldest.txt, in $(OLDEST)"
	@echo "make wheel        build sdist and wheel, and try the wheel in an empty environment"
	@echo "make bench        measure speed beside its peers, a quarter of an hour; PARTS='startup learned-maps' picks"
	@echo "make check        formatter, linter, types, order of the rooms"
	@echo "make docs         build the documentation into site/; a broken link, anchor or reference fails"
	@echo "make format       let the formatter and the linter repair what they can"
	@echo "make clean        remove the environments, the built packages and the caches"

demo: $(VENV)/.installed
	$(BIN)/heedmap demo

test: $(VENV)/.installed-dev
	$(BIN)/python $(PYTEST)
	$(NAME_MISSING_BROWSER)

test-all: $(VENV)/.installed-dev
	$(BIN)/python $(PYTEST) -m "not gpu" --durations 10
	$(NAME_MISSING_BROWSER)

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python $(PYTEST)

wheel: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	.ci/try-wheel dist/*.whl

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
	$(PIP) -e '.[bench]'
	$(BIN)/python -m benchmarks $(PARTS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(OLDEST) dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

define NAME_MISSING_BROWSER
@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	echo "Left out: the tests in a browser, for want of one; on Debian: apt-get install chromium"
endef

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

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	@echo "Installing heedmap and the oldest versions it allows into $(OLDEST): 6 GB, some minutes."
	@$(OLDEST_PYTHON) -c 'import sys; sys.version_info[:2] == (3, 11) or sys.exit("The oldest versions have no wheels for Python %d.%d. Name a 3.11: make OLDEST_PYTHON=... test-oldest" % sys.version_info[:2])'
	@$(OLDEST_PYTHON) -m venv $(OLDEST)
	@started=$$(date +%s) && $(OLDEST)/bin/python $(INSTALL) -c constraints-oldest.txt -e '.[$(OLDEST_EXTRAS)]' $(OLDEST_TOOLS) && echo "Installed in $$(( $$(date +%s) - started )) s."
	@touch $@
