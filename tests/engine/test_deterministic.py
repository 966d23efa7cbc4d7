"""The flag that GPUs need for the same bits, set in time."""

import os
import subprocess
import sys

import jax
import pytest

from voxtune.engine import deterministic
from voxtune.engine.deterministic import FLAG, be_deterministic, nondeterminism
from voxtune.models.errors import InputError


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As before JAX has looked for devices, and without flags."""
    monkeypatch.setattr(deterministic, "_started", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", "")
    return monkeypatch


def test_it_is_added_to_what_the_user_has_set(flags: pytest.MonkeyPatch):
    be_deterministic()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}=true"
    flags.setenv("XLA_FLAGS", "--xla_dump_to=here")
    be_deterministic()
    be_deterministic()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=here {FLAG}=true"


@pytest.mark.parametrize("given", [f"{FLAG}=true", f"--a=b {FLAG}", f"{FLAG}=false {FLAG}=1"])
def test_what_the_user_has_set_stays(flags: pytest.MonkeyPatch, given: str):
    flags.setenv("XLA_FLAGS", given)
    be_deterministic()
    assert os.environ["XLA_FLAGS"] == given


def test_what_the_user_has_switched_off_is_said(flags: pytest.MonkeyPatch):
    flags.setenv("XLA_FLAGS", f"{FLAG}=false")
    with pytest.raises(InputError, match="which XLA_FLAGS switches off; take it out there"):
        be_deterministic()


def test_after_jax_has_started_it_is_too_late_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch):
    assert jax.devices()
    before = os.environ["XLA_FLAGS"]
    be_deterministic()
    assert os.environ["XLA_FLAGS"] == before
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match="comes too late"):
        be_deterministic()


def test_what_no_gpu_does_the_same_way_is_a_sentence():
    said = "UNIMPLEMENTED: HLO instruction %x = select-and-scatter() is not deterministic"
    words = r"\(UNIMPLEMENTED.*max-pooling.* leave --determ"
    with pytest.raises(InputError, match=words), nondeterminism():
        raise jax.errors.JaxRuntimeError(f"{said}\nand more")
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"), nondeterminism():
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: another")


def test_jaxlib_knows_it():
    """It ends the process at flags that it does not know."""
    program = (
        "from voxtune.engine.deterministic import be_deterministic; be_deterministic(); "
        "import jax, os; jax.devices(); print(os.environ['XLA_FLAGS'])"
    )
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"{FLAG}=true"
