# Every target sets up its own environment from the pinned constraints: `make demo` works in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
# Where torch comes from, if not from the default package index, e.g. https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help env demo reproduce test lint format types bench clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(INSTALLED)  ## Create the environment from constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e ".[dev]"
	touch $@

demo: $(INSTALLED)  ## Run the whole method on the embedded sample, offline
	$(OFFLINE) $(BIN)/optidel demo

reproduce: $(INSTALLED)  ## Run a small grid of evidence on the embedded sample, offline
	$(OFFLINE) $(BIN)/optidel reproduce --config recipes/configs/sample.yaml

# Threads that wait without spinning: beside another busy process the suite is many times slower else.
test: $(INSTALLED)  ## Run every test, offline
	$(OFFLINE) OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist loadfile

lint: $(INSTALLED)  ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)  ## Mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)  ## Check types
	$(BIN)/mypy

bench: $(INSTALLED)  ## Measure speed; results go to benchmarks/
	$(BIN)/pip install --quiet -c constraints.txt -e ".[bench]"
	for script in benchmarks/bench_*.py; do $(OFFLINE) $(BIN)/python $$script || exit 1; done

clean:  ## Remove the environment, caches and runs/
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
