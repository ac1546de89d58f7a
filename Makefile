# Two commands do everything on a fresh machine with Python 3.11+: make demo, make test.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs bench bench-quick clean

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(BIN)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("fairgate needs Python 3.11 or newer: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "installing fairgate into $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(BIN)/.test-ready: $(BIN)/.ready
	@echo "installing test tools, a PostgreSQL and a Redis into $(VENV), once"
	@$(BIN)/python -m pip install --quiet --group test --group lint --group types
	@touch $@

demo: $(BIN)/.ready        ## the main job on the embedded default (DEMO_ONCE=1: check it and exit)
	@exec $(BIN)/fairgate demo $(if $(DEMO_ONCE),--once)

test: $(BIN)/.test-ready   ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

lint: $(BIN)/.test-ready   ## formatting and lint alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.test-ready  ## the type checker alone
	$(BIN)/mypy

$(BIN)/.docs-ready: $(BIN)/.ready
	@echo "installing mkdocs into $(VENV), once"
	@$(BIN)/python -m pip install --quiet --group docs
	@touch $@

docs: $(BIN)/.docs-ready   ## renew what the code says in docs/, then build the site strictly into site/
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/pictures.py
	$(BIN)/python docker/grafana/dashboard.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(BIN)/.test-ready  ## fairgate beside all other gateways, every scenario (an hour and a half; BENCH_ARGS)
	$(BIN)/python -m bench full $(BENCH_ARGS)

bench-quick: $(BIN)/.test-ready  ## three scenarios beside nginx (four minutes; BENCH_ARGS)
	$(BIN)/python -m bench quick $(BENCH_ARGS)

clean:           ## remove what the targets made
	rm -rf $(VENV) .tox site build dist
