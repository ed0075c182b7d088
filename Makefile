# Two commands do everything on a fresh machine, make demo and make test; make gpu-check looks at its GPU.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SEEDS ?= 0 1 2
WORKERS ?= 2
LOWEST ?= .venv-lowest

.PHONY: demo docs gpu-check test test-slow test-lowest coverage audit lint format clean

# Where this is set, as in many container images, each of the some hundred processes of the tests
# would compile torch's modules anew: 2 s of CPU time a process.
unexport PYTHONDONTWRITEBYTECODE

# Rebuilt when a dependency changes. Without --no-compile a third of the time goes into bytecode of
# 17,000 files, most of which are never imported; Python makes that of the others when it needs it.
$(VENV)/.installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[test,export]'
	touch $@

# Teacher, then KD and KD + cross-batch with the same seeds, on scikit-learn's digits. Threads that
# wait sleep: where other work shares the processor, spinning costs three times the CPU time.
demo: $(VENV)/.installed
	OMP_WAIT_POLICY=passive $(BIN)/python tools/compare.py \
		--teacher configs/digits/demo/teacher.yaml \
		--cfg configs/digits/demo/kd.yaml configs/digits/demo/crossbatch_kd.yaml \
		--seeds $(SEEDS) --workers $(WORKERS)

# On one GPU, in ten minutes: the tests that need it, and what steps, epochs and fleets take there.
# Writes gpu-check.json and gpu-check.md. GPU_CHECK=--device cpu runs it without one.
GPU_CHECK ?= --device cuda
gpu-check: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu_check.py $(GPU_CHECK)

# The tests of a file stay in one process, which makes what they share once.
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

# Everything, also the proofs on many cases, of which "make test" has one each.
test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --hypothesis-profile thorough

# The oldest versions that requirements.txt and pyproject.toml allow; Python 3.10 or 3.11 has wheels of all.
# Deprecations are not looked at: old releases here meet new ones of what they need themselves. An old
# hypothesis looks for who holds its generator, whom tests/conftest.py hides from the garbage collector.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n $(WORKERS) -m "not slow" \
		-W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning \
		-W "ignore:'onnxscript:FutureWarning" \
		-W ignore::hypothesis.errors.HypothesisWarning

$(LOWEST)/.installed: requirements.txt pyproject.toml
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	grep -ohE '[A-Za-z0-9_.-]+(\[[a-z,]+\])?>=[0-9.]+' requirements.txt pyproject.toml \
		| sed 's/\[.*\]//; s/>=/==/' > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(LOWEST)/constraints.txt -e '.[test,export]'
	touch $@

# build/site/index.html, which opens without a server.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

coverage: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" --cov=mdistiller --cov-fail-under=90 \
		--cov-report=term-missing:skip-covered

# Needs a network that reaches an advisory service; strict, or else it succeeds without one.
audit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)/frozen.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps -r $(VENV)/frozen.txt

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) .coverage .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
