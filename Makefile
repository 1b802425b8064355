# `make demo` and `make test` set themselves up in .venv: no root, no network beyond pip.
PYTHON ?= $(shell for p in python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
EXTRAS ?= coreml,litert,teacher,train,dev
TESTS ?= tests
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check clean

demo: $(READY)  # from the shipped checkpoint to pictures drawn by both phone bundles
	$(BIN)/nanoflux demo --out build/demo

test: $(READY)  # the whole default set; one thread per operator, as the models are tiny
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/pytest -q $(TESTS)

check: $(READY)  # format, lint, types, and who may import whom
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	@echo "setting up .venv with $(EXTRAS): a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
