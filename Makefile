# Every target does all its set-up: it makes .venv from a Python >= 3.11 and installs into it what it
# needs, once. Another interpreter: make test PYTHON=/path/to/python3.13

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# The newest one with eager tasks, for `make test-loops`; it may be another than $(PYTHON).
NEWEST ?= $(shell for python in python3 python3.14 python3.13 python3.12 "$$HOME"/.pyenv/versions/3.*/bin/python; do \
	$$python -c 'import sys; sys.version_info >= (3, 12) and print("%d.%02d" % sys.version_info[:2], sys.executable)' \
		2>/dev/null; done | sort | tail -n 1 | cut -d ' ' -f 2)

# What the event loop can break: the kernel, the runtime, and the contract on every store.
LOOP_TESTS := tests/test_actor.py tests/test_actor_lives.py tests/test_supervisor_kernel.py tests/test_tasks.py \
	tests/test_clock.py tests/runtime tests/conformance

VENV := .venv
NEWEST_VENV := .venv-newest
PEERS := .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# pyright runs on the Node.js that is installed with it, not on the machine's, which may be too old.
export PYRIGHT_PYTHON_GLOBAL_NODE := 0
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-loops check lint types package docs picture bench bench-quick format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Watch sessions run real commands, get killed, and carry on
	$(BIN)/asm-runtime demo

test: $(VENV)/.installed-dev ## Run the tests, on all cores
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

.SECONDEXPANSION: # so that nobody looks for Pythons but the target that wants one
test-loops: $(VENV)/.installed-dev $$(if $$(NEWEST),$(NEWEST_VENV)/.installed) ## Run a part of them on uvloop and with eager tasks, on the newest Python
	@$(if $(NEWEST),$(NEWEST_VENV)/bin/python --version,echo "Left out: eager tasks. No Python 3.12 or later is here; name one with NEWEST=...")
	$(if $(NEWEST),$(NEWEST_VENV)/bin/python,$(BIN)/python) -m pytest --numprocesses auto --dist worksteal \
		--event-loop uvloop $(if $(NEWEST),--event-loop eager) $(LOOP_TESTS)

check: lint types test package ## Everything that must be green before a commit lands

lint: $(VENV)/.installed-dev ## Lint, and check the format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev $(VENV)/.installed-bench ## mypy and pyright, both strict
	$(BIN)/mypy
	$(BIN)/pyright

package: $(VENV)/.installed-dev ## Build the wheel and use it from outside the checkout
	$(BIN)/python .ci/wheel_smoke.py

docs: $(VENV)/.installed-docs ## Build the pages, the reference included, into build/docs; a warning is an error
	$(BIN)/mkdocs build --strict --quiet

picture: $(VENV)/.installed-docs ## Run the demo and draw the picture of it that the README shows
	$(BIN)/python .ci/draw_demo.py

bench: $(VENV)/.installed-bench $(PEERS)/.installed ## Run all benchmarks; writes benchmarks/results/
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.installed-bench ## Run them briefly: that they work, not what they measure
	$(BIN)/python -m benchmarks --quick

format: $(VENV)/.installed-dev ## Put the code in its format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(NEWEST_VENV) $(PEERS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found: name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'pip>=25.1' # the first that knows dependency groups
	$(PIP) install --editable '.[cli,fast,otel]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --group test --group lint
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) install --group bench
	@touch $@

$(NEWEST_VENV)/.installed: pyproject.toml
	$(NEWEST) -m venv --clear $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip --disable-pip-version-check --quiet install 'pip>=25.1'
	$(NEWEST_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[cli,fast,otel]' --group test
	@touch $@

# Without them the benchmarks still run, and say what they leave out.
$(PEERS)/.installed: benchmarks/peers/requirements.txt
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found: name one with PYTHON=..." >&2; exit 1; }
	@rm -rf $(PEERS)
	@$(PYTHON) -m venv $(PEERS) \
		&& $(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install -r $< && touch $@ \
		|| { rm -rf $(PEERS); echo "the peers cannot be installed: measuring without them" >&2; }

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) install --group docs
	@touch $@
