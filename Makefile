# On a fresh machine with Python and make: `make demo` runs the whole journey, `make test` the tests.
# Both set up .venv first; a second call sets nothing up again.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test fuzz lint types bench clean

demo: $(READY)
	$(BIN)/voxtune demo demo --overwrite

test: $(READY) lint types
	$(BIN)/python -m pytest

# Broken files without end: more of tests/converters/test_fuzz.py, from a fresh seed, which it prints.
fuzz: $(READY)
	JAX_PLATFORMS=cpu $(BIN)/python tests/converters/fuzz.py --count 100000

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow an editable install, so it reads the package as a wheel installs it.
types: $(READY)
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/installed .
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
		-p voxtune.engine -p voxtune.models -p voxtune.converters -p voxtune.benchmarks

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("voxtune needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)

bench: $(READY)
	$(BIN)/python -m voxtune.benchmarks.step

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
