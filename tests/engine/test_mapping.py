"""The step mapped over devices: the same numbers on any of them, and nothing gathered.

Compared are ten steps of AdamW with augmentation and batch normalisation. The network is smooth:
where ReLU or max-pooling choose, rounding may choose otherwise, which Adam magnifies: of twelve
initial weights of a small U-Net, three ended up to 2e-2 apart, and of a smooth network of two
blocks none above 4e-6. A U-Net is compared with lighter augmentation.
"""

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine import mapping
from voxtune.engine.augment import PROFILES, Augmentation
from voxtune.engine.changes import UNCHANGED, Augmented, Changes
from voxtune.engine.config import Finetune
from voxtune.engine.dataset import Plan
from voxtune.engine.mapping import Compiled, compile_step, first_state, over_mesh, state_shardings
from voxtune.engine.mesh import make_mesh, over_data, placed
from voxtune.engine.rules import Parameters, make_rules
from voxtune.engine.setup import Setup, check_mapping
from voxtune.engine.step import TrainState, TrainStep, make_step
from voxtune.engine.trees import flat
from voxtune.models.errors import InputError
from voxtune.models.families import Network, build
from voxtune.models.lowering import plain_lowerings

STEPS, BATCH, BLOCK = 10, 8, (8, 8, 8)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(STEPS, BATCH, *BLOCK, 1)).astype(np.float32)
LABELS = (IMAGES[..., 0] + 0.5 * RNG.normal(size=IMAGES.shape[:-1]) > 0.5).astype(np.uint8)
BATCHES = [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)]
STRONG = PROFILES["strong"]
CHANGES = Augmented(
    Augmentation(
        moved=0.8,
        rotation=STRONG.rotation,
        scaling=STRONG.scaling,
        flip=0.5,
        brightness=STRONG.brightness,
        noise=STRONG.noise,
    ),
    (0, 1),
)
SMOOTH = {"outputs": 2, "filters": 2, "dilations": (1,), "activation": "elu", "norm": "batch"}


@dataclass(frozen=True, eq=False)
class Found:
    """What some steps gave: losses, path → parameter, the last metrics and state, the program."""

    losses: list[float]
    params: dict[str, np.ndarray]
    metrics: dict[str, Any]
    state: TrainState
    compiled: Compiled
    program: Any


def prepared(
    network: Network, changes: Changes, **options: Any
) -> tuple[TrainStep, TrainState, Setup]:
    """A step, its first state on the devices, and a setup that has what compiling asks for."""
    config = Finetune(Path("model"), "subjects.csv", Path("run"), steps=STEPS, **options)
    rules = make_rules(Parameters.of(network), config)
    plan, mesh = Plan(BLOCK, "random", 0.5, BATCH, 0), make_mesh(config.mesh)
    none: Any = None
    setup = Setup(config, none, rules, none, [], [], plan, none, changes, mesh, [])
    step, *arrays = make_step(network, config, rules, changes=changes)
    return step, first_state(step, *arrays, config, mesh), setup


def run(
    network: Network,
    changes: Changes,
    batches: list[dict[str, np.ndarray]],
    volumes: Any = None,
    **options: Any,
) -> Found:
    """Steps on a mesh. Each state that was given must have been used up."""
    step, state, setup = prepared(network, changes, **options)
    programs = []

    class Kept:  # what was compiled, to be looked at
        of = staticmethod(lambda compiled, _: programs.append(compiled))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "Memory", Kept)
        compiled = compile_step(step, setup, state, batches[0], volumes)
    losses, metrics = [], {}
    for batch in batches:
        before = state
        on_devices = placed(batch, setup.mesh, mapped=setup.config.map == "pmap")
        state, metrics = compiled.step(state, on_devices)
        losses.append(float(metrics["loss"]))
        assert all(each.is_deleted() for each in jax.tree.leaves(before.params))
    params = {path: np.asarray(each) for path, each in flat(state.params).items()}
    return Found(losses, params, metrics, state, compiled, programs[0])


@cache
def smooth(mesh: str, **options: Any) -> Found:
    """Ten steps of the smooth network. Convolutions are XLA's own, as where depth is split."""
    with plain_lowerings():
        return run(build("meshnet", SMOOTH), CHANGES, BATCHES, mesh=mesh, **options)


