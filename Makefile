# Needs make and Python 3.11 or newer with venv and pip; everything else is installed into .venv, at the versions
# pinned in constraints.txt. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
PACKAGES := packages/esper-env packages/esper-agent
# Test processes: one for each core, eight at the most (each of them loads torch).
TEST_WORKERS ?= auto
# Further options of pytest, for example: make test PYTEST_OPTIONS="-k lifecycle -x"
PYTEST_OPTIONS ?=
# --short or --every for test-portable, see tools/portable.py.
PORTABLE_OPTIONS ?=

BIN := $(VENV)/bin
SPELLED := README.md CHANGELOG.md CONTRIBUTING.md docs packages tests benchmarks tools
INSTALLED := $(VENV)/.installed
PYTEST_WORKERS := --numprocesses $(TEST_WORKERS) --maxprocesses 8 --dist worksteal
PYTEST := $(BIN)/python -m pytest $(PYTEST_WORKERS) $(PYTEST_OPTIONS)
# The development tools are listed once, in pyproject.toml; pip reads such a group only from 25.1 on.
DEV_TOOLS = $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['dev'])")

.DEFAULT_GOAL := help
.PHONY: help demo test fast test-portable lint format pins install clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 21

demo: $(INSTALLED) ## run the demonstration
	@$(BIN)/python -m esper_agent.demo

test: $(INSTALLED) ## run every test, the slow ones included
	@$(PYTEST)

fast: $(INSTALLED) ## run the tests that take seconds
	@$(PYTEST) -m "not slow"

test-portable: $(INSTALLED) ## run the numeric tests with other instruction sets
	@$(BIN)/python tools/portable.py $(PORTABLE_OPTIONS) $(PYTEST_WORKERS) $(PYTEST_OPTIONS)

lint: $(INSTALLED) ## check style, docstrings, format, spelling and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $(SPELLED)
	$(BIN)/mypy packages/esper-env/src packages/esper-agent/src tools

format: $(INSTALLED) ## fix what the style check can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED) ## make .venv and install both packages and the tools

pins: $(INSTALLED) ## write the versions that are in .venv to constraints.txt
	@grep '^#' constraints.txt > constraints.txt.new
	@$(BIN)/pip freeze --all --exclude-editable --exclude pip | sed 's/+[^ ]*$$//' >> constraints.txt.new
	@mv constraints.txt.new constraints.txt
	@touch $(INSTALLED)

clean: ## remove .venv and what the tools leave behind
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache .mypy_cache dist packages/*/dist
	find packages tests benchmarks tools -type d -name __pycache__ -prune -exec rm -rf {} +

# PIP_CONSTRAINT also holds the builds of the two packages (hatchling) to the pins, with the pip that venv bundles;
# newer ones read PIP_BUILD_CONSTRAINT for that. The path is relative because pip splits the variables at spaces.
$(INSTALLED): constraints.txt pyproject.toml $(PACKAGES:=/pyproject.toml)
	@command -v $(PYTHON) > /dev/null || { \
		echo "error: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: '$(PYTHON)' is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "error: '$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		$(BIN)/python -m pip install $(PACKAGES:%=-e ./%) -e "./packages/esper-env[fused]" $(DEV_TOOLS)
	@touch $@
