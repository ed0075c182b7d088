# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SEEDS ?= 0 1 2
WORKERS ?= 2

.PHONY: demo test lint format clean

# Rebuilt when a dependency changes.
$(VENV)/.installed: requirements.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,export]'
	touch $@

# Teacher, then KD and KD + cross-batch with the same seeds, on scikit-learn's digits.
demo: $(VENV)/.installed
	$(BIN)/python tools/compare.py --teacher configs/digits/teacher.yaml \
		--cfg configs/digits/kd.yaml configs/digits/crossbatch_kd.yaml \
		--seeds $(SEEDS) --workers $(WORKERS)

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
