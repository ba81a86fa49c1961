# Everything runs in .venv, which the first target that needs it makes. PYTHON may name another
# interpreter: make demo PYTHON=python3.12
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: soak demo test test-slow test-all check format bench clean

## demo: the best classifier of the digits that scikit-learn carries within a minute, and its report
demo: $(VENV)/core
	$(BIN)/vidi fit digits --minutes 1 --out studies/demo
	@echo "open studies/demo/final/report.html in a browser"

## test: the default tests, under ten minutes on two cores
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

## test-slow: kills at random moments, the report in a real browser, a long fuzz of the decoder, the largest networks
test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m "slow and not gpu" --ignore=tests/zoo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow and not gpu" tests/zoo

## test-all: both
test-all: $(VENV)/dev
	$(BIN)/python -m pytest -m "not gpu"

KILLS ?= 1000
TUNE_KILLS ?= 100
## soak: kill a training at random moments, KILLS times, and compare every byte of what it ends with;
## kill a search TUNE_KILLS times and compare its trials; ask a server 50,000 times and look at its memory
soak: $(VENV)/dev
	VIDI_KILLS=$(KILLS) $(BIN)/python -m pytest -m slow tests/train/test_training.py -k random_moments
	VIDI_TUNE_KILLS=$(TUNE_KILLS) $(BIN)/python -m pytest -m slow tests/tune/test_processes.py -k random_moments
	VIDI_REQUESTS=50000 $(BIN)/python -m pytest -m slow tests/serve tests/predict

## check: formatter, linter, types
check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## bench: the measurements behind README and docs/measurements.md that need no data to be fetched
bench: $(VENV)/dev
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/loop.py digits

# torch comes first and alone: a range would let another package pull a build of several gigabytes.
$(VENV)/core: pyproject.toml constraints.txt hatch_build.py src/vidi/image/resize.c src/vidi/winograd/winograd.c
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
