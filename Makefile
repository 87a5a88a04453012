# `make demo` and `make test` each work on a fresh machine with Python 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
DATA ?=
IMAGE ?= segdist
TARGET ?= cuda
BASE ?= python:3.11-slim
BUILD ?=

.PHONY: demo demo-local sweep test test-all check format image clean

demo: .ready
	$(BIN)/python demo/demo.py $(if $(DATA),--data "$(DATA)")

demo-local: .ready
	$(BIN)/python demo/demo.py --local $(if $(DATA),--data "$(DATA)")

sweep: .ready
	$(BIN)/python demo/sweep.py

# Two workers run the test files in the order of tests/balance.py. `make test` includes tests marked `long` only for files that
# changed (tests/long_tests.py); `make test-all` includes all of them.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .ready
	$(PYTEST) --long changed

test-all: .ready
	$(PYTEST) --long all

check: .ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# TARGET is cuda or cpu. BUILD holds more options for `docker build`.
image:
	DOCKER_BUILDKIT=1 docker build --target $(TARGET) --build-arg BASE=$(BASE) --tag $(IMAGE) $(BUILD) .

.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segdist needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .ready

clean:
	rm -rf .venv .ready demo-out
