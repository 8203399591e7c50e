# Every target works on a fresh machine with Python 3.11 or newer: the first step
# makes .venv from tests/requirements.lock, and is over in under a second when
# nothing changed. ENGINE=no forbids installing or starting a container engine, and
# BROWSER=no installing a browser: its tests are then skipped.

PYTHON ?= python3
BIN := .venv/bin
BOOTSTRAP := $(PYTHON) kernel_provider/setup/bootstrap.py
ARGS ?=

# Commands are looked up on PATH, as in a person's shell after activating .venv.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench soak journeys clean venv image picture

help:
	@echo "make demo    set everything up and run a notebook in the sandbox, from nothing"
	@echo "make test    all tests, in real containers   (ARGS='-k name' for some of them)"
	@echo "make check   ruff and mypy"
	@echo "make format  let ruff rewrite what it can"
	@echo "make bench   the sandbox against a local kernel, in one run"
	@echo "make soak    300 start, run, kill cycles, counting what is left behind"
	@echo "make journeys every journey in a real JupyterLab, five times in a row (TIMES=5)"
	@echo "make picture docs/walk.png anew, from a real JupyterLab"
	@echo "make clean   stop our engine; remove .venv, out and caches"

demo:
	@$(BOOTSTRAP) demo $(ARGS)

venv:
	@$(BOOTSTRAP) venv

image:
	@$(BOOTSTRAP) image

test:
	@$(BOOTSTRAP) test
	@$(IN_VENV) pytest -m "not soak" -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

picture:
	@$(BOOTSTRAP) test
	@$(IN_VENV) pytest tests/browser/test_walk.py --picture $(ARGS)

check: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: venv
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: image
	@$(IN_VENV) python tests/bench $(ARGS)

soak: export EXECUTOR_ML_SOAK_CYCLES ?= 300
soak: image
	@$(IN_VENV) pytest -m soak $(ARGS)

journeys: TIMES ?= 5
journeys:
	@$(BOOTSTRAP) test
	@for run in $$(seq $(TIMES)); do \
	    $(IN_VENV) pytest tests/browser -m "soak or not soak" $(ARGS) || exit 1; done

clean:
	@$(BOOTSTRAP) clean
