# `make help` lists the targets. Everything is installed into .venv beside this file.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
INSTALLED := $(VENV)/.installed-$(VERSION)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check lint types docs format clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 12

# A stamp for another Python, or none, means an environment that cannot be trusted: start afresh.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Overhaul needs Python 3.11 or newer; try: make PYTHON=python3.11" >&2; exit 1; }
	@echo "installing into $(VENV) (some minutes the first time)"
	@[ -e $@ ] || rm -rf $(VENV)
	@[ -e $@ ] || $(PYTHON) -m venv $(VENV)
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq \
	  --editable '.[dev,docs,onnx,openvino,executorch,vision,transformers]'
	@touch $@

demo: $(INSTALLED) ## run the main job on embedded real data and write a report
	@$(BIN)/overhaul demo

test: $(INSTALLED) ## run the test suite, the examples of the documentation included
	@$(BIN)/python -m pytest -n $(JOBS)

lint: $(INSTALLED) ## check format, lint rules and docstrings
	@$(BIN)/ruff format --check --quiet || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/ruff check

types: $(INSTALLED) ## check types, strictly
	@$(BIN)/mypy

docs: $(INSTALLED) ## build the documentation into docs/_build
	@$(BIN)/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --nitpicky --quiet \
	  docs docs/_build

check: lint types test docs ## everything that must pass before a commit

format: $(INSTALLED) ## format the code and mend what the linter can
	@$(BIN)/ruff check --fix --quiet || true
	@$(BIN)/ruff format

clean: ## remove everything that make has made
	@rm -rf $(VENV) docs/_build docs/reference .mypy_cache .pytest_cache .ruff_cache .hypothesis
