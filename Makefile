# make demo: from a bare checkout to images.   make test: every check.   make lock: new exact versions.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(shell command -v $(p) 2>/dev/null)))
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/cm3leon
DEMO := --config=examples/digits/demo.py --workdir=runs/demo

.PHONY: env demo test test-fast lint lock clean

env: $(VENV)/ready

# Exact versions where the lock file is made for this Python, the ranges of setup.py elsewhere.
$(VENV)/ready: setup.py requirements.lock
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; \
	  then echo "installing the exact versions of requirements.lock (about 3 GB with TensorFlow)"; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock && \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .; \
	  else echo "installing from the ranges of setup.py"; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[data,check]'; fi
	@touch $@

# Parity with transformers is tested against PyTorch, which nothing else needs: 3 GB with CUDA where a GPU might be.
$(VENV)/torch: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@touch $@

demo: env
	$(RUN) train-text-tokenizer $(DEMO)
	$(RUN) train-image-tokenizer $(DEMO)
	$(RUN) prepare $(DEMO)
	$(RUN) train $(DEMO)
	$(RUN) evaluate $(DEMO)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(VENV)/torch
	$(BIN)/python -m pytest tests -n 2 --dist=worksteal

test-fast: env $(VENV)/torch
	$(BIN)/python -m pytest tests -n 2 --dist=worksteal -m 'not slow'

# PyTorch and what only it needs are left out: the demo does without.
lock: env
	{ echo '# Exact versions for Python 3.11 on a CPU: all that the demo needs, and the tests but PyTorch. Renew with: make lock'; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -vE '^(uv|torch|triton|sympy|mpmath|networkx|(nvidia|cuda)-.*)=='; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
