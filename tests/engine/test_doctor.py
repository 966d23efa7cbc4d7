"""The doctor: made-up machines, each with one thing wrong, and a JAX that does not start."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from voxtune.engine.doctor import lines
from voxtune.engine.machine import Card, Device, Found, Machine, ask_jax, found_of
from voxtune.engine.misconfiguration import problems

GIB = 2**30
CPU = Device("cpu", "cpu")
H100 = Device("NVIDIA H100 80GB HBM3", "gpu", 60 * GIB)
CARD = Card("NVIDIA H100 80GB HBM3", 80 * GIB, GIB // 2)
WANTED = {"jax": "<0.12,>=0.10.2", "flax": "<0.13,>=0.12.8", "nibabel": ">=5.3"}
VERSIONS = {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.9", "nibabel": "5.3"}
CUDA13 = {"jax-cuda13-plugin": "0.10.2", "jax-cuda13-pjrt": "0.10.2"}
CUDA12 = {"jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2"}
SPEEDS = {"float32": 4e14, "bfloat16": 8e14}
PEAKS = {"float32": 4.945e14, "bfloat16": 9.895e14}

LAPTOP = Machine(
    environment={},
    versions=VERSIONS,
    wanted=WANTED,
    python="3.12.1",
    cores=4,
    memory=16 * GIB,
    shared=8 * GIB,
    driver="",
    nvidia=False,
    cards=(),
    tpus=0,
    libraries=(),
    found=Found((CPU,), None, products={"float32": 1e11, "bfloat16": 1e11}, copy=1e10),
)
SERVER = dataclasses.replace(
    LAPTOP,
    versions=VERSIONS | CUDA13,
    driver="580.65.06",
    nvidia=True,
    cards=(CARD,),
    found=Found((H100,), None, "", SPEEDS, PEAKS, 2e12, 2e10),
)
WITHOUT = dataclasses.replace(SERVER, found=LAPTOP.found, versions=VERSIONS)
TPU = dataclasses.replace(LAPTOP, tpus=4)


@pytest.mark.parametrize("machine", [LAPTOP, SERVER], ids=["laptop", "server"])
def test_nothing_is_wrong_with_a_machine_that_works(machine: Machine):
    assert problems(machine) == []


def found(**changes: Any) -> dict[str, Any]:
    return {"found": dataclasses.replace(SERVER.found, **changes)}


def environment(**variables: str) -> dict[str, Any]:
    return {"environment": variables}


def versions(**changes: str) -> dict[str, Any]:
    return {"versions": VERSIONS | {name.replace("_", "-"): x for name, x in changes.items()}}


@pytest.mark.parametrize(
    ("machine", "changes", "words"),
    [
        (LAPTOP, versions(jax="0.9.9", jaxlib="0.9.9"), ("jax is 0.9.9", "pip install 'jax<0.12")),
        (LAPTOP, versions(jax="0.12", jaxlib="0.12"), ("jax is 0.12, but", "<0.12")),
        (LAPTOP, versions(nibabel="5.2.9"), ("nibabel is 5.2.9", ">=5.3")),
        (LAPTOP, versions(jaxlib="0.11.0"), ("newer than jax 0.10.2", "jaxlib==0.10.2")),
        (SERVER, versions(**{**CUDA13, "jax-cuda13-pjrt": "0.10.1"}), ("pjrt 0.10.1", "==0.10.2")),
        (SERVER, {"versions": VERSIONS | CUDA13 | CUDA12}, ("both", "pip uninstall")),
        (WITHOUT, {}, ("a GPU (NVIDIA H100 80GB HBM3)", "pip install 'voxtune[cuda13]'")),
        (WITHOUT, {"driver": "550.1"}, ("pip install 'voxtune[cuda12]'",)),
        (WITHOUT, {"driver": "470.82"}, ("driver 470.82 is too old",)),
        (WITHOUT, {"driver": "550.1"} | {"versions": VERSIONS | CUDA13}, ("old for CUDA 13",)),
        (WITHOUT, {"versions": VERSIONS | CUDA13}, ("does not use it",)),
        (WITHOUT, environment(JAX_PLATFORMS="cpu"), ("JAX_PLATFORMS=cpu hides it", "unset")),
        (WITHOUT, environment(CUDA_VISIBLE_DEVICES="-1"), ("CUDA_VISIBLE_DEVICES=-1 hides it",)),
        (LAPTOP, {"driver": "580.1"}, ("no GPU can be reached", "--gpus all")),
        (TPU, {}, ("There is a TPU", "pip install 'voxtune[tpu]'")),
        (TPU, environment(JAX_PLATFORMS="cpu"), ("TPU", "JAX_PLATFORMS=cpu hides it")),
        (TPU, versions(libtpu="0.1"), ("There is a TPU and its library", "end other processes")),
        (SERVER, found(products={}, error="bad PTX"), ("first device fails (bad PTX)",)),
        (
            LAPTOP,
            environment(XLA_FLAGS="--xla_force_host_platform_device_count=8"),
            ("XLA_FLAGS has the CPU simulate 8 devices",),
        ),
        (LAPTOP, environment(JAX_NUM_CPU_DEVICES="2"), ("JAX_NUM_CPU_DEVICES", "2 devices")),
        (LAPTOP, environment(JAX_ENABLE_X64="True"), ("JAX_ENABLE_X64", "unset it")),
        (SERVER, environment(XLA_PYTHON_CLIENT_MEM_FRACTION="0.1"), ("MEM_FRACTION=0.1",)),
        (SERVER, environment(XLA_PYTHON_CLIENT_MEM_FRACTION="75%"), ("MEM_FRACTION=75%",)),
        (SERVER, environment(XLA_PYTHON_CLIENT_PREALLOCATE="no"), ("counts as true",)),
        (SERVER, environment(XLA_PYTHON_CLIENT_ALLOCATOR="platform"), ("slow",)),
        (SERVER, {"libraries": ("/usr/local/cuda",)}, ("LD_LIBRARY_PATH", "/usr/local/cuda")),
        (
            SERVER,
            {"cards": (CARD, dataclasses.replace(CARD, used=70 * GIB))},
            ("70.0 of 80.0 GiB of GPU 1", "if they are yours", "CUDA_VISIBLE_DEVICES"),
        ),
        (
            LAPTOP,
            environment(JAX_PLATFORMS="cuda") | {"found": Found(error="AssertionError")},
            ("JAX_PLATFORMS=cuda", "plugin is not installed", "pip install 'voxtune[cuda13]'"),
        ),
        (
            WITHOUT,
            environment(JAX_PLATFORMS="cuda")
            | {"found": Found(error="AssertionError"), "driver": "550.1"},
            ("JAX_PLATFORMS=cuda", "plugin is not installed", "pip install 'voxtune[cuda12]'"),
        ),
        (SERVER, found(products={"float32": 4e13}), ("40.0 TFLOP/s", "8% of its peak")),
        (LAPTOP, {"cores": 1.0}, ("There is 1 core",)),
        (LAPTOP, {"shared": 2**26}, ("/dev/shm has 64 MiB", "--shm-size")),
    ],
)
def test_what_is_wrong_is_one_sentence(
    machine: Machine, changes: dict[str, Any], words: tuple[str, ...]
):
    sentences = problems(dataclasses.replace(machine, **changes))
    assert len(sentences) == 1
    assert all(each in sentences[0] for each in words), sentences[0]
    assert sentences[0].endswith(".")


@pytest.mark.parametrize(
    ("visible", "number"),
    [
        (None, 1),
        ("0,1", 1),
        ("GPU-bb", 1),
        ("0, GPU-bb", 1),
        ("0", 0),
        ("GPU-a", 0),
        ("-1", 0),
        ("", 0),
        ("7,1", 0),  # what comes after one that is not there does not count
        ("MIG-bb", 0),
    ],
)
def test_cards_that_a_run_would_not_use_are_left_alone(visible: str | None, number: int):
    busy = dataclasses.replace(CARD, used=70 * GIB, uuid="GPU-bb")
    machine = dataclasses.replace(SERVER, cards=(dataclasses.replace(CARD, uuid="GPU-aa"), busy))
    if visible is not None:
        machine = dataclasses.replace(machine, **environment(CUDA_VISIBLE_DEVICES=visible))
    assert len(problems(machine)) == number


def test_the_folder_of_programs_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of this machine: the one thing that JAX itself is asked for here."""
    tmp_path.chmod(0o777)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    asked = ask_jax()
    machine = dataclasses.replace(LAPTOP, found=dataclasses.replace(asked, products={}))
    assert f"compiled programs: {tmp_path} (open to others)" in lines(machine)
    assert problems(machine) == [
        f"Compiled programs are not safe: others can write {tmp_path}; run "
        f"'chmod go-w {tmp_path}', and empty {tmp_path}."
    ]
    assert asked.error == ""
    assert asked.devices[0].platform == "cpu"
    assert asked.products.keys() == {"float32", "bfloat16"}
    assert asked.copy is not None