def assert_same(found: Found, wanted: Found, rounding: str = "conv/bias") -> None:
    """Losses to 1e-5 and each parameter to 1e-5 of its largest value.

    Biases that feed a batch normalisation are left out, by the end of their paths: their gradient
    is zero but for rounding, of which Adam makes steps as long as any.
    """
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-5)
    assert found.params.keys() == wanted.params.keys()
    for path, value in wanted.params.items():
        if not path.endswith(rounding):
            furthest = abs(found.params[path] - value).max() / abs(value).max()
            assert furthest <= 1e-5, path
    for mine, other in zip(
        *(jax.tree.leaves(each.metrics["counts"]) for each in (found, wanted)), strict=True
    ):
        assert abs(np.subtract(mine, other)).max() <= 1  # a voxel whose classes are as probable
    assert found.compiled.flops == wanted.compiled.flops > 0


GATHERS = ("all-gather", "all-to-all")


@pytest.mark.parametrize(
    "mesh", ["data=2", "data=4", "data=8", "data=4,spatial=2", "data=2,spatial=4"]
)
def test_any_mesh_does_what_one_device_does_and_gathers_nothing(mesh: str) -> None:
    found = smooth(mesh)
    assert_same(found, smooth("data=1"))
    assert "all-reduce" in found.program.as_text()
    assert not any(word in found.program.as_text() for word in GATHERS)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_pmap_does_what_one_device_does(devices: int) -> None:
    found = smooth(f"data={devices}", map="pmap")
    assert_same(found, smooth("data=1"))
    for array in jax.tree.leaves(found.state):
        assert array.is_fully_replicated
        assert len(array.devices()) == devices


def test_a_unet_does_on_four_devices_what_it_does_on_one() -> None:
    """With ReLU, max-pooling and transposed convolutions, by this machine's own lowerings."""
    network = {"outputs": 2, "filters": 2, "depth": 1, "norm": "batch"}
    light = Augmented(PROFILES["light"], (0, 1, 2))
    one, four = (
        run(build("unet", network), light, BATCHES, mesh=mesh) for mesh in ("data=1", "data=4")
    )
    assert_same(four, one)


class TestShardOptimizer:
    """Of the optimizer each device has its part alone."""

    def test_steps_are_the_same(self) -> None:
        assert_same(smooth("data=2", shard_optimizer=True), smooth("data=1"))

    def test_a_device_holds_and_is_given_half(self) -> None:
        whole, split = smooth("data=2"), smooth("data=2", shard_optimizer=True)
        sizes, parts = [], 0
        for mine, other in zip(
            *(jax.tree.leaves(each.state.optimizer) for each in (split, whole)), strict=True
        ):
            sizes.append([each.addressable_shards[0].data.nbytes for each in (mine, other)])
            divides = any(size % 2 == 0 for size in mine.shape)
            assert sizes[-1][0] * (2 if divides else 1) == sizes[-1][1] == mine.nbytes
            parts += divides
        assert parts == 12  # both moments of six parameters
        saved = sum(other - mine for mine, other in sizes)
        mine, other = (each.program.memory_analysis() for each in (split, whole))
        assert other.argument_size_in_bytes - mine.argument_size_in_bytes == saved

    def test_updates_alone_are_gathered(self) -> None:
        found = smooth("data=2", shard_optimizer=True)
        text = found.program.as_text()
        gathered = re.findall(r"= (\S+) all-gather\(", text)
        shapes = [re.sub(r"\{.*", "", each) for each in gathered]
        wanted = [
            f"f32[{','.join(map(str, each.shape))}]"
            for each in found.params.values()
            if any(size % 2 == 0 for size in each.shape)
        ]
        assert sorted(shapes) == sorted(wanted)
        assert "all-to-all" not in text

    def test_an_array_is_split_along_its_largest_axis_that_divides(self) -> None:
        mesh = make_mesh("data=4")
        shapes = {"a": (3, 3, 3, 4, 8), "b": (6,), "c": (), "d": (8, 8)}
        state: Any = TrainState(
            **dict.fromkeys(("step", "params", "statistics", "key", "average", "skipped"), ()),
            optimizer={k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()},
        )
        found = state_shardings(state, mesh, shard_optimizer=True).optimizer
        parts = {name: found[name].shard_shape(shape) for name, shape in shapes.items()}
        assert parts == {"a": (3, 3, 3, 4, 2), "b": (6,), "c": (), "d": (2, 8)}


def test_rotated_blocks_are_split_along_depth_without_gathering() -> None:
    """The strongest profile, compiled alone."""
    step, *_ = prepared(build("meshnet", SMOOTH), Augmented(STRONG, (0, 1, 2)))
    mesh = make_mesh("data=2,spatial=2")
    small = {name: each[:4] for name, each in BATCHES[0].items()}
    batch = jax.device_put(small, over_data(mesh))
    key = jax.random.key(0)
    compiled = jax.jit(over_mesh(step, mesh).changed).lower(key, 0, batch).compile()
    assert not any(word in compiled.as_text() for word in (*GATHERS, "collective-permute"))
    image, label = compiled(key, 0, batch)
    assert image.addressable_shards[0].data.shape == (2, 4, 8, 8, 1)
    assert label.addressable_shards[0].data.shape == (2, 4, 8, 8)


