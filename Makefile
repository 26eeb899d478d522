# `make run` and `make test` are all a newcomer needs: Python 3.11 or later, with venv, and this file.
# Everything is relative, so that the folder may have blanks in its name.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.SILENT:

VENV := .venv
PYTHON := $(VENV)/bin/python
LOCKS := requirements
UV := uv
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url \
	--no-annotate --python-version 3.11 --group build pyproject.toml
PYTEST := $(PYTHON) -m pytest
# One more than there are cores: most of a test is waiting.
JOBS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))

.PHONY: help run test lint types test-faults test-servers chaos bench lock clean install-runtime install-dev

help:
	echo 'make run           install what is needed and run everything on this machine (Ctrl-C stops it)'
	echo 'make test          lint, types, import contracts and the whole test suite'
	echo 'make test-faults   the faults that take long or load the machine, and planted bugs'
	echo 'make test-servers  the tests that need the PostgreSQL and Redis of the Debian release'
	echo 'make chaos         faults of every kind under load (MINUTES=30 SEED=…)'
	echo 'make bench         measure beside other task services (ARGS="single --rounds 1"; see benchmarks/)'
	echo 'make lock          compile the lock files anew (needs uv)'
	echo 'make clean         remove the virtual environment and caches; .taskledger (data) stays'

run: install-runtime
	exec $(PYTHON) -P -m taskledger up $(ARGS)

test: lint types
	echo '==> tests (without the long ones, make test-faults, and those that want the PostgreSQL and Redis of'
	echo '    a Debian release, make test-servers)'
	$(PYTEST) -n $(JOBS) --dist loadgroup -m 'not servers and not faults' --cov --cov-report=term:skip-covered $(ARGS)

lint: install-dev
	echo '==> format and lint'
	$(PYTHON) -m ruff format --check --quiet .
	$(PYTHON) -m ruff check --quiet .
	echo '==> import contracts'
	out=$$($(VENV)/bin/lint-imports --no-logo 2>&1) || { echo "$$out"; exit 1; }

types: install-dev
	echo '==> types'
	$(PYTHON) -m mypy --no-error-summary
	$(VENV)/bin/basedpyright --level error

test-servers: install-dev
	echo "==> tests on this machine's own servers"
	TASKLEDGER_TEST_SERVERS=required $(PYTEST) -m servers --no-cov $(ARGS)

test-faults: install-dev
	echo '==> faults that take long, and planted bugs'
	$(PYTEST) -m faults --no-cov $(ARGS)

MINUTES := 30
chaos: install-dev
	$(PYTHON) -P -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: install-dev
	$(PYTHON) -P -m benchmarks $(ARGS)

lock:
	$(COMPILE) --extra embedded -o $(LOCKS)/runtime.lock
	$(COMPILE) --extra embedded --group dev -o $(LOCKS)/dev.lock
	$(COMPILE) -o $(LOCKS)/image.lock

clean:
	rm -rf $(VENV) dist build htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.taskledger/*' -prune -exec rm -rf {} +

install-runtime:
	$(call install,runtime)

install-dev:
	$(call install,dev)

# The newest Python that works. A version manager's shim may be on the PATH and yet refuse to run, and
# a distribution's Python may lack ensurepip: so each is tried.
define find_python
	for minor in 19 18 17 16 15 14 13 12 11; do \
		for python in "python3.$$minor" "/usr/local/bin/python3.$$minor" "/usr/bin/python3.$$minor" \
				"$$HOME/.pyenv/versions/3.$$minor."*/bin/python3 python3; do \
			if "$$python" -c "import sys, venv, ensurepip; v = sys.version_info; \
				sys.exit(v[:2] != (3, $$minor) or v.releaselevel != 'final')" >/dev/null 2>&1; then \
				echo "$$python"; exit; \
			fi; \
		done; \
	done
endef

# $(1): the lock. Done once: the stamp holds the locks' checksum, and the folder, which a venv cannot leave.
# What the development lock installs is enough to run, too.
define install
	set -eu; \
	stamp() { cksum $(LOCKS)/$$1.lock pyproject.toml; pwd; }; \
	for lock in $(1) dev; do \
		[ "$$(cat $(VENV)/$$lock.stamp 2>/dev/null)" != "$$(stamp $$lock)" ] || exit 0; \
	done; \
	if [ "$$(cat $(VENV)/folder 2>/dev/null)" != "$$(pwd)" ] || ! $(PYTHON) -c '' 2>/dev/null; then \
		python=$$($(find_python)); \
		if [ -z "$$python" ]; then \
			echo 'taskledger: found no Python 3.11 or later that can make virtual environments;' \
				'install one (on Debian and Ubuntu: python3 and python3-venv) and try again' >&2; \
			exit 2; \
		fi; \
		echo "Creating $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV); \
		pwd >$(VENV)/folder; \
	fi; \
	echo 'Installing $(LOCKS)/$(1).lock (once; a minute or so)'; \
	rm -f $(VENV)/*.stamp; \
	$(PYTHON) -m pip install -qq --disable-pip-version-check --require-hashes -r $(LOCKS)/$(1).lock; \
	$(PYTHON) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	stamp $(1) >$(VENV)/$(1).stamp
endef
