# Everything a developer does with Atoll. Each target works on a fresh machine and is quick when run again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARCH := $(shell uname -m)
QEMU_PACKAGE := $(if $(filter aarch64,$(ARCH)),qemu-system-arm,qemu-system-x86)

C_SOURCES := $(wildcard guest-agent/src/*.[ch] native/*.c) hatch_build.py
HOST_PROGRAMS := qemu-system-$(ARCH)=$(QEMU_PACKAGE) mkfs.erofs=erofs-utils mmdebstrap=mmdebstrap setpriv=util-linux

.PHONY: help demo build host test unit properties chaos soak snapshots check format bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    a VM's output, on a machine where nothing is installed yet"
	@echo "make test    all tests, with real VMs"
	@echo "make unit    the tests that need no VM"
	@echo "make properties  what must hold for all, with EXAMPLES (1000) examples each"
	@echo "make chaos   random commands and kills for CHAOS_SECONDS (600), with another seed each time"
	@echo "make soak    SOAK (1000) sandboxes that come and go, of which nothing may be left"
	@echo "make snapshots  SNAPSHOT_ROUNDS (100) times back to a random moment, and kills at every stage"
	@echo "make check   format, lint, types, import rules, the agent's own tests and fuzzing"
	@echo "make bench   the figures"
	@echo "make build   the virtual environment with Atoll in it"
	@echo "make clean   remove what was built here"

demo: build host
	$(BIN)/atoll run debian -- sh -c 'uname -a; id'

# The virtual environment, with Atoll installed so that changes take effect at once.
build: $(VENV)/installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || scripts/ensure-packages no-ensurepip=python3-venv
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/tools: pyproject.toml $(VENV)/bin/python
	@echo "installing development tools"
	@$(BIN)/python -m pip install -q --group dev
	@touch $@

$(VENV)/installed: $(VENV)/tools $(C_SOURCES)
	@echo "installing atoll (compiles what is written in C)"
	@$(BIN)/python -m pip install -q --no-build-isolation -e .
	@$(BIN)/python -m compileall -q src/atoll
	@touch $@

# What Atoll needs from the host.
host:
	@scripts/ensure-packages $(HOST_PROGRAMS)

test: build host
	$(BIN)/python scripts/run_tests.py

unit: build
	$(BIN)/pytest tests/unit

properties: export EXAMPLES ?= 1000
properties: build
	$(BIN)/pytest -m hypothesis tests/unit tests/contract

chaos: export CHAOS_SECONDS ?= 600
chaos: export CHAOS_SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
chaos: export CHAOS_ROUNDS ?= $(shell expr $(CHAOS_SECONDS) / 60 + 1)
chaos: build host
	$(BIN)/pytest tests/vm/test_chaos.py tests/vm/test_docker_chaos.py

soak: export SOAK ?= 1000
soak: build host
	$(BIN)/pytest tests/vm/test_soak.py

snapshots: export SNAPSHOT_ROUNDS ?= 100
snapshots: export SNAPSHOT_SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
snapshots: build host
	$(BIN)/pytest tests/vm/test_lockstep.py tests/vm/test_snapshots.py tests/vm/test_snapshot_kills.py

check: build
	@scripts/ensure-packages clang=clang
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) -C guest-agent test fuzz PYTHON=$(abspath $(BIN))/python

format: build
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: build host
	$(BIN)/python bench/run.py

clean:
	rm -rf $(VENV) src/atoll/_bin guest-agent/build build dist
