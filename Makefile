# Everything that a user or CI does. A target first installs what it needs into .venv, which takes no time if nothing changed.
#   make PYTHON=/path/to/python3.12 ...    makes .venv with another Python
#   make ACCELERATOR=gpu ...               installs the GPU packages instead
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ACCELERATOR ?= cpu
export PYTHON
# Without bytecode files, every process of every run would compile its libraries again.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
DEMO := configs/grpo_addition_smollm2-135m_cpu.yaml
# Code that must be right without a GPU to test it on: unit tests take every branch.
COVERED_TESTS := tests/unit/algorithms tests/unit/planner
# Folders and files whose tests import torch, transformers or Ray. One process runs them all, because each would import these again.
# Those of rewards import torch too, but with them this process would end long after the others.
HEAVY_TESTS := $(addprefix tests/unit/,app batching catalog checkpoint cli/test_resume_command.py cli/test_validate_command.py cluster data loops models rollout training weight_sync test_new_algorithm.py test_trl.py)
COVERED := --cov=ray_rl/algorithms --cov=ray_rl/planner --cov-branch --cov-fail-under=100 --cov-report=term:skip-covered

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## create .venv with the locked packages that runs need
	@docker/setup.sh $(ACCELERATOR)

.PHONY: setup-test
setup-test: ## create .venv and add the packages that tests need
	@docker/setup.sh $(ACCELERATOR) test

.PHONY: demo
demo: ## train a 135M model on two CPU cores and see it improve (5 to 10 minutes)
	@echo "This takes 5 to 10 minutes on two cores and 12 GB of memory. It needs disk space for .venv (4 GB), the model in"
	@echo "~/.cache/ray_rl (0.3 GB) and checkpoints in runs/ (up to 3.5 GB, of which 2 GB remain). Ctrl-C saves and ends the run."
	@$(MAKE) --no-print-directory setup
	$(BIN)/ray-rl train $(DEMO) run.name=demo-$$(date +%Y%m%d-%H%M%S) checkpoint.keep_last=1
	@echo "ray-rl, vllm and tensorboard are in $(BIN); to put them on your PATH: source $(BIN)/activate"

.PHONY: test
test: setup-test ## run unit tests, then tests with real Ray, vLLM and DeepSpeed (25 minutes)
	@trap 'exit 130' INT; failed=; started=$$SECONDS; \
	run() { echo "pytest $$*"; $(BIN)/python -m pytest "$$@" || failed="$$failed $$1"; }; \
	$(MAKE) --no-print-directory test-unit || failed=" tests/unit"; \
	run tests/processes -m "not long" -n auto --dist loadfile; \
	run tests/launching/scripts; \
	run tests/system/cluster -m "not faults and not launch and not long"; \
	run tests/system/e2e -m "not faults and not launch and not kills and not long"; \
	echo "make test: $$((SECONDS - started)) s$${failed:+, failed:$$failed}"; [ -z "$$failed" ]

# Processes that share the cores have one thread each: further threads of torch would only wait. The longest goes first.
.PHONY: test-unit
test-unit: setup-test ## run only the unit tests (75 seconds)
	@export OMP_NUM_THREADS=1; logs=$$(mktemp -d); trap 'kill $$(jobs -p); rm -r "$$logs"; exit 130' INT; failed=; \
	nice $(BIN)/python -m pytest $(COVERED_TESTS) $(COVERED) >"$$logs/covered" 2>&1 & covered=$$!; \
	$(BIN)/python -m pytest $(HEAVY_TESTS) >"$$logs/heavy" 2>&1 & heavy=$$!; \
	nice $(BIN)/python -m pytest tests/unit tests/test_*.py $(addprefix --ignore ,$(COVERED_TESTS) $(HEAVY_TESTS)) || failed=1; \
	wait $$covered || failed=1; wait $$heavy || failed=1; cat "$$logs"/*; rm -r "$$logs"; [ -z "$$failed" ]

.PHONY: test-docs
test-docs: setup-test ## check links and file names in the pages, and run the commands of docs/first_hour.md (5 minutes)
	$(BIN)/python -m pytest tests/test_docs.py tests/system/e2e/test_first_hour.py

.PHONY: test-faults
test-faults: setup-test ## kill engines, trainers and nodes, fill disks, and corrupt weights in transit (20 minutes)
	$(BIN)/python -m pytest tests/system/cluster tests/system/e2e -m "faults and not long"

.PHONY: test-long
test-long: setup-test ## repeat with more algorithms, layouts and runs what make test shows with some (25 minutes)
	$(BIN)/python -m pytest tests/processes tests/system/cluster tests/system/e2e -m "long and not launch and not kills"

.PHONY: test-kills
test-kills: setup-test ## kill and resume a run at 52 points and compare every bit (30 minutes); KILLS=5 takes five points, others at the next commit
	$(BIN)/python -m pytest -rP tests/system/e2e/test_kills.py tests/system/e2e/test_kills_of_adapters.py

.PHONY: test-gpu
test-gpu: ## test NCCL, flash-attn, ZeRO-3 and vLLM on CUDA; needs a GPU (some tests two or four), and fails without one
	@ls /dev/nvidia[0-9]* >/dev/null 2>&1 || { echo "make test-gpu: no GPU on this machine (/dev/nvidia0), so nothing was tested" >&2; exit 1; }
	@$(MAKE) --no-print-directory setup-test ACCELERATOR=gpu
	$(BIN)/python -m pytest tests/gpu

.PHONY: test-image
test-image: setup-test ## build the CPU image with buildah and check it; needs root (5 minutes)
	$(BIN)/python -m pytest tests/launching/docker

.PHONY: test-launch
test-launch: setup-test ## test Slurm, Kubernetes and Ray clusters that are simulated on this machine; needs root (15 minutes)
	@failed=; $(BIN)/python -m pytest tests/launching/slurm tests/launching/kuberay || failed=1; \
	$(BIN)/python -m pytest tests/system/cluster tests/system/e2e -m launch && [ -z "$$failed" ]

.PHONY: check
check: setup-test ## check lint, formatting and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: setup-test ## format the code and apply ruff's automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: setup-test ## compare this system with TRL on this machine, and its parts with their limits (most of an hour)
	$(BIN)/python -m tests.benchmarks

.PHONY: learn
learn: setup-test ## train a 135M model on preferences and measure what it learned on held-out pairs (over an hour); SEEDS=1 takes a third
	$(BIN)/python -m pytest -s tests/learning

.PHONY: lock
lock: ## resolve docker/requirements-*.txt again from pyproject.toml
	@$(PYTHON) docker/lock.py
