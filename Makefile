# `make demo` and `make test` set themselves up in .venv: no root, no network beyond pip.
PYTHON ?= $(shell for p in python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
EXTRAS ?= coreml,litert,onnx,teacher,train,dev
TESTS ?= tests
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-tensorflow check clean

demo: $(READY)  # from the shipped checkpoint to pictures drawn by both phone bundles
	$(BIN)/nanoflux demo --out build/demo

test: $(READY)  # the whole default set; one thread per operator, as the models are tiny
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -q $(TESTS)

# In an environment of its own, because coremltools imports TensorFlow wherever it finds it.
test-tensorflow: .venv-tensorflow/ready  # our .tflite files in TensorFlow's classic interpreter
	OMP_NUM_THREADS=1 .venv-tensorflow/bin/pytest -q tests/unit/litert/test_classic_interpreter.py

check: $(READY)  # format, lint, types, and who may import whom
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-tensorflow build dist

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	@echo "setting up .venv with $(EXTRAS): a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

.venv-tensorflow/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tensorflow
	.venv-tensorflow/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[litert,tensorflow,dev]'
	@touch $@
