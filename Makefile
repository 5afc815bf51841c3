# Everything starts from a fresh clone: each target sets up what it needs in .venv.

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install --disable-pip-version-check --quiet
READY := $(VENV)/.ready
SAMPLE := tests/data/demo.root
NVCC := $(shell command -v nvcc)

# The one torch of another version than constraints.txt says: PyPI's build for the CUDA of the nvcc at hand.
CUDA_VENV := .venv-cuda
CUDA_TORCH := 2.14.1
CUDA_READY := $(CUDA_VENV)/.torch-$(CUDA_TORCH)
CUDA_PYTHON := $(CUDA_VENV)/bin/python

.PHONY: help setup demo test docs lint plotly cuda-check cuda clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY) ## Create .venv and install sparsereco with all extras, at the versions of constraints.txt

demo: $(READY) ## Reconstruct the sample that ships with the project; report and event display in demo/
	@mkdir -p demo
	$(PYTHON) tools/reco.py vertex $(SAMPLE) -o demo/reco.root -f
	$(PYTHON) tools/evaluate.py vertex demo/reco.root $(SAMPLE) -o demo/report -f
	$(PYTHON) tools/display.py vertex demo/reco.root --hits $(SAMPLE) -o demo/event.html -f

test: $(READY) ## Run the test suite
	$(PYTHON) -m pytest

docs: $(READY) ## Build the pages of docs/ into build/docs; a warning is an error
	$(PYTHON) -m sphinx -q -W --keep-going docs build/docs

lint: $(READY) ## Check style (ruff, clang-format, rumdl), types (mypy) and spelling; nothing is changed
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy sparsereco
	$(VENV)/bin/clang-format --dry-run -Werror $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu)
	$(VENV)/bin/codespell $$(git ls-files)
	$(VENV)/bin/rumdl check --no-cache .

plotly: ## Build the part of plotly.js that displays draw with anew, by npm; it ships in sparsereco/display/
	@mkdir -p build/plotly
	cp tools/plotly/* build/plotly
	cd build/plotly && npm install --no-audit --no-fund && node build.cjs
	cp build/plotly/plotly.min.js build/plotly/plotly.licences.txt sparsereco/display

cuda-check: $(READY) ## Compile the CUDA kernels with nvcc alone, and check registers and shared memory; no GPU needed
	$(PYTHON) -m pytest -q -rPs tests/test_cuda_kernels.py

cuda: $(if $(NVCC),$(CUDA_READY)) ## Build all against a CUDA build of torch (5 GB, in .venv-cuda) and see that it registers; no GPU needed
ifdef NVCC
	@CUDA_HOME=$$(realpath "$$(nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#[$$] TOP=//p')") \
	CPLUS_INCLUDE_PATH=$$(echo $(CURDIR)/$(CUDA_VENV)/lib/python*/site-packages/nvidia/cu[0-9]*/include) \
	TORCH_CUDA_ARCH_LIST="8.0;9.0" SPARSERECO_CUDA=1 PATH="$(CURDIR)/$(CUDA_VENV)/bin:$$PATH" \
	  $(CUDA_PYTHON) setup.py -q build_ext --build-temp build/cuda/objects --build-lib build/cuda
	@$(CUDA_PYTHON) csrc/cuda/check_registered.py build/cuda/sparsereco/_C.abi3.so
else
	@echo "cuda: skipped, there is no nvcc on the PATH"
endif

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(CUDA_VENV) build demo *.egg-info sparsereco/_C*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The torch that is installed first is the one that torch-scatter and sparsereco._C are built against.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/*/*.*) | $(PYTHON)
	@command -v c++ >/dev/null || { echo "setup: a C++20 compiler is needed: apt-get install g++" >&2; exit 1; }
	@echo "setup: installing torch"
	@$(PIP) -c constraints.txt torch
	@$(PIP) -c constraints.txt ninja numpy setuptools wheel
	@echo "setup: installing sparsereco (torch-scatter is compiled: about 5 minutes the first time)"
	@$(PIP) -c constraints.txt --no-build-isolation -e ".[all]"
	@touch $@

$(CUDA_READY): constraints.txt | $(CUDA_PYTHON)
	@echo "cuda: installing torch $(CUDA_TORCH)"
	@sed '/^torch==/d' constraints.txt >$(CUDA_VENV)/constraints.txt
	@$(CUDA_PYTHON) -m pip install --disable-pip-version-check --quiet -c $(CUDA_VENV)/constraints.txt \
	  torch==$(CUDA_TORCH) ninja numpy setuptools wheel
	@touch $@

$(PYTHON) $(CUDA_PYTHON):
	@for python in python3.11 python3.10 python3; do \
	  if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null; then \
	    echo "setup: creating $(@D:/bin=) with $$($$python --version)"; exec $$python -m venv $(@D:/bin=); \
	  fi; \
	done; \
	if command -v uv >/dev/null; then exec uv venv --seed --python 3.11 $(@D:/bin=); fi; \
	echo "setup: Python 3.11 is needed: apt-get install python3.11-venv python3.11-dev, pyenv install 3.11, or install uv" >&2; \
	exit 1
