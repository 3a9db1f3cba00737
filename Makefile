# One command for people and CI. Everything goes into .venv, which `make clean` removes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# GGML_NATIVE uses the machine's own instructions; the two flags keep GCC from dropping stores that AMX needs.
export CMAKE_ARGS ?= -DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'

.PHONY: demo test check docs clean

demo: $(VENV)/.demo
	@echo "Building the reference bundle, and classifying 960 sentences in 48 languages with it."
	$(BIN)/mtllm-edge join reference/parts --out build/reference --force
	$(BIN)/python benchmarks/demo.py build/reference

test: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: test

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/.demo: EXTRA = reference
$(VENV)/.test: EXTRA = test
$(VENV)/.docs: EXTRA = docs
$(VENV)/.demo $(VENV)/.test $(VENV)/.docs: pyproject.toml constraints.txt
	@echo "Installing mtllm-edge[$(EXTRA)] into $(VENV). pip compiles llama.cpp: about 6 minutes on 2 cores, the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade pip
	$(BIN)/pip install --constraint constraints.txt --editable '.[$(EXTRA)]'
	touch $@

clean:
	rm -rf $(VENV) build
