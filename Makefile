# `make demo` and `make test` are all that a newcomer needs; both set up everything first.
VENV   ?= .venv
PY     ?= python3
EXTRAS ?= dev
PYTHON  = $(VENV)/bin/python
# uv does not read pip's configuration: hand it what pip knows (all empty on an ordinary machine)
pip_get = $(shell $(PY) -m pip config get $(1) 2>/dev/null)
FIND_LINKS  := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(call pip_get,global.find-links))
INDEX_URL   := $(or $(UV_DEFAULT_INDEX),$(UV_INDEX_URL),$(PIP_INDEX_URL),$(call pip_get,global.index-url))

.PHONY: help setup demo test test-cuda lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 10

setup: $(VENV)/.ok ## make the virtual environment and install im2wav with everything the demo and the tests use

$(VENV)/.ok: pyproject.toml constraints.txt .ci/cpu_torch.py
	$(PY) -m venv $(VENV)
	$(PYTHON) -m pip install -q "uv>=0.5"
	$(if $(FIND_LINKS),UV_FIND_LINKS="$(FIND_LINKS)") $(if $(INDEX_URL),UV_DEFAULT_INDEX="$(INDEX_URL)") \
		VIRTUAL_ENV="$(abspath $(VENV))" $(VENV)/bin/uv pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	$(PYTHON) .ci/cpu_torch.py
	touch $@

demo: setup ## pictures to sounds in a quarter of an hour: train on the shipped pairs, then open runs/demo/index.html
	$(PYTHON) -m im2wav.demo $(ARGS)

test: setup ## run the tests (needs nothing but 2 CPU cores)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow and not gpu" $(ARGS)

test-cuda: setup ## run the GPU tests: on a simulated card (needs g++), and on a real GPU where there is one
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile tests/cuda tests/gpu $(ARGS)

lint: setup ## ruff and mypy
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

format: setup ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

clean: ## remove caches and build products; runs/ and data/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
