SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-core test-cluster test-gpu chaos gpu-check bench study study-quick study-variants doctor lint format wheel lock clean

VENV ?= .venv
# Where `make demo` leaves its run, and the data of the recipes (main reads VAPO_DATA_DIR).
DEMO_DIR ?= $(CURDIR)/runs/smoke
VAPO_DATA_DIR ?= $(CURDIR)/runs/data
# Appended to the command of demo and test*: make test ARGS="-k perception"
ARGS ?=

export EXTRA PYTHON FLASH_ATTN DRY_RUN UPGRADE VENV VAPO_DATA_DIR
# A run starts some ten processes that import torch and vLLM: they need the bytecode cache.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(abspath $(VENV))/bin
PYTEST := $(BIN)/python -m pytest -q

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

setup: ## install the locked environment: EXTRA=cpu|gpu PYTHON=python3 FLASH_ATTN=1 DRY_RUN=1 VENV=.venv
	@requirements/install.sh

demo: setup ## train on the digits world on CPU for a few steps: DEMO_DIR=runs/smoke
	$(BIN)/python -m vapo_verl.digits --out "$(VAPO_DATA_DIR)/digits"
	$(BIN)/python -m vapo_verl.main +recipe=smoke trainer.default_local_dir="$(DEMO_DIR)" $(ARGS)
	@ls -d "$(DEMO_DIR)"/{metrics.jsonl,report.html,rollouts,global_step_*} 2>/dev/null || true

test: setup ## the CPU suite
	$(PYTEST) $(ARGS)

test-slow: setup ## the slow tests: engine starts, full training runs
	$(PYTEST) -m "slow and not gpu and not multinode" --timeout 1800 $(ARGS)

test-core: setup ## one Slurm run over two nodes and one compose run, from test-cluster
	tests/system/slurm/install.sh
	tests/system/docker/install.sh
	$(PYTEST) -m "multinode and core" --timeout 1800 $(ARGS)

test-cluster: setup ## real Slurm, Docker and Ray over several simulated nodes; root on Debian, installs what they need
	tests/system/slurm/install.sh
	tests/system/docker/install.sh
	$(PYTEST) -m multinode --timeout 1800 $(ARGS)

test-gpu: setup ## the tests that need a GPU, in an environment of EXTRA=gpu
	$(PYTEST) -m gpu --timeout 1800 $(ARGS)

chaos: setup ## inject faults into full training runs and compare with an undisturbed run; root: ARGS="--faults 8 --seed 1 --minutes 20"
	$(BIN)/python tests/system/chaos $(ARGS)

gpu-check: ## run all GPU checks on this machine's GPU, in 12 minutes: ARGS="--minutes 5"
	@[[ -d "$(VENV)" ]] || export EXTRA=$${EXTRA:-gpu}; requirements/install.sh
	$(BIN)/python -m vapo_verl.gpu_check $(ARGS)

bench: setup ## what visual attention and anchors cost: tables and JSON lines
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/anchors.py

study: setup ## VAPO against GRPO and attention credit on a laptop, resumes where it was stopped: ARGS=--document
	$(BIN)/python -m benchmarks.study $(ARGS)

study-quick: setup ## the control of the main comparison: perception reward alone, few steps
	$(BIN)/python -m benchmarks.study --quick $(ARGS)

study-variants: setup ## VAPO with other settings, one at a time, next to the study's runs
	$(BIN)/python -m benchmarks.study --variants $(ARGS)

doctor: setup ## check machine and recipe before a run: ARGS="+recipe=vapo trainer.nnodes=2"
	$(BIN)/python -m vapo_verl.doctor $(ARGS)

lint: setup ## ruff, mypy, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find . -name '.venv*' -prune -o -path ./runs -prune -o -name '*.sh' -print0 \
	  | xargs -0 $(BIN)/shellcheck -x .ci/run

format: setup ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: ## build dist/*.whl, and check its size and contents: PYTHON=python3 (with `build`) ARGS=--no-isolation
	rm -rf dist
	$(or $(PYTHON),$(BIN)/python) -m build $(ARGS)
	$(or $(PYTHON),$(BIN)/python) requirements/check_wheel.py dist/*.whl

lock: ## resolve setup.py into requirements/*.txt: UPGRADE=1 for the newest versions
	@requirements/lock.sh

clean: ## delete caches and build products (keeps .venv and runs)
	rm -rf {.,requirements/vllm_metadata}/{build,dist,*.egg-info} .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name '.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
