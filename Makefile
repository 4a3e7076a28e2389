# Everything from a bare clone with nothing but python3: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test lint bench docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   energy-based regression through DCEM and through unrolled gradient descent (< 4 minutes)"
	@echo "make test   the test suite (< 8 minutes)        make lint   ruff and mypy --strict"
	@echo "make bench  benchmarks, JSON under results/     make docs   the documentation site, under site/"

setup: $(READY)

# torch first and alone: anything that lets pip choose a torch by itself would fetch gigabytes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all]' --group dev
	touch $(READY)

demo: $(READY)
	$(BIN)/dcem demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/run.py

docs: $(READY)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build src/*.egg-info
