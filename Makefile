# `make demo` and `make test` install everything first. `make` lists all targets.
VENV   ?= .venv
PY     ?= python3
EXTRAS ?= dev
PYTHON  = $(VENV)/bin/python
# processes start in half the time from compiled bytecode, which some environments turn off
export PYTHONDONTWRITEBYTECODE =
# uv does not read pip's configuration: pass pip's settings to it (usually all empty)
pip_get = $(shell $(PY) -m pip config get $(1) 2>/dev/null)
FIND_LINKS  := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS),$(call pip_get,global.find-links))
INDEX_URL   := $(or $(UV_DEFAULT_INDEX),$(UV_INDEX_URL),$(PIP_INDEX_URL),$(call pip_get,global.index-url))

.PHONY: help setup demo test test-slow test-cuda lint format docs dist clean

help: ## list all targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 10

setup: $(VENV)/.ok ## create .venv and install im2wav with everything that the demo and the tests use

$(VENV)/.ok: pyproject.toml constraints.txt .ci/cpu_torch.py
	@$(PY) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 10) <= v[:2] < (3, 14) else \
		f"im2wav needs Python 3.10 to 3.13, and $(PY) is {v.major}.{v.minor}: use another one, for example make setup PY=python3.13")'
	$(PY) -m venv $(VENV)
	$(PYTHON) -m pip install -q "uv>=0.5"
	$(if $(FIND_LINKS),UV_FIND_LINKS="$(FIND_LINKS)") $(if $(INDEX_URL),UV_DEFAULT_INDEX="$(INDEX_URL)") \
		VIRTUAL_ENV="$(abspath $(VENV))" $(VENV)/bin/uv pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	$(PYTHON) .ci/cpu_torch.py
	touch $@

demo: setup ## train three small models on the shipped pairs and write runs/demo/index.html (about 5 minutes on 2 CPU cores)
	$(PYTHON) -m im2wav.demo $(ARGS)

test: setup ## run the tests (needs 2 CPU cores, no GPU)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" $(ARGS)

test-slow: setup ## run what `make test` leaves out: whole programs, sweeps by launchers, the rest of the simulated card
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not gpu" $(ARGS)

test-cuda: setup ## run the GPU tests: on a simulated card (needs g++), and on a real GPU if there is one
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile tests/cuda tests/gpu $(ARGS)

lint: setup ## run ruff and mypy
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

format: setup ## apply ruff's automatic fixes
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

dist: setup ## build the sdist and the wheel in dist/ and check them; the version is that of the git tag
	rm -rf dist && $(PYTHON) -m build && $(PYTHON) -m twine check --strict dist/*

docs: export NO_MKDOCS_2_WARNING = 1
docs: setup ## build the documentation as a site in site/; broken links and missing references are errors
	$(PYTHON) -m mkdocs build --strict $(ARGS)

clean: ## remove caches and build products; keeps runs/ and data/
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
