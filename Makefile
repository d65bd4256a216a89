# Two commands for a fresh machine: `make demo` and `make test`. Everything lives in .venv.
.PHONY: demo test test-slow check kernels bench docs pictures clean
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"expected Python 3.11 or newer; got {v[0]}.{v[1]}; type: make PYTHON=python3.11 demo")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/holdfast demo

# One process a core, one thread each: small tensors gain nothing from more, and cores that wait for each other lose.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The kernels are compiled while the checks run, so that no test has to wait for them.
test: $(READY)
	$(MAKE) --jobs=2 check kernels
	$(PYTEST) -m "not slow"

kernels: $(READY)
	$(BIN)/python -m holdfast.kernels

test-slow: $(READY)
	$(PYTEST) -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	for each in benchmarks/*.py; do $(BIN)/python $$each || exit 1; done

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What the pages that are programs printed and drew: once more, into the pages.
pictures: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python docs/_pictures.py docs/is-it-covariate-shift.md

clean:
	rm -rf .venv site build
