# make setup | demo | test | lint | bench | clean. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.DELETE_ON_ERROR:
.PHONY: setup install demo test lint bench clean

setup: $(STAMP)
	@:

# The stamp is a copy of the pyproject.toml that was installed. The package itself is installed in place, so
# only a change of that file is a reason to run pip again (a mere new date of it is not: pip needs a network).
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info < (3, 14); sys.exit(not ok and "error: $(PYTHON) is Python %d.%d; Sightline needs 3.10 to 3.13: make setup PYTHON=/path/to/python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@if cmp -s pyproject.toml $@; then touch $@; else $(MAKE) --no-print-directory install; fi

install:
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing Sightline and its libraries into $(VENV) (once; some minutes)"
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable ".[demo,video,dev]"
	@cp pyproject.toml $(STAMP)

demo: setup
	@$(BIN)/sightline demo

# Two processes of one thread each: on two cores that is twice as fast as one of two, and does not suffer when another
# program takes part of a core, for threads that share a loop wait for each other.
TESTS ?= --numprocesses 2 --dist loadfile
test: setup
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every measurement there is, one after the other, on an idle machine; each says what it writes.
bench: setup
	@for script in benchmarks/*.py; do \
		test -e "$$script" || { echo "no benchmark yet"; break; }; \
		echo "== $$script"; HF_HUB_OFFLINE=1 $(BIN)/python "$$script" || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
