# make install   the package with pinned dependencies, in .venv
# make demo      train a small model on a text that comes with the installation; three passages of its own
# make test      everything that a change must pass
# make lint      the part of it that runs no tests;  make format mends what a program can mend

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: install demo test lint format clean

install: .venv/installed

demo: .venv/installed
	$(BIN)/recurra train lm kjv --tokenizer words -o demo --overwrite --max-minutes 3.5
	$(BIN)/recurra generate demo --count 3 --max-tokens 80 --temperature 0.8 --seed 1
	@echo 'The learning curve is demo/learning_curve.png.'

test: lint
	$(BIN)/pytest

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) -e '.[plot,bible]'
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) -e '.[dev]'
	@touch .venv/installed $@

# Where venv cannot bring pip along (Debian without python3-venv) it leaves a broken folder behind.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo 'Recurra needs Python 3.11 or newer; name one with: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -m venv .venv > /dev/null 2>&1 \
	    || { rm -rf .venv; echo 'Cannot create .venv; on Debian and Ubuntu first run: apt install python3-venv' >&2; exit 1; }
