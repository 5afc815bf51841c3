# Everything starts from a fresh clone: each target sets up what it needs in .venv.

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install --disable-pip-version-check --quiet
READY := $(VENV)/.ready
SAMPLE := tests/data/demo.root
KERNELS := $(wildcard csrc/cuda/*.cu)

.PHONY: help setup demo test lint cuda-check clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY) ## Create .venv and install sparsereco with all extras, at the versions of constraints.txt

demo: $(READY) ## Reconstruct the sample that ships with the project; report and event display in demo/
	@mkdir -p demo
	$(PYTHON) tools/reco.py vertex $(SAMPLE) -o demo/reco.root -f
	$(PYTHON) tools/evaluate.py vertex demo/reco.root $(SAMPLE) -o demo/report -f
	$(PYTHON) tools/display.py demo/reco.root --hits $(SAMPLE) --event 0 -o demo/event.html -f

test: $(READY) ## Run the test suite
	$(PYTHON) -m pytest

lint: $(READY) ## Check style (ruff) and types (mypy)
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy sparsereco

cuda-check: ## Compile the CUDA kernels with nvcc alone, none may spill registers; needs neither torch nor a GPU
	@if ! command -v nvcc >/dev/null; then echo "cuda-check: skipped, there is no nvcc on the PATH"; exit 0; fi; \
	for kernel in $(KERNELS); do \
	  echo "nvcc $$kernel"; \
	  output=$$(nvcc -std=c++20 -O3 -Werror all-warnings -Xptxas -v \
	    $(foreach arch,80 90 100,-gencode arch=compute_$(arch),code=sm_$(arch)) -c $$kernel -o /dev/null 2>&1); \
	  status=$$?; echo "$$output"; \
	  if [ $$status -ne 0 ]; then exit 1; fi; \
	  if echo "$$output" | grep -q '[1-9][0-9]* bytes spill'; then echo "cuda-check: $$kernel spills registers" >&2; exit 1; fi; \
	done

clean: ## Remove what the other targets made
	rm -rf $(VENV) build demo *.egg-info sparsereco/_C*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The torch that is installed first is the one that torch-scatter and sparsereco._C are built against.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/*/*.*) | $(PYTHON)
	@command -v c++ >/dev/null || { echo "setup: a C++20 compiler is needed: apt-get install g++" >&2; exit 1; }
	@echo "setup: installing torch"
	@$(PIP) -c constraints.txt torch==2.13.0
	@$(PIP) -c constraints.txt ninja numpy setuptools wheel
	@echo "setup: installing sparsereco (torch-scatter is compiled: about 5 minutes the first time)"
	@$(PIP) -c constraints.txt --no-build-isolation -e ".[all]"
	@touch $@

$(PYTHON):
	@for python in python3.11 python3.10 python3; do \
	  if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null; then \
	    echo "setup: creating $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	if command -v uv >/dev/null; then exec uv venv --seed --python 3.11 $(VENV); fi; \
	echo "setup: Python 3.11 is needed: apt-get install python3.11-venv python3.11-dev, pyenv install 3.11, or install uv" >&2; \
	exit 1
