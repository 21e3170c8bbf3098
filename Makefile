# Everything a newcomer needs: `make demo` and `make test`. Both set up .venv on their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-train demo-evaluate test test-newest chaos check format clean mutants bench bench-scale bench-saliency bench-generation

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; a few minutes, mostly the download of torch)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(STAMP)  ## index a made-up corpus with the small model and hold every answer against the truth
	@$(BIN)/flashvid demo

demo-train: $(STAMP)  ## train the small demo model again, from nothing (up to 90 minutes on two cores)
	$(BIN)/python -m demo.train

demo-evaluate: $(STAMP)  ## measure the small model on held-out videos, as its card reports
	$(BIN)/python -m demo.evaluate

# One thread each: the suite's tensors are small, and threads that wait for each other cost more than they give.
# Three processes on two cores: one has all that starts a Ray (tests/conftest.py), which waits most of the time.
# Bytecode is kept whatever the environment says: hundreds of child processes would compile our modules again.
test: $(STAMP)  ## run the test suite
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not chaos" -n 3 --no-loadscope-reorder

# The library with other versions of transformers, each in a venv of its own: the newest that is known to work
# (constraints-newest.txt), then the oldest that pyproject.toml allows. NEWEST=1 takes whatever the index has
# instead of the former, our own bound ignored: what has to pass before the bound is raised.
NEWEST_VENV := .venv-newest$(if $(NEWEST),-index)
OLDEST_VENV := .venv-oldest
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
LIBRARY_TESTS := tests/parity tests/golden tests/property $(addprefix tests/unit/,compression generation inside models)

# $(call library_venv,folder,pins): all as in constraints.txt but what is pinned otherwise.
define library_venv
	@echo "Setting up $(1)"
	@$(PYTHON) -m venv $(1)
	@grep -vE "^($$(printf '%s\n' $(2) | sed 's/==.*//' | paste -sd'|'))==" constraints.txt > $(1)/constraints.txt
	@printf '%s\n' $(2) | grep -v '==$$' >> $(1)/constraints.txt
	@$(1)/bin/pip install -qq --disable-pip-version-check -c $(1)/constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	@$(1)/bin/pip install -qq --disable-pip-version-check -c $(1)/constraints.txt --editable . pytest pytest-xdist hypothesis
endef

# $(call library_tests,folder)
define library_tests
	@$(1)/bin/python -c 'import torch, transformers; print("transformers", transformers.__version__, "torch", torch.__version__)'
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(1)/bin/python -m pytest -n 2 -p no:cacheprovider $(LIBRARY_TESTS)
endef

.venv-newest/.installed: pyproject.toml constraints.txt constraints-newest.txt
	$(call library_venv,.venv-newest,$(shell grep -v '^\#' constraints-newest.txt))
	@touch $@

.venv-newest-index/.installed: pyproject.toml constraints.txt
	$(call library_venv,.venv-newest-index,transformers== tokenizers== huggingface_hub== safetensors==)
	@touch $@

$(OLDEST_VENV)/.installed: pyproject.toml constraints.txt
	$(call library_venv,$(OLDEST_VENV),transformers==$(OLDEST).0 tokenizers== huggingface_hub==)
	@touch $@

test-newest: $(NEWEST_VENV)/.installed $(OLDEST_VENV)/.installed  ## test the library with the newest transformers and with the oldest
	$(if $(NEWEST),@$(NEWEST_VENV)/bin/pip install -qq --disable-pip-version-check --upgrade transformers)
	$(call library_tests,$(NEWEST_VENV))
	$(call library_tests,$(OLDEST_VENV))

mutants: $(STAMP)  ## plant a bug in each stage, one at a time, and expect the tests to notice (some minutes)
	@$(BIN)/python -m tests.mutations

chaos: $(STAMP)  ## kill, fault and starve whole runs, locally and on a failing S3 (some ten minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/chaos tests/integration/test_cluster.py -m chaos -o addopts="-q --strict-markers --durations=15"

check: $(STAMP)  ## lint, format, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/test_architecture.py

format: $(STAMP)  ## fix what the linter can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)  ## time compress() and measure its memory; REFERENCE=checkout compares with the reference
	$(BIN)/python -m benchmarks.compression $(if $(REFERENCE),--reference $(REFERENCE)) -o out/bench/compression.json

bench-saliency: $(STAMP)  ## time saliency against the whole attention map
	$(BIN)/python -m benchmarks.saliency -o out/bench/saliency.json

bench-generation: $(STAMP)  ## time to the first token of a 7B-sized random model (needs a GPU)
	$(BIN)/python -m benchmarks.generation -o out/bench/generation.json

bench-scale: $(STAMP)  ## bookkeeping of a million videos, resuming from ten million, listing a million
	$(BIN)/python -m benchmarks.coordination -o out/bench/coordination.json
	$(BIN)/python -m benchmarks.resume -o out/bench/resume.json
	$(BIN)/python -m benchmarks.listing -o out/bench/listing.json

clean:  ## remove what was built or written by the demo
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
