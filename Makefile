# Every target does its own set-up. Needed beforehand: Python >= 3.11 and make.
#
#   make toy      trains the toy, evaluates it, samples from it, prints its tally
#   make test     the tests that are not slow
#   make slow     the slow tests, which guard promises
#   make extras   the tests that need PyTorch, transformers, the TPU's compiler, SkyPilot and the like; installs them
#   make bench    this project and its peers, interleaved; installs them (PyTorch is large)
#   make lint     formatting, lint, types, floors
#   make lock     writes requirements.lock anew: the newest versions that Python 3.11 can have
#   make newest   the tests with the newest versions, on PYTHON, in .venv-newest
#   make clean    removes environments, caches and runs/toy
#
# PYTHON=python3.13 chooses the interpreter; the environment is made once, and again when
# requirements.lock, setup.cfg or pyproject.toml change.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
EXTRAS = .venv-extras
EXTRAS_STAMP = $(EXTRAS)/.installed
TORCH ?= torch
SKY = .venv-sky
SKY_STAMP = $(SKY)/.installed
SKYPILOT ?= skypilot>=0.14
# Two at a time. A file's tests stay with one worker, where they share what they compile; the last
# files are short.
AT_ONCE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
NEWEST = .venv-newest
NEWEST_STAMP = $(NEWEST)/.installed
PIP = -m pip install --quiet --disable-pip-version-check

# The first recipe line of everything that makes an environment.
NEEDS_PYTHON = @command -v $(PYTHON) >/dev/null || \
	{ echo "error: $(PYTHON) is not found; name a Python >= 3.11, as in: make PYTHON=python3.11" >&2; exit 2; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "error: $(PYTHON) is older than 3.11; name a newer one, as in: make PYTHON=python3.11" >&2; exit 2; }

.DEFAULT_GOAL := help
.PHONY: help setup toy test slow extras bench lint lock newest clean

help:
	@sed -n 's/^#   make/make/p' Makefile

setup: $(STAMP)

$(STAMP): requirements.lock setup.cfg pyproject.toml
	$(NEEDS_PYTHON)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(PIP) -r requirements.lock
	$(BIN)/python $(PIP) --quiet --no-build-isolation --no-deps -e .
	@touch $@

toy: $(STAMP)
	$(BIN)/python -m train --config=configs/toy.py --workdir=runs/toy
	$(BIN)/python -m train.evaluate --checkpoint=runs/toy
	$(BIN)/python -m train.sample --checkpoint=runs/toy
	$(BIN)/python -m model.tally --config=configs/toy.py

test: $(STAMP)
	$(BIN)/python -m pytest $(AT_ONCE) -m "not slow and not extras"

slow: $(STAMP)
	$(BIN)/python -m pytest $(AT_ONCE) -m slow

# An environment of its own: these are large. TORCH='torch==2.13.0' chooses a version.
$(EXTRAS_STAMP): requirements.lock setup.cfg pyproject.toml
	$(NEEDS_PYTHON)
	$(PYTHON) -m venv --clear $(EXTRAS)
	$(EXTRAS)/bin/python $(PIP) -r requirements.lock
	$(EXTRAS)/bin/python $(PIP) --constraint requirements.lock '$(TORCH)'
	$(EXTRAS)/bin/python $(PIP) --constraint requirements.lock --no-build-isolation -e '.[peers,tpu,gs,s3,stores,slurm,gke,stacks]'
	@touch $@

# SkyPilot by itself: its requirements contradict the locked ones.
$(SKY_STAMP): setup.cfg
	$(NEEDS_PYTHON)
	$(PYTHON) -m venv --clear $(SKY)
	$(SKY)/bin/python $(PIP) '$(SKYPILOT)'
	@touch $@

# A test that lacks its extra skips elsewhere and fails here.
extras: $(EXTRAS_STAMP) $(SKY_STAMP)
	MANYHEADS_EXTRAS=required MANYHEADS_SKY=$(abspath $(SKY))/bin/sky $(EXTRAS)/bin/python -m pytest $(AT_ONCE) -m extras

bench: $(EXTRAS_STAMP)
	$(EXTRAS)/bin/python -m bench --json=bench.json

lint: $(STAMP)
	@status=0; for check in "ruff format --check ." "ruff check ." mypy lint-imports; do \
	  echo "$$check"; $(BIN)/$$check || status=1; \
	done; exit $$status

# On the oldest Python that is supported: a newer one would choose versions that it cannot install.
lock: $(STAMP)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "error: the lock is made with Python 3.11; run: make clean; make lock PYTHON=python3.11" >&2; exit 2; }
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --upgrade --extra dev \
	  --allow-unsafe --strip-extras --no-emit-options --no-emit-index-url \
	  --no-emit-trusted-host --no-emit-find-links --output-file=requirements.lock setup.cfg

$(NEWEST_STAMP): setup.cfg pyproject.toml
	$(NEEDS_PYTHON)
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python $(PIP) --upgrade --editable ".[dev]"
	@touch $@

newest: $(NEWEST_STAMP)
	$(NEWEST)/bin/python -m pytest $(AT_ONCE) -m "not slow and not extras"

clean:
	rm -rf .venv .venv-newest .venv-extras .venv-sky bench.json .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
	  .hypothesis manyheads.egg-info build runs/toy
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