def graph() -> Network:
    """Two convolutions with `BatchNormalization` between them."""
    conv = {"filters": 2, "kernel_size": [3, 3, 3], "padding": "same"}
    layers = [
        {"name": "c1", "kind": "Conv3D", "config": conv},
        {"name": "bn", "kind": "BatchNormalization", "config": {}},
        {"name": "act", "kind": "Activation", "config": {"activation": "elu"}},
        {"name": "c2", "kind": "Conv3D", "config": conv},
    ]
    names = [layer["name"] for layer in layers]
    calls = [
        {"name": name, "layer": name, "inputs": [before]}
        for before, name in zip(["x", *names], names, strict=False)
    ]
    inputs = {"x": [None, None, None, 1]}
    return build(
        "graph", {"graph": {"layers": layers, "calls": calls, "inputs": inputs, "outputs": ["c2"]}}
    )


@cache
def of_graph(mesh: str, how: Any) -> Found:
    """Four steps of a graph on blocks that devices cut, in parts, of levels computed again."""
    volumes = {"image": jnp.asarray(IMAGES[0], jnp.bfloat16), "label": jnp.asarray(LABELS[0])}
    rng = np.random.default_rng(1)
    choices = [
        {"case": rng.permutation(8).astype(np.int32), "start": np.zeros((8, 3), np.int32)}
        for _ in range(4)
    ]
    options = {"accumulate": 2, "remat": True, "ema": 0.5, "rule": ("bn/* from_step=2",)}
    mesh_ = make_mesh(mesh)
    on_all = jax.device_put(volumes, mapping.on_all(mesh_))
    return run(graph(), UNCHANGED, choices, on_all, mesh=mesh, map=how, **options)


def test_a_graph_is_the_same_in_both_mappings() -> None:
    """With its own batch norm, which thaws; accumulated, remat, from a device cache."""
    found, wanted = of_graph("data=4", "pmap"), of_graph("data=4", "jit")
    assert_same(found, wanted, rounding="c1/bias")
    for name in ("statistics", "average"):
        mine, other = (flat(getattr(each.state, name)) for each in (found, wanted))
        for path, value in other.items():
            if path != "c1/bias":
                np.testing.assert_allclose(mine[path], value, rtol=1e-5, atol=1e-6)
    for name in ("loss", "gradient_norm", "update_norm"):
        assert float(found.metrics[name]) == pytest.approx(float(wanted.metrics[name]), rel=1e-4)


def test_flops_are_the_whole_batchs() -> None:
    """Of a convolution of 27 taps and the head: the image has no gradient."""
    voxels = LABELS[0].size
    assert smooth("data=8").compiled.flops == 2 * voxels * (2 * 27 * 2 + 3 * 2 * 2)


def test_each_device_drops_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices with the same block, unchanged, and nothing averaged: losses differ."""
    network = build("meshnet", SMOOTH | {"dropout": 0.5, "norm": None})
    step, state, _ = prepared(network, UNCHANGED, compute_dtype="bfloat16")
    own = dataclasses.replace(step, axis="data")
    monkeypatch.setattr(TrainStep, "_over_devices", lambda _, *found: found)
    mapped = jax.pmap(
        lambda state, batch: own(state, batch)[1]["loss"],
        axis_name="data",
        in_axes=(None, 0),
        devices=jax.devices()[:2],
    )
    same = {name: np.stack([each[:1]] * 2) for name, each in BATCHES[0].items()}
    first, second = np.asarray(mapped(step.first_state(state.params, state.statistics, 0), same))
    assert first != second


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mesh": "data=2,spatial=2"}, "--map pmap gives each device whole blocks"),
        ({"shard_optimizer": True}, "--map pmap keeps the optimizer whole"),
    ],
)
def test_what_pmap_cannot_is_a_sentence(options: dict[str, Any], words: str) -> None:
    for how in ("jit", "pmap"):
        config = Finetune(Path("model"), "subjects.csv", Path("run"), map=how, **options)
        mesh = make_mesh(config.mesh)
        if how == "jit":
            check_mapping(config, mesh)
            continue
        with pytest.raises(InputError, match=words):
            check_mapping(config, mesh)
