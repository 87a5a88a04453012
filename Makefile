# `make demo` and `make test` each work alone on a fresh machine with Python 3.11 and make.
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

# They compare bits, or flags of torch, with other processes, and so run in processes of their own.
# Whatever fails there, the others run too.
APART := tests/test_export.py tests/test_ray.py tests/test_hub.py

test: .ready
	apart=0; $(BIN)/python -m pytest -n 2 --dist loadfile $(APART) || apart=$$?; \
	$(BIN)/python -m pytest -n 2 --dist loadfile $(APART:%=--ignore=%) && exit $$apart

test-all: .ready
	$(BIN)/python -m pytest -n 2 --dist loadfile -m ''

check: .ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# TARGET is cuda or cpu; BUILD, further options of `docker build`.
image:
	DOCKER_BUILDKIT=1 docker build --target $(TARGET) --build-arg BASE=$(BASE) --tag $(IMAGE) $(BUILD) .

.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segdist needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .ready

clean:
	rm -rf .venv .ready demo-out
