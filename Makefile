# Every target sets up .venv first. It needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
NAME ?=
ARGS ?=

.PHONY: demo test test-long test-fresh check bench quality chaos cluster-test stores clean

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "perfusion needs Python 3.11 or newer; this is " + sys.version)'
	@echo "setting up .venv (a few minutes the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/ready  ## train 6 products with the embedded model, render them, publish, report
	@$(BIN)/perfusion demo

# Three processes for two cores: tests that wait for a server or a time limit would leave a core idle.
test: .venv/ready  ## every test of seconds
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not hosts and not long'

test-long: .venv/ready  ## every test of minutes: kills, object stores, Ray nodes, a month of nights, the runbook, building a base
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m long

test-fresh: .venv/ready  ## property tests with ten times as many, new examples: 20 minutes; a failure prints how to repeat it
	@PERFUSION_FRESH_EXAMPLES=10 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m hypothesis --timeout 7200 $(ARGS)

check: .venv/ready  ## lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

bench: .venv/ready  ## make bench NAME=render | train | schedule | overhead | plan | noop | publish | store | export | adapters | memory | shares | scenes
	@$(BIN)/python -m benchmarks $(NAME) $(ARGS)

chaos: .venv/ready  ## 200 products on 3 Ray nodes and a real S3 server, with 36 faults; make test-long has a small share
	@$(BIN)/python -m tests.chaos $(ARGS)

cluster-test: .venv/ready  ## attach and submit on hosts of their own (network namespaces; root and iproute2), cut, lost and late
	@$(BIN)/python -m pytest -m hosts tests/behaviour/test_hosts.py
	@$(BIN)/python -m tests.hosts $(ARGS)

stores: .venv/ready  ## storage on the emulators of Azure and Google, beside the S3 server of make test-long; needs Node
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[azure,gcs]' gcp-storage-emulator==2026.7.19
	@npm install --silent --prefix .venv/azurite azurite@3.37.0
	@$(BIN)/python -m pytest tests/behaviour/test_object_stores.py

quality: .venv/ready  ## make quality [NAME=methods|pairs]: the embedded models against their targets, our method beside its rivals
ifeq ($(NAME),methods)
	@$(BIN)/python -m perfusion_ops.mini.methods --out .bench/methods $(ARGS)
else ifeq ($(NAME),pairs)
	@$(BIN)/python -m perfusion_ops.mini.pairs --out .bench/pairs $(ARGS)
else
	@$(BIN)/python -m perfusion_ops.mini.quality --out .bench/quality $(ARGS)
endif

clean:
	rm -rf .venv demo .bench
