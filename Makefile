# Every target sets itself up: a Python of 3.11 or newer and the usual registries are all it needs.
#
#   make demo    see it work: cold processes against warm workers
#   make test    all tests (those that need an engine that is absent skip, and say so)
#   make lint    ruff and mypy, strict
#   make bench   the figures, as ratios measured in one run
#   make proto   compile protos/ anew

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := core $(sort $(wildcard plugins/*))
CODE := core plugins tests examples bench protos
INSTALLED := $(VENV)/.installed

.PHONY: coverage demo test test-fast test-rpc-contract lint format bench proto wheels clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python examples/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

# The rpc room uses grpcio's private API: its tests run on both ends of the range that is allowed.
test-rpc-contract: $(INSTALLED)
	$(BIN)/python tests/core/rpc/contract.py

coverage: $(INSTALLED)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow" $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(INSTALLED)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(CODE)

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(INSTALLED)
	$(BIN)/python -m bench

proto: $(INSTALLED)
	$(BIN)/python protos/generate.py

wheels: $(INSTALLED)
	$(foreach package,$(PACKAGES),$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist ./$(package) &&) ls dist

clean:
	rm -rf $(VENV) .demo dist bench/results

$(INSTALLED): pyproject.toml constraints.txt $(addsuffix /pyproject.toml,$(PACKAGES))
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stoker needs Python 3.11 or newer; say make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev $(addprefix --editable ./,$(PACKAGES))
	touch $@