def test_a_person_reads_what_there_is():
    text = "\n".join(lines(SERVER))
    for words in (
        "python 3.12.1, jax 0.10.2, jaxlib 0.10.2, jax-cuda13-plugin 0.10.2",
        "4 cores, memory 16.0 GiB, /dev/shm 8.0 GiB",
        "GPU 0: NVIDIA H100 80GB HBM3, 79.5 of 80.0 GiB free, driver 580.65.06",
        "1 x NVIDIA H100 80GB HBM3 (gpu), 60.0 GiB for JAX",
        "float32: 400.0 TFLOP/s (81% of its peak)",
        "host to device: 20.0 GB/s",
    ):
        assert words in text
    assert "float32: 100 GFLOP/s (no peak is known)" in "\n".join(lines(LAPTOP))


def test_a_library_that_ends_the_process_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_nonsense=true")
    machine = dataclasses.replace(LAPTOP, found=ask_jax())
    assert lines(machine)[-1] == "devices: none"
    assert [
        "XLA_FLAGS holds --xla_nonsense=true, which jaxlib 0.10.2" in each
        for each in problems(machine)
    ] == [True]


def test_no_module_of_the_current_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "json.py").write_text("raise SystemExit('not the one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--xla_nonsense=true")  # ends it soon
    assert "--xla_nonsense=true" in ask_jax().error


def test_a_library_that_hangs_is_given_up():
    given_up = ask_jax(seconds=0.05)
    assert given_up.error == "it does not answer within 0 s"
    assert (
        "JAX finds no device (it does not"
        in problems(dataclasses.replace(LAPTOP, found=given_up))[0]
    )


def test_what_was_told_before_the_end_is_kept():
    said = (
        'noise\n{"cache": "folder"}\n{"devices": [{"kind": "k", "platform": "cpu", "memory": 5}]}\n'
    )
    told = found_of(said, "it ended")
    assert told == Found((Device("k", "cpu", 5),), "folder", error="it ended")
