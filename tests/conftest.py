"""What all tests share: eight CPU devices for JAX, and the folder of scans and Keras files."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

# Before anything imports jax or keras, which read these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
# Compiling is most of the time of these tests, so the compiler is told to try less hard.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    # jaxlib 0.11 ends the process on this flag, which it no longer has.
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of test data: $VOXTUNE_DATA, else shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VOXTUNE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set VOXTUNE_DATA to their folder")
    return folder
