# The two commands of the README: `make demo` and `make test`. Everything comes from PyPI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What fails, and passes when it runs once more, is listed as RERUN: it is to be mended, and does not
# hold up all the others meanwhile. `make test RERUNS=0` fails at once.
RERUNS ?= 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --reruns $(RERUNS) -rR
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Two test processes share two cores: PyTorch's two threads in each would wait for one another.
test test-all: export OMP_NUM_THREADS ?= 1

.PHONY: demo docs notebooks test test-all lint types clean venv
.DEFAULT_GOAL := test

$(VENV)/.demo: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[tensorflow,datasets,report]'
	touch $@

$(VENV)/.dev: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.demo

venv: $(VENV)/.dev

demo: $(VENV)/.demo
	$(BIN)/hpf demo --output demo

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W -n --keep-going docs docs/_build

# Executes the sources in notebooks/ and writes the .ipynb files, with their outputs.
notebooks: $(VENV)/.dev
	$(BIN)/python notebooks/execute.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

test: lint types
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not slow"
	KERAS_BACKEND=jax $(PYTEST) -m "not slow and not pure"
	KERAS_BACKEND=torch $(PYTEST) -m "not slow and not pure"

# In two parts under TensorFlow, whose processes give memory back when they end.
test-all: test
	KERAS_BACKEND=tensorflow $(PYTEST) -m slow tests/[a-d]*/
	KERAS_BACKEND=tensorflow $(PYTEST) -m slow tests/[e-z]*/ tests/test_*.py
	KERAS_BACKEND=jax $(PYTEST) -m "slow and not pure"
	KERAS_BACKEND=torch $(PYTEST) -m "slow and not pure"

clean:
	rm -rf $(VENV) build dist demo docs/_build *.egg-info
