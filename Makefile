# What newcomers, developers and CI run. All that it installs lies in .venv, .venv-vllm, .venv-audit and .bench.
PYTHON ?= python3
# what `make vllm` serves, and any further options of `vllm serve`
MODEL ?= Qwen/Qwen3-4B-Instruct-2507
VLLM_PORT ?= 8000
VLLM_OPTIONS ?=
SEEDS ?= 5
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
UV := uv==0.13.9
AUDIT := pip-audit==2.10.1
LOCKED := --no-deps --only-binary :all: --require-hashes -r requirements.lock

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-slow test-gpu test-vllm test-chaos test-compose bench-ledger bench-llm bench-quality \
	bench-train bench-watch vllm lint format lock audit clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "Another Python than python3: make PYTHON=python3.12 demo. What each does: docs/development.md"

setup: $(BIN)/.installed ## make .venv from requirements.lock (the other targets do so by themselves)

demo: setup ## run the whole job on this machine and print what the training gained
	$(BIN)/fretwork demo

test: setup ## all tests but the slow ones and those that need a GPU, vLLM, a Qdrant server or Docker
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder -m "not gpu and not vllm and not qdrant and not compose and not slow"

test-slow: setup ## those that take too long to run often: a second round with a trained embedder, workers that drain
	$(BIN)/python -m pytest -m slow

test-unit: setup ## the fast tests, without servers
	$(BIN)/python -m pytest tests/unit

test-gpu: setup ## the tests that need a GPU; without one they are skipped
	$(BIN)/python -m pytest -m gpu

test-vllm: setup ## the tests against the vLLM servers at FRETWORK_TEST_VLLM_URL and FRETWORK_TEST_VLLM_EMBED_URL
	@test -n "$$FRETWORK_TEST_VLLM_URL$$FRETWORK_TEST_VLLM_EMBED_URL" || { echo "error: set FRETWORK_TEST_VLLM_URL to a vLLM" \
		"server's address, http://127.0.0.1:8000/v1 for the one that \`make vllm\` starts, or FRETWORK_TEST_VLLM_EMBED_URL" \
		"to that of one with an exported model (tests/vllm)" >&2; exit 1; }
	$(BIN)/python -m pytest -m vllm

test-chaos: setup ## runs that are harmed in every way, a line a seed: make test-chaos SEEDS=50, or CHAOS_SEED=17 for one
	CHAOS_SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/chaos

test-compose: setup ## build the images, run the stack in containers, harm it, take it down (needs Docker; ten minutes)
	$(BIN)/python -m pytest -m compose

bench-llm: setup ## measure the LLM teacher: figures to benchmarks/results/llm.json (about half an hour, on a quiet machine)
	$(BIN)/python -m benchmarks.llm

bench-ledger: setup ## measure the ledger at a million records against ten thousand: benchmarks/results/ledger.json
	$(BIN)/python -m benchmarks.ledger

bench-watch: setup ## measure what watching costs at a million items: figures to benchmarks/results/watch.json
	$(BIN)/python -m benchmarks.watch

bench-train: setup ## measure the trainer beside sentence-transformers': figures to benchmarks/results/train.json
	$(BIN)/python -m benchmarks.train

bench-quality: setup ## measure what training is worth on SCIFACT=, CRANFIELD=, DEMO=yes, BANKING77=, STSB=: .../quality.json
	$(BIN)/python -m benchmarks.quality $(if $(SCIFACT),--scifact "$(SCIFACT)") $(if $(CRANFIELD),--cranfield "$(CRANFIELD)") \
		$(if $(DEMO),--demo) $(if $(BANKING77),--banking77 "$(BANKING77)") $(if $(STSB),--stsb "$(STSB)") $(if $(MIXED),--mixed)

vllm: .venv-vllm/.installed ## serve MODEL with vLLM on this machine's GPU: make vllm MODEL=NAME-OR-FOLDER
	.venv-vllm/bin/vllm serve "$(MODEL)" --host 127.0.0.1 --port $(VLLM_PORT) $(VLLM_OPTIONS)

lint: setup ## style, format, strict types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(BIN)/python ## pin anew what pyproject.toml asks for; versions already locked stay
	$(PIP) install --quiet "$(UV)"
	$(BIN)/uv pip compile pyproject.toml --extra local --extra dev --output-file requirements.lock --quiet \
		--universal --python-version 3.11 --no-python-downloads --generate-hashes --no-emit-package torch \
		--custom-compile-command "make lock"
	$(BIN)/uv pip compile pyproject.toml --extra vllm --output-file requirements-vllm.lock --quiet --no-config \
		--universal --python-version 3.11 --no-python-downloads --generate-hashes \
		--custom-compile-command "make lock"

# --strict: a package that the service does not know fails, or an index's mirror would pass everything unseen
audit: .venv-audit/.installed ## ask PyPI what vulnerabilities are known of the locked packages (needs the network)
	@status=0; for file in requirements.lock requirements-torch.txt requirements-vllm.lock; do echo "$$file:"; \
		.venv-audit/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps -r $$file || status=1; done; exit $$status

clean: ## remove the environments and every cache; .fretwork, where your runs are, stays
	rm -rf .venv .venv-vllm .venv-audit .bench .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON) here: install Python 3.11 to 3.14," \
		"or name one, as in \`make PYTHON=python3.12 demo\`" >&2; exit 1; }
	@$(PYTHON) scripts/check_python.py
	$(PYTHON) -m venv --clear .venv

# The lock is complete, so nothing is resolved (--no-deps). uv installs it in an eighth of pip's time; where uv cannot be
# had or finds no package, as behind a mirror that only pip's configuration names, pip does it. torch comes next, with its
# CUDA packages where it has any, by pip. The project itself goes last and offline: it fails if pyproject.toml asks for
# what is not locked. Bytecode is made on all cores at once; left to the first import it would never be kept where
# PYTHONDONTWRITEBYTECODE is set, as in many containers, and importing torch takes seconds longer each time. A few
# packages carry files of other Pythons.
$(BIN)/.installed: requirements.lock requirements-torch.txt pyproject.toml | $(BIN)/python
	@echo "installing into .venv: about 340 MB, then torch ..."
	@{ $(PIP) install --quiet "$(UV)" && $(BIN)/uv pip install --python $(BIN)/python --quiet $(LOCKED); } \
		|| $(PIP) install --quiet --no-compile $(LOCKED) \
		&& $(PIP) install --no-compile --only-binary :all: -r requirements-torch.txt \
		|| { echo "error: the packages could not be installed: where pip found no matching distribution, use Python 3.11" \
		"to 3.14 on Linux with glibc or macOS on ARM; else look at the network and the disk, and run make again" >&2; exit 1; }
	@$(PIP) install --quiet --no-index --no-build-isolation --editable ".[local,dev]" \
		|| { echo "error: pyproject.toml asks for what requirements.lock does not hold: run \`make lock\`" >&2; exit 1; }
	@$(BIN)/python -m compileall -qq -j 0 -x '/(tests|mteb/tasks|mteb/models)/' .venv/lib || true
	@touch $@

# The lock is complete, torch and CUDA included; vLLM has wheels for Linux alone.
.venv-vllm/.installed: requirements-vllm.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON) here" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv-vllm
	@echo "installing vLLM into .venv-vllm: several GB ..."
	.venv-vllm/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps --only-binary :all: \
		--require-hashes -r requirements-vllm.lock
	@touch $@

.venv-audit/.installed: Makefile
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON) here" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check --no-input install --quiet "$(AUDIT)"
	@touch $@
