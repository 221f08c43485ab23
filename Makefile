# Everything sets itself up: `make demo` and `make test` work in a fresh clone on a machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
# Small networks and probes are many times slower with two threads on a busy machine than with one.
test test-deid test-recipes study: export OMP_NUM_THREADS := 1

.PHONY: demo test test-deid test-recipes lint study figures docs clean

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'usdata needs Python 3.11 or newer'"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.run  ## simulated images -> lake -> SQL -> pretraining -> score -> demo/report.html, in a few minutes
	$(BIN)/usdata demo --out demo

test: $(VENV)/.dev  ## the whole test suite
	$(BIN)/python -m pytest -q -n 3 --dist loadfile -m "not study and not deid and not recipes"

test-deid: $(VENV)/.dev  ## de-identification whole: planted secrets in every place, 5,000 mutated files
	$(BIN)/python -m pytest -q -n 3 tests/deid tests/pipelines/test_private_dvc.py tests/pipelines/test_private_flow.py -m "not study"

test-recipes: $(VENV)/.dev  ## every recipe overfits a batch, resumes bit for bit, and gives the same under DDP
	$(BIN)/python -m pytest -q tests/training tests/test_benchmarks.py -m "not study"

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

study: $(VENV)/.dev  ## long statistical tests that `make test` leaves out
	$(BIN)/python -m pytest -q -m study

figures: $(VENV)/.dev  ## the pictures of README and docs; trains what they show, some ten minutes
	$(BIN)/python docs/make_figures.py

docs: $(VENV)/.dev  ## the generated pages of docs/
	$(BIN)/python docs/make_pages.py

clean:
	rm -rf $(VENV) demo build dist
