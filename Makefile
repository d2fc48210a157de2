# The two commands of the README are `make demo` and `make test`; both make the environment first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow check format install clean

demo: install
	$(BIN)/bytelm quickstart

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

test-slow: install
	$(BIN)/pytest -m slow

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bytelm needs Python 3.11 or newer, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	@echo 'installing bytelm and what it needs into $(VENV); this takes a minute or two'
	$(BIN)/pip install --quiet --quiet --constraint constraints.txt --editable '.[xformers,s3,ray,near-duplicates,bpe,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
