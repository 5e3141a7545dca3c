# Two commands, each alone on a fresh machine with Python 3.11+, git and make:
#
#   make demo                      trains a teacher and two students, prints and draws the table
#   make demo QUERY="parse a date" the same, then ranks passages for your own query
#   make test                      lint, types, tests, doctests, examples, docs
#
# Both create .venv and install into it what they need. Variables:
#
#   PYTHON        the interpreter that .venv is made from (python3)
#   RERANK_INDEX  one more package index, for a CPU or a CUDA build of torch (environment or command line)
#   INDEX_URL     the main package index, when it is not pip's own
#   RERANK_DATA   a folder of collections; tests that need it are skipped without it

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS := --constraint constraints.txt \
	$(if $(INDEX_URL),--index-url "$$INDEX_URL") $(if $(RERANK_INDEX),--extra-index-url "$$RERANK_INDEX")

export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test lint types tests docs format clean

help:
	@sed -n 's/^#  //p' Makefile

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py $(if $(QUERY),--query "$$QUERY")

test: lint types docs tests

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

# Tests, doctests and the examples in their smallest form, file by file on two workers. They come in the order of their
# folders, so that many short files, the doctests, fill the end. ARGS goes to pytest: make tests ARGS='-m "not slow"'
tests: export HF_HUB_OFFLINE := 1
tests: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The site, in docs/_build/html; a warning is an error.
docs: $(VENV)/test.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist docs/_build docs/api *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra of setup.cfg: demo, test.
$(VENV)/%.stamp: setup.cfg setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_ARGS) --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
