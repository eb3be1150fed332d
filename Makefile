# Every target sets up what it needs: a virtual environment in $(VENV), once.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
SHELL_SCRIPTS := launch/*.sh bllpipe/slurm/*.sh tests/*/*.sh benchmarks/*.sh

.DEFAULT_GOAL := help
.PHONY: help train test test-prometheus test-report test-image test-slurm test-hosts lint docs bench throughput speed gpu gpu-accuracy chaos soak raised table questions clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 18

train: $(READY) ## train the digits on this machine; ARGS="--config configs/... --set key=value"
	$(BIN)/python -m bllpipe.launch $(ARGS)

test: $(READY) ## all tests, three files at a time; ARGS="-k name" for some
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest \
	  --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-prometheus: $(READY) ## a real Prometheus scrapes a real run; installs Debian's where it may
	tests/prometheus/install.sh
	$(BIN)/python -m pytest -v -rP -m prometheus tests/prometheus $(ARGS)

test-report: $(READY) ## the report in a real Chromium: light, dark, on a phone; installs Debian's where it may
	tests/report/install.sh
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	$(BIN)/python -m pytest -v -rP -m browser tests/report $(ARGS)

test-image: $(READY) ## what docker build and docker run would do, in a fresh Debian: as root, 6 GB, some minutes
	tests/docker/install.sh
	$(BIN)/python -m pytest -v -rP -m "image or not image" tests/docker $(ARGS)

test-slurm: $(READY) ## install SLURM if it may, start one here, run the job scripts in it: ten minutes
	tests/slurm/install.sh
	$(BIN)/python -m pytest -v -rP -m slurm tests/slurm $(ARGS)

test-hosts: $(READY) ## torchrun over two and three hosts, network namespaces of this machine: as root, some minutes
	$(BIN)/python -m pytest -v -rP -m hosts tests/hosts $(ARGS)

lint: $(READY) ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v shellcheck >/dev/null; then shellcheck -x $(SHELL_SCRIPTS); else echo "no shellcheck here"; fi

docs: $(READY) ## write the tables of keys in docs/configuration.md, and configs/digits.yaml, anew from the code
	$(BIN)/python -m scripts.config_reference docs/configuration.md configs/digits.yaml

bench: $(READY) ## time the messages between two processes; ARGS="--json FILE"
	$(BIN)/python -m benchmarks.messages $(ARGS)

throughput: $(READY) ## images/s of every engine; ARGS="--work emulated --blocks 4 --engines bll 1f1b --json FILE"
	$(BIN)/python -m benchmarks.throughput $(ARGS)

speed: $(READY) ## every measurement of speed, an hour on a machine that does nothing else; ARGS="DIRECTORY [CIFAR.npz]"
	PATH="$(abspath $(BIN)):$$PATH" benchmarks/speed.sh $(or $(ARGS),runs)

gpu: $(READY) ## one GPU, five minutes: does it work, tests, rates of BP and BLL; ARGS="OUT", or ARGS="OUT --device cpu --quick"
	PYTHON="$(abspath $(BIN))/python" benchmarks/first.sh $(or $(ARGS),runs/gpu)

gpu-accuracy: $(READY) ## five more: BP and BLL for the same epochs; ARGS="OUT cifar10 --npz data/cifar10.npz"
	PYTHON="$(abspath $(BIN))/python" benchmarks/second.sh $(or $(ARGS),runs/gpu cifar10)

chaos: $(READY) ## kill -9 a hundred times, does every run end in the same bits? ARGS="--kills 100 --seed 0 --workers 2"
	$(BIN)/python -m benchmarks.chaos $(ARGS)
	$(BIN)/python -m benchmarks.chaos.files

soak: $(READY) ## 200 restarts and half an hour: does anything grow?
	$(BIN)/python -m benchmarks.soak $(ARGS)

raised: $(READY) ## every raise that no test runs into
	$(BIN)/python -m tests.raised $(ARGS)

table: $(READY) ## methods x data x seeds, to be continued; ARGS="--size small --data-path data/cifar10.npz --budget 60"
	$(BIN)/python -m benchmarks.table run $(ARGS)

questions: $(READY) ## variants x seeds; ARGS="benchmarks/questions/heads.yaml --data-path data/cifar10.npz"
	$(BIN)/python -m benchmarks.experiments run $(ARGS)

clean: ## remove the environment and caches; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

# torch and torchvision come in one call, so that pip takes two that belong together
$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'torch>=2.10' torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
