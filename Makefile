# On a fresh machine with Python and make: `make demo` runs the whole journey, `make test` the tests.
# Both set up .venv first; a second call sets nothing up again.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test fuzz soak lint types bench bench-quick clean

demo: $(READY)
	$(BIN)/voxtune demo demo --overwrite

test: $(READY) lint types
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Broken files without end: more of tests/converters/test_fuzz.py and tests/engine/test_volume_fuzz.py,
# from a fresh seed, which each prints.
fuzz: $(READY)
	JAX_PLATFORMS=cpu $(BIN)/python tests/converters/fuzz.py --count 100000
	$(BIN)/python tests/engine/fuzz_volume.py --count 100000

# `prepare` killed at 24 random moments, and `finetune` at 30; then what remat saves on a TPU, and that no step gathers
# there: compiled for one, without one. libtpu is kept out of .venv, where JAX would look for a TPU.
soak: $(READY) .venv-soak/.ready
	$(BIN)/python tests/soak/prepare.py
	$(BIN)/python tests/soak/resume.py
	.venv-soak/bin/python tests/soak/tpu.py

.venv-soak/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-soak
	.venv-soak/bin/python -m pip install --quiet --editable .
	.venv-soak/bin/python -m pip install --quiet --editable ".[tpu]" || true
	touch .venv-soak/.ready

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

# What voxtune does a second, in less than five minutes on two quiet cores.
bench-quick: $(READY)
	$(BIN)/voxtune benchmark --quick

# Larger cases, beside PyTorch, MONAI and Keras, whose environments it makes in the user's cache folder;
# what it finds is added to the history.
bench: $(READY)
	$(BIN)/voxtune benchmark --peers --history benchmarks/history --page benchmarks/history/index.html

clean:
	rm -rf .venv .venv-soak build *.egg-info .mypy_cache .pytest_cache .ruff_cache
