# On a fresh machine with Python and make: `make demo` runs the whole journey, `make test` the tests.
# Both set up .venv first; a second call sets nothing up again.

PYTHON ?= python3
PEERS ?= peers/bin/python
BIN := .venv/bin
READY := .venv/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test fuzz soak lint types bench bench-peers bench-predict clean

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

bench: $(READY)
	$(BIN)/python -m voxtune.benchmarks.step

# Beside PyTorch and Keras, six to twelve minutes: `make bench-peers PEERS=peers/bin/python`, an
# environment of their own; benchmarks/peers.py says how to make it.
bench-peers: $(READY)
	$(BIN)/python -m voxtune.benchmarks.peers --python $(PEERS)

# A scan of 256³ voxels beside Keras and MONAI, an environment likewise with nibabel and monai:
# a quarter of an hour and more; `python -m voxtune.benchmarks.predict --help` says how to take less.
bench-predict: $(READY)
	$(BIN)/python -m voxtune.benchmarks.predict --python $(PEERS)

clean:
	rm -rf .venv .venv-soak build *.egg-info .mypy_cache .pytest_cache .ruff_cache
