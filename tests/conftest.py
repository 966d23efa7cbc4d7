"""What all tests share: eight CPU devices for JAX, the folder of test data, and a browser."""

import dataclasses
import gc
import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

# Before anything imports jax or keras, which read these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
# Tests neither take compiled programs from the user's cache nor leave any there.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# Compiling is most of the time of these tests, so the compiler is told to try less hard.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    # jaxlib 0.11 ends the process on flags that it no longer has. Of a program that is compiled by
    # parts, each part costs, and these are small.
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    * version("jaxlib").startswith("0.10."),
)
# Tracing makes millions of objects that live, and looking for cycles among them after each 700 is
# a fifth of its time.
gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of test data: $VOXTUNE_DATA, else shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VOXTUNE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set VOXTUNE_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def step_of() -> Callable[..., tuple[Any, Any]]:
    """Makes the training step of a network, and the state before the first step.

    The step is the one that options of `Finetune` give, or with `optimizer` one that moves by an
    optimizer of optax's: `optax.sgd(1.0)` takes the gradient itself away from the parameters.
    """
    import optax

    from voxtune.engine.config import Finetune
    from voxtune.engine.rules import Parameters, make_rules
    from voxtune.engine.step import make_step

    def make(
        network: Any,
        optimizer: optax.GradientTransformation | None = None,
        voxels: int = 1,
        **options: Any,
    ) -> tuple[Any, Any]:
        config = Finetune(Path("model"), "subjects.csv", Path("run"), **options)
        rules = make_rules(Parameters.of(network), config)
        step, *arrays = make_step(network, config, rules, voxels=voxels)
        if optimizer is not None:
            moves = optax.with_extra_args_support(optimizer)
            step = dataclasses.replace(step, optimizer=moves)
        return step, step.first_state(*arrays, 0)

    return make


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Opens a page in a browser without a window; gives what that prints.

    What the browser says of the page itself, a violation of its policy for example, fails.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("neither chromium nor google-chrome is on the PATH")
    profile = tmp_path_factory.mktemp("profile")
    always = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        f"--disable-component-update --disable-sync --user-data-dir={profile} "
        "--enable-logging=stderr --hide-scrollbars --window-size=1280,800 "
        "--virtual-time-budget=10000"
    )

    def open_page(page: Path, *options: str, address: str = "") -> str:
        command = [browser, *always.split(), *options, f"{page.as_uri()}{address}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not said, "\n".join(said)
        return done.stdout

    return open_page
