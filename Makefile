# Each target works on a fresh machine that has only Python 3.10 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One worker per core; idle workers take tests from busy ones, because test durations vary widely.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: demo test test-all lint clean

demo: $(STAMP)
	$(BIN)/mde demo

test: $(STAMP)
	$(PYTEST) -m 'not slow'

test-all: $(STAMP)
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# torch and torchvision first and pinned, so that every machine tests the same pair.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=23'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache
