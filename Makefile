# Each target sets up .venv first if it is missing or out of date.
# `python -m venv` needs Python 3.11 or newer; choose one with `make PYTHON=python3.12 test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.* csrc/*/*/*)

.PHONY: train test test-slow test-older-torch test-gpu bench lint sanitize clean

train: $(STAMP)  ## the demo on built-in clips
	$(BIN)/python -m stmeta.train --fused

test: $(STAMP)  ## the tests, but for those that guard rare changes (`slow`)
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)  ## the others: every launcher by nvcc, every GPU target, kills at every stage
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 4 --dist loadfile

test-older-torch: $(STAMP)  ## every source file against the headers of older versions of torch
	STMETA_OLDER_TORCH=1 $(BIN)/python -m pytest tests/test_older_torch.py -n auto

# Without setting up .venv, which takes a network: with what $(PYTHON) has where there is none.
test-gpu:  ## what needs a GPU, and its kernels under compute-sanitizer
	tests/gpu.sh all $(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON))

bench: $(STAMP)  ## fused ops against eager PyTorch
	$(BIN)/python -m pytest benchmarks --benchmark-only

# pyright is told which Python: without, it looks at the one on PATH, which has none of the packages.
lint: $(STAMP)  ## ruff, clang-format, pyright
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/pyright --pythonpath $(BIN)/python

sanitize: $(STAMP)  ## the extension's tests under AddressSanitizer and UBSan
	tests/sanitize.sh $(BIN)/python

# torch goes in first and by its exact pin: a looser request pulls another build of several GB.
# The project is built without isolation for the same reason: it uses the torch just installed.
# timm and vit-pytorch, whose models the tests fuse, ask for torchvision, and that for its own torch:
# the tests do without it, but `import timm` needs `pip install torchvision` for your build of torch.
$(STAMP): pyproject.toml setup.py constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools wheel pybind11 ninja numpy
	$(BIN)/pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	@echo "compiling the extension: some minutes"
	$(BIN)/pip install -v --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps timm vit-pytorch
	touch $(STAMP)

clean:
	rm -rf $(VENV) build stmeta/*.so *.egg-info
