# make demo | test | test-all | lint | format | bench | bench-suite | wheel | clean          `make help` explains each.
# Everything goes into .venv in this folder. The machine itself needs python3 (>= 3.10) with venv and headers, and g++.

PYTHON ?= python3
DATA   ?= digits
ARGS   ?=

VENV      := .venv
PY        := $(VENV)/bin/python
PIP       := $(PY) -m pip --disable-pip-version-check --no-input
INSTALL   := $(PIP) install --quiet --quiet
INPUTS    := $(VENV)/.inputs
TOOLS     := $(VENV)/.tools-installed
INSTALLED := $(VENV)/.soniq-installed
SOURCES   := $(shell find csrc -type f) CMakeLists.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all lint format bench bench-suite bench-peers wheel install check-host clean distclean FORCE

help:
	@echo "make demo      train, pack and check a small network, into out/; DATA=digits (default), fashion-mnist or a folder of it"
	@echo "make test      the test suite                              ARGS='-k gemm -x' goes to pytest"
	@echo "make test-all  the same with full crosses of all options; slow"
	@echo "make lint      ruff, mypy and clang-format, changing nothing;  make format  lets them change files"
	@echo "make bench     linear layers beside INT8 of other libraries, in one run; writes benchmarks/results/    ARGS='--suite all'"
	@echo "make bench-suite  each kind of call by itself, under pytest-benchmark                                ARGS='-k W1A4'"
	@echo "make wheel     the installable file, in dist/"
	@echo "make clean     remove what was built;  make distclean  removes .venv too"
	@echo "All of them create .venv first (PYTHON=python3.12 names the interpreter) and rebuild it only when sources changed."

demo: $(INSTALLED)
	@$(PY) examples/demo.py --data "$(DATA)" --out out $(ARGS)

test: $(INSTALLED)
	$(PY) -m pytest $(ARGS)

test-all: $(INSTALLED)
	$(PY) -m pytest --full $(ARGS)

lint: $(INSTALLED)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	find csrc tests \( -name '*.h' -o -name '*.cpp' \) -exec $(VENV)/bin/clang-format --dry-run -Werror {} +

format: $(INSTALLED)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	find csrc tests \( -name '*.h' -o -name '*.cpp' \) -exec $(VENV)/bin/clang-format -i {} +

bench: bench-peers
	@$(PY) -m benchmarks.report $(ARGS)

bench-suite: bench-peers
	$(PY) -m pytest benchmarks/bench_*.py --benchmark-columns=min,median,rounds --benchmark-sort=min $(ARGS)

bench-peers: $(INSTALLED)
	@$(INSTALL) --requirement tools/requirements.txt "onnx>=1.17" "onnxruntime>=1.20" "openvino>=2025.0"

wheel: $(INSTALLED)
	@echo "soniq: building the wheel in dist/ (about a minute)"
	@rm -rf dist
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

install: $(INSTALLED)

clean:
	rm -rf build dist out .cache/vectors .cache/cuda .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks $(INSTALLED)
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .cache

# -- the environment ---------------------------------------------------------------------------------------------------------

# Without a working interpreter in .venv the stamps mean nothing.
$(shell test -x $(PY) || rm -f $(TOOLS) $(INSTALLED))

check-host:
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON) -> sudo apt install python3 python3-venv python3-dev g++" >&2; exit 1; }
	@$(PYTHON) tools/check_host.py

# The build tools live in .venv, so a rebuild needs neither the network nor CMake from the system and compiles only what changed.
$(TOOLS): tools/requirements.txt
	@$(MAKE) --no-print-directory check-host
	@$(PY) -c "" 2>/dev/null || { echo "soniq: creating $(VENV)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "soniq: installing the build tools (about half a minute)"
	@$(INSTALL) "scikit-build-core>=1.0" "pybind11>=2.13" cmake ninja
	@touch $@

# An editable install finds modules by the list of files that it was made with, and by this folder's path: both are inputs.
$(INPUTS): FORCE | $(TOOLS)
	@{ echo "$(CURDIR)"; find csrc python qat triton_kernels -type f ! -path '*/__pycache__/*' | sort; } > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(INSTALLED): $(TOOLS) $(INPUTS) $(SOURCES) pyproject.toml
	@echo "soniq: compiling the kernels and installing what the tests and the demo need (the first time 3 to 6 minutes: torch is large)"
	@$(INSTALL) --no-build-isolation --requirement tools/requirements.txt --editable ".[demo,test]"
	@touch $@

FORCE:
