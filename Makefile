# `make demo` and `make test` set up all that they need. Python 3.11 or newer, pip and make are enough.
PYTHON ?= python3
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
# Venvs of programs that the tests run, apart from ours since what they pin disagrees with it.
LOCALSTACK := .cache/localstack
CLI := .cache/cli
DOCKER := .cache/docker
DEPLOY := .cache/deploy
KUBERNETES := .cache/kubernetes

# The tests start some thousand Python processes: each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup setup-tests setup-postgres demo test check bench chaos simulate lock clean

help: ## list what there is to make
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 20

setup: $(VENV)/.project ## make .venv, with the locked dependencies and the project itself (editable)

TOOLS := $(LOCALSTACK) $(CLI) $(DOCKER) $(DEPLOY) $(KUBERNETES)
setup-tests: setup $(TOOLS:=/.synced) ## also make the venvs of what the tests run: LocalStack, the DataHub CLI, linters

setup-postgres: ## install Debian's PostgreSQL server if there is none (as root); the tests start their own
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || { \
	    apt-get -q update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends postgresql; }

demo: setup ## run one ingestion end to end on this machine: queue, DataHub stand-in, service, CLI
	@$(VENV)/bin/datahub-executor demo $(ARGS)

test: check setup-tests ## check, then all tests; ARGS="-k word" for some of them
	@$(PY) -m pytest --numprocesses 4 --dist loadgroup $(ARGS)

check: setup ## lint, format, types, dead code, and whether the locks are current
	$(PY) requirements/check.py
	$(PY) -m ruff check --quiet .
	$(PY) -m ruff format --quiet --check .
	$(PY) -m mypy --no-error-summary
	$(PY) -m vulture

bench: setup-tests ## measure beside the bare CLI and DataHub's executor, for ten minutes; ARGS="--help" tells more
	@$(PY) -m benchmarks $(ARGS)

chaos: setup-tests ## kill, stop and cut off four executors for five minutes; ARGS="--seed N" repeats the faults
	@$(PY) -m benchmarks.chaos $(ARGS)

simulate: setup ## a million schedules of the simulation, on all cores; ARGS="--seed N" tells one, "--schedules N" runs fewer
	@$(PY) -m tests.simulation --schedules 1000000 $(ARGS)

clean: ## remove all that make and the tools made
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name .git -prune -o -name __pycache__ -type d -exec rm -rf {} +

# --- set-up: each step leaves a stamp, and runs again only when what it read has changed --------------------------

$(VENV)/.uv: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$($(PYTHON) -V): Python 3.11 or newer is needed, try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --quiet --disable-pip-version-check --python $(PY) \
	    install --require-hashes --only-binary :all: --requirement requirements/uv.txt
	@touch $@

$(VENV)/.synced: requirements/dev.txt $(VENV)/.uv
	$(UV) pip sync --quiet --require-hashes --python $(VENV) requirements/dev.txt
	@touch $@

$(VENV)/.project: pyproject.toml $(VENV)/.synced
	$(UV) pip install --quiet --offline --python $(VENV) --no-deps --no-build-isolation --editable .
	@touch $@

.cache/%/.synced: requirements/%.txt $(VENV)/.uv
	$(UV) venv --quiet --allow-existing --python $(PY) .cache/$*
	$(UV) pip sync --quiet --require-hashes --python .cache/$* requirements/$*.txt
	@touch $@

# --- locks: without a host's name, for every Python from 3.11 on; UPGRADE=1 takes the newest releases -------------

COMPILE = $(UV) --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

# Packages whose releases the CLI's constraints name, but the index does not have: these go unconstrained.
CLI_UNCONSTRAINED := certifi|pip

lock: $(VENV)/.uv ## write requirements/*.txt anew from pyproject.toml and requirements/*.in
	$(COMPILE) pyproject.toml --output-file requirements/runtime.txt
	$(COMPILE) pyproject.toml --extra demo --group dev --constraints requirements/runtime.txt \
	    --output-file requirements/dev.txt
	echo uv | $(COMPILE) - --no-annotate --constraints requirements/dev.txt --output-file requirements/uv.txt
	$(COMPILE) requirements/localstack.in --exclude-newer 2026-02-27 --output-file requirements/localstack.txt
	$(UV) pip install --quiet --no-deps --target .cache/cli-wheel --requirement requirements/cli.in
	grep -vE '^($(CLI_UNCONSTRAINED))==' .cache/cli-wheel/datahub/constraints.txt > .cache/cli-wheel/constraints.txt
	$(COMPILE) requirements/cli.in --no-annotate --constraints .cache/cli-wheel/constraints.txt \
	    --output-file requirements/cli.txt
	$(COMPILE) requirements/docker.in --output-file requirements/docker.txt
	$(COMPILE) requirements/deploy.in --output-file requirements/deploy.txt
	$(COMPILE) requirements/kubernetes.in --output-file requirements/kubernetes.txt
