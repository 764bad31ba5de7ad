# Every target sets up what it needs, so each can be the first one in a clean clone.
# pip uses its own configuration; nothing here names a package registry.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.headrace-installed
ARGS ?=
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-all test-kernels sanitize check check-static bench results docs format build check-wheel clean distclean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=... is handed to the command; PYTHON=... chooses the interpreter (3.11 or newer);"
	@echo "  TORCH=... chooses the torch that is installed first (now $(TORCH))."

# torch comes first and alone, so that the build that pip's configuration offers is the one kept.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; set PYTHON to a newer one" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## Run the demo: headrace demo $(ARGS)
	$(BIN)/headrace demo $(ARGS)

COLUMNS := qwen3-0.6b --layers 2 --rows 4 --prompt 256 --weights-on-host 1 --batches 1,4 --policies stream

bench: $(STAMP) ## Run the benchmark suite and column-by-column beside row-by-row, or headrace bench $(ARGS)
	@mkdir -p out
	$(BIN)/headrace bench $(or $(ARGS),suite --output out/bench.json --page out/bench.html)
	$(if $(ARGS),,$(BIN)/headrace bench $(COLUMNS) --output out/columns.json)

results: $(STAMP) ## Write docs/results* from benchmarks/results; check every figure of the docs
	$(BIN)/python -m scripts.results $(ARGS)

# Tests run in a process for each core, up to four, each of which computes with one thread.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: $(STAMP) ## Run every test that needs no GPU: pytest $(ARGS)
	$(PARALLEL) -m "not gpu" $(ARGS)

test-quick: $(STAMP) ## Run the tests that take no more than a few seconds each
	$(PARALLEL) -m "not gpu and not slow" $(ARGS)

test-all: $(STAMP) ## Run every test, those for a GPU too
	$(BIN)/python -m pytest $(ARGS)

test-kernels: $(STAMP) ## Install Triton and run the GPU's kernels in its interpreter
	$(BIN)/python -m pip install -q --disable-pip-version-check triton
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/unit/runtime/test_page_kernels.py $(ARGS)

sanitize: $(STAMP) ## Fuzz the native library under sanitizers, FUZZ_SECONDS a variant: pytest $(ARGS)
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/unit/runtime/test_native_sanitizers.py $(ARGS)

check: ## Everything that must hold before a commit: check-static, then test
	$(MAKE) check-static
	$(MAKE) test

check-static: $(STAMP) docs ## Check format, lint, types, import contracts and docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(STAMP) ## Check that every link in the documentation leads somewhere
	$(BIN)/python scripts/check_docs.py

format: $(STAMP) ## Format the code and repair what ruff can repair
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: $(STAMP) ## Build the wheel and the source distribution into dist/
	$(BIN)/python -m build

check-wheel: $(STAMP) ## Install the wheel afresh, with a compiler and without, and test it there (minutes)
	$(BIN)/python scripts/check_wheel.py --torch "$(TORCH)" $(ARGS)

clean: ## Remove caches and build outputs
	rm -rf build dist out src/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove the virtual environment too
	rm -rf $(VENV)
