# Each target works as the first command on a machine that has only Python 3.11 or newer and make.

VENV := .venv
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help install serve test check lock

help:  ## What can be made.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED)  ## .venv with Relay and all it needs.

$(INSTALLED): scripts/install requirements-dev.lock pyproject.toml
	@scripts/install
	@touch $@

serve: $(INSTALLED)  ## A small real model and Relay in front of it, on loopback. Ports: make serve ARGS=--help
	@exec python scripts/demo.py $(ARGS)

test: $(INSTALLED)  ## All tests. One of them: make test ARGS=tests/wire/test_sse.py
	pytest $(ARGS)

check: $(INSTALLED)  ## Lint, types, import rules, docs against code.
	@scripts/check

lock:  ## Write the lock files anew from pyproject.toml.
	scripts/lock
