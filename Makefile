# `make demo` and `make test` do all set-up themselves. The pinned CPU build of torch is in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready

.PHONY: demo test slow lint types docs site bench bench-quick wheel-test lowest clean

demo: $(DEMO)
	$(BIN)/sparsemtl study examples/rooms-study.yaml --jobs 2 --out runs/demo
	@echo "Open runs/demo/report.html"

# Each process takes neighbouring tests, so that what a module trains is trained once, and idle ones take over the rest.
# Compiled modules are kept, whatever the environment says: each process that a test starts would compile them anew.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2 --dist worksteal

# Long checks, which run nowhere automatically: see CONTRIBUTING.md.
slow: $(READY)
	$(BIN)/pytest -m slow
	$(BIN)/pytest -m hypothesis --hypothesis-profile thorough

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# The demo needs a fraction of what the tests need, and is ready in half of the time.
$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[report,data]'
	@touch $(DEMO)

$(READY): $(DEMO)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

docs: $(READY)
	$(BIN)/python docs/generate.py

# The documentation as pages of build/site, which open from the folder: build/site/index.html.
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# All speed scripts, alone on the machine: benchmarks/results/speed.md, in half an hour.
bench: $(READY)
	$(BIN)/python benchmarks/suite.py

# Rows that became worse by more than 10 % than those of speed.md.
bench-quick: $(READY)
	$(BIN)/python benchmarks/suite.py --quick

# A wheel of the committed files, installed and used away from the checkout: `make wheel-test PYTHON=python3.13`.
wheel-test:
	PYTHON=$(PYTHON) .ci/wheel-test

# Tests with the lowest versions that pyproject.toml allows, on Python 3.10.
lowest:
	.ci/lowest

clean:
	rm -rf $(VENV) build src/*.egg-info runs
