SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := sb3_diffusion sb3_diffusion_zoo_hook.py tests examples benchmarks

.PHONY: install demo test pytest peer format lint type doc bench build clean

# The environment is made once, and again when what it is made from changes
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[extra,tests,docs]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/python examples/demo.py

# One process a core, one thread each
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

pytest: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal --cov --cov-report=term-missing

# The suites of SB3 and sb3-contrib, with our classes in the place of theirs
peer: install
	bash tests/sb3_suite/run

format: install
	$(BIN)/ruff check --select I --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lint: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

type: install
	$(BIN)/mypy

doc: install
	$(BIN)/sphinx-build --fail-on-warning --keep-going docs docs/_build/html

bench: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed

build: install
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist docs/_build demo
