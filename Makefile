# The first target that needs the environment creates it in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Where `make chaos` starts, and how many runs in one process and on Ray it disturbs: SEED=17 LOCAL=1 RAY=0 repeats one.
SEED ?= 0
LOCAL ?= 200
RAY ?= 12
JOBS ?= 2

.PHONY: demo test test-all chaos lint format clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV), once: this takes minutes'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)

# The first run is runs/demo, later ones are runs/demo-2, runs/demo-3, ...
demo: $(STAMP)
	$(BIN)/python launch/grpo.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# worksteal keeps a file's tests together until one process runs out of work: no long file is left to the end.
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# After the fast tests, run the slow ones one by one: they start Ray clusters and kill parts of them.
test-all: test
	$(BIN)/python -m pytest -m slow

# Kill, hang and starve small runs at random points, and check that each ends as if nothing had happened.
chaos: $(STAMP)
	$(BIN)/python tests/chaos/chaos.py --seed $(SEED) --local $(LOCAL) --ray $(RAY) --jobs $(JOBS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
