# Everything a user or CI does. Targets install what they need into .venv first; that is instant when nothing changed.
#   make PYTHON=/path/to/python3.12 ...    makes .venv with another Python
#   make ACCELERATOR=gpu ...               installs the GPU packages instead
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ACCELERATOR ?= cpu
export PYTHON
# Without byte-code every process of every run would compile its libraries again.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
DEMO := configs/grpo_addition_smollm2-135m_cpu.yaml
# What must be right without a GPU in sight: every branch of it is taken by a unit test.
COVERED_TESTS := tests/unit/algorithms tests/unit/planner
COVERED := --cov=ray_rl/algorithms --cov=ray_rl/planner --cov-branch --cov-fail-under=100 --cov-report=term:skip-covered

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## create .venv with the locked packages that runs need
	@docker/setup.sh $(ACCELERATOR)

.PHONY: setup-test
setup-test: ## the same with the packages of the tests
	@docker/setup.sh $(ACCELERATOR) test

.PHONY: demo
demo: ## train a 135M model on two CPU cores and watch it get better
	@echo "This takes 5 to 10 minutes on two cores, and 12 GB of memory. Disk: 4 GB for .venv, 0.3 GB for the model in"
	@echo "~/.cache/ray_rl, and in runs/ up to 3.5 GB of checkpoints while it trains, of which 2 GB stay. Ctrl-C saves and ends."
	@$(MAKE) --no-print-directory setup
	$(BIN)/ray-rl train $(DEMO) run.name=demo-$$(date +%Y%m%d-%H%M%S) checkpoint.keep_last=1
	@echo "ray-rl, vllm and tensorboard are in $(BIN); to have them in the path: source $(BIN)/activate"

.PHONY: test
test: setup-test ## run the tests: unit, then cluster, then end to end (25 minutes)
	@trap 'exit 130' INT; failed=; started=$$SECONDS; \
	run() { echo "pytest $$*"; $(BIN)/python -m pytest "$$@" || failed="$$failed $$1"; }; \
	run $(COVERED_TESTS) $(COVERED); \
	run tests/unit tests/test_*.py $(COVERED_TESTS:%=--ignore %) -n auto --dist loadfile; \
	run tests/processes -n auto --dist loadfile; \
	run tests/launching/scripts; \
	run tests/system/cluster -m "not faults and not launch and not long"; \
	run tests/system/e2e -m "not faults and not launch and not kills and not long"; \
	echo "make test: $$((SECONDS - started)) s$${failed:+, failed:$$failed}"; [ -z "$$failed" ]

.PHONY: test-unit
test-unit: setup-test ## the unit tests alone (90 seconds)
	$(BIN)/python -m pytest $(COVERED_TESTS) $(COVERED)
	$(BIN)/python -m pytest tests/unit tests/test_*.py $(COVERED_TESTS:%=--ignore %) -n auto --dist loadfile

.PHONY: test-docs
test-docs: setup-test ## links and file names in the pages, and the pages whose commands are run (5 minutes)
	$(BIN)/python -m pytest tests/test_docs.py tests/system/e2e/test_first_hour.py

.PHONY: test-faults
test-faults: setup-test ## kill engines, trainers and nodes, fill disks, flip bits on the way of weights; and further kinds of algorithms (25 minutes)
	$(BIN)/python -m pytest tests/system/cluster tests/system/e2e -m "faults or long"

.PHONY: test-kills
test-kills: setup-test ## kill a run at 52 points of its life and compare every bit; KILLS=5 takes five, others at the next commit (half an hour)
	$(BIN)/python -m pytest -rP tests/system/e2e/test_kills.py

.PHONY: test-gpu
test-gpu: ## run NCCL, flash-attn, ZeRO-3 and vLLM on CUDA; needs a GPU, two or four for some, and fails where there is none
	@ls /dev/nvidia[0-9]* >/dev/null 2>&1 || { echo "make test-gpu: no GPU on this machine (/dev/nvidia0), so nothing was tested" >&2; exit 1; }
	@$(MAKE) --no-print-directory setup-test ACCELERATOR=gpu
	$(BIN)/python -m pytest tests/gpu

.PHONY: test-image
test-image: setup-test ## build the CPU image with buildah and look inside; as root (five minutes)
	$(BIN)/python -m pytest tests/launching/docker

.PHONY: test-launch
test-launch: setup-test ## run on Slurm, Kubernetes and Ray clusters as far as this machine can be them; as root (15 minutes)
	@failed=; $(BIN)/python -m pytest tests/launching/slurm tests/launching/kuberay || failed=1; \
	$(BIN)/python -m pytest tests/system/cluster tests/system/e2e -m launch && [ -z "$$failed" ]

.PHONY: check
check: setup-test ## check lint, formatting and types; change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: setup-test ## format the code in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: setup-test ## measure this system against TRL on this machine, and its parts against their bounds
	$(BIN)/python -m tests.benchmarks

.PHONY: lock
lock: ## resolve docker/requirements-*.txt anew from pyproject.toml
	@$(PYTHON) docker/lock.py
