# Each target makes the virtual environment that it needs; nothing else has to be installed by hand.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
SHELL := /bin/bash
BIN := $(VENV)/bin

.PHONY: demo test lint format bench clean
.DEFAULT_GOAL := test

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS) -e '.[dev]'
	touch $@
