# Each target works as the first command on a machine that has only Python 3.11 or newer and make.

VENV := .venv
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help install serve test check bench bench-peers bench-routing eval lock

help:  ## What can be made.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

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

bench: $(INSTALLED)  ## What Relay costs, against nginx; needs two quiet CPUs, cc and about half an hour.
	python -m bench.run --output bench/results/bench.json
	python -m bench.plots bench/results/bench.json docs/img
	python -m bench.pages bench/results/bench.json docs/performance.md README.md

bench-peers: $(INSTALLED)  ## The same against other gateways, each installed into .cache/bench first; over an hour.
	python -m bench.run --peers --output bench/results/peers.json
	python -m bench.plots bench/results/peers.json docs/img
	python -m bench.pages bench/results/peers.json docs/performance.md README.md

bench-routing: $(INSTALLED)  ## Routing against LiteLLM's Router and others, simulated and over sockets; some 40 minutes.
	python -m bench.routing --output bench/results/routing.json --plot docs/img/routing.svg
	python -m bench.routing_sockets --output bench/results/routing_sockets.json --plot docs/img/routing-sockets.svg

eval: $(INSTALLED)  ## What learned budgets save, on real prompts and answers, replayed and over sockets; about five minutes.
	python -m bench.budgets --prompts ../shared/data/prompts.jsonl.gz --output bench/results/budgets.json
	python -m bench.budget_plots bench/results/budgets.json docs/img
	python -m bench.budgets_live --prompts ../shared/data/prompts.jsonl.gz --output bench/results/budgets_live.json

lock:  ## Write the lock files anew from pyproject.toml.
	scripts/lock
