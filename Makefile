# Everything from a bare clone with nothing but python3: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EMPTY := $(VENV)/.empty
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -q --no-compile -c constraints.txt
# Bytecode is written where a process first needs it: without, each of the suite's processes compiles PyTorch anew (10 s).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test gpu sanitize lint bench docs tutorials dist clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   energy-based regression through DCEM and through unrolled gradient descent (a minute to set up, a minute to run)"
	@echo "make test   the test suite (< 8 minutes)        make lint   ruff and mypy --strict"
	@echo "make bench  benchmarks, JSON under results/     make docs   the documentation site, under site/"
	@echo "make tutorials  runs the tutorials, writes what they print and their figures into docs/"
	@echo "make gpu    tests and benchmarks on CUDA"
	@echo "make dist   sdist and wheels, under dist/, each tried in an empty environment"
	@echo "make sanitize  the kernels' tests on a build that checks memory and undefined behaviour (gcc, Linux)"

setup: $(READY)

$(EMPTY):
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip setuptools
	touch $(EMPTY)

# torch first and alone: anything that lets pip choose a torch by itself would fetch gigabytes. Then what every experiment
# imports, and the package, built by the setuptools that is there. The demo needs no more. Nothing is compiled to bytecode
# before it is used, which would take most of the time.
$(DEMO): pyproject.toml constraints.txt setup.py $(wildcard src/dcem/kernels/*.[ch]) | $(EMPTY)
	@echo "setting up $(VENV): PyTorch and what experiments need, about 1 GB"
	$(PIP) torch
	$(PIP) hydra-core matplotlib rich tensorboard
	$(PIP) --no-build-isolation -e .
	touch $(DEMO)

$(READY): $(DEMO)
	@echo "setting up $(VENV): simulators, TorchRL and tools, about 1 GB more"
	$(PIP) -e '.[all]' --group dev
	touch $(READY)

demo: $(DEMO)
	$(BIN)/dcem demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# On a machine with CUDA, with a torch built for it in place of the one that `setup` installs.
# TorchRL's specs, documents and other processes are for the CPU.
ON_A_GPU := $(addprefix tests/,control distributions embedding energy implicit kernels projections solvers world \
	$(addprefix test_,bounds.py capturing.py compile.py devices.py diagnosis.py exporting.py failure.py gradients.py \
	layer.py memory.py minimize.py replay.py results.py robustness.py rounding.py search.py stopping.py))
# Whether there is a device is asked before anything is installed.
CUDA := $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null
gpu:
	@$(CUDA) || nvidia-smi -L >/dev/null 2>&1 || { echo "gpu: expected a CUDA device; got none" >&2; exit 2; }
	@$(MAKE) --no-print-directory setup
	@$(CUDA) || { echo "gpu: expected a torch built for CUDA; got another in $(VENV)" >&2; exit 2; }
	DCEM_TEST_DEVICE=cuda $(BIN)/python -m pytest $(ON_A_GPU)
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/tables.py

# One variant of each kernel: those for several processors are chosen before the sanitizer has started.
SANITIZED := build/sanitized/kernels.so
$(SANITIZED): $(wildcard src/dcem/kernels/*.[ch])
	mkdir -p $(@D)
	gcc -DFAST= -O1 -g -fopenmp-simd -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer \
		-pthread -shared -fPIC src/dcem/kernels/kernels.c -o $@ -lm

sanitize: $(READY) $(SANITIZED)
	OMP_NUM_THREADS=1 DCEM_NATIVE=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest -n 0 tests/kernels/test_refit.py tests/kernels/test_projection.py -k "not sum_to_k"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/run.py

docs: $(READY)
	$(BIN)/mkdocs build --strict

tutorials: $(READY)
	$(BIN)/python tools/tutorials.py

dist: $(EMPTY)
	$(PIP) --group dist
	$(BIN)/python tools/dist.py

clean:
	rm -rf $(VENV) dist site build src/*.egg-info
