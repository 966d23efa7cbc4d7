"""Networks that a file holds as one layer: Nobrainer's UNETR, against Keras layers put together."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest

from voxtune.converters.errors import ConversionError
from voxtune.converters.keras_file import read_keras_file
from voxtune.converters.keras_model import KerasLayer, KerasModel, KerasWeights
from voxtune.converters.subclassed import is_subclassed, opened
from voxtune.converters.to_flax import Conversion, convert
from voxtune.converters.verify import intermediate
from voxtune.converters.weights_only import candidates, fit
from voxtune.models.kinds import KINDS

SIZE, WIDTH, HEADS, PATCH, BLOCKS, MLP, FILTERS = (16, 8, 24), 10, 2, 8, 6, 5, 2
DEPTH = 3  # of a patch of 8 voxels
PLACES = tuple(n // PATCH for n in SIZE)
TOKENS = int(np.prod(PLACES))
ARGUMENTS = {
    "channels": 2,
    "outputs": 3,
    "size": list(SIZE),
    "width": WIDTH,
    "blocks": BLOCKS,
    "heads": HEADS,
    "patch": PATCH,
    "mlp": MLP,
    "filters": FILTERS,
    "dropout": 0.2,
    "mlp_dropout": 0.1,
    "norm": "batch",
}
CONFIG = {
    "img_shape": list(SIZE),
    "input_dim": 2,
    "output_dim": 3,
    "embed_dim": WIDTH,
    "patch_size": PATCH,
    "num_heads": HEADS,
    "dropout": 0.2,
}


class Reference:
    """`UNETR` of Nobrainer 1.2.1 for other sizes, of plain Keras layers.

    Its layers are made in the order in which the class makes them, and called in the order in which
    its `call` does; what they give is kept under the paths of voxtune's family.
    """

    def __init__(self, keras: Any) -> None:
        self._keras, self._ops, self.made = keras, keras.ops, []
        made, layers = self._made, keras.layers
        self._projection = made(layers.Dense(WIDTH), transformer=True)
        self._positions = made(layers.Embedding(TOKENS, WIDTH), transformer=True)
        self._patches = made(layers.Conv3D(WIDTH, PATCH, PATCH), transformer=True)
        self._blocks = [self._block_layers() for _ in range(BLOCKS)]
        wide = [FILTERS * 2**level for level in range(DEPTH)]
        self._skip0 = [self._unit(FILTERS // 2), self._unit(FILTERS)]
        self._towers = [
            [(self._up(n), self._unit(n)) for n in wide[: level - 1 : -1]]
            for level in range(1, DEPTH)
        ]
        self._bottom = self._up(wide[-1])
        self._decoders = []
        for level in reversed(range(DEPTH)):
            units = [self._unit(wide[level]) for _ in range(3 if level == DEPTH - 1 else 2)]
            last = self._up(wide[level - 1]) if level else made(layers.Conv3D(3, 1))
            self._decoders.append((units, last))
        self.found: dict[str, Any] = {}
        image = keras.Input((*SIZE, 2))
        self._called(image)
        self.model = keras.Model(image, self.found)

    def _made(self, layer: Any, transformer: bool = False) -> Any:
        self.made.append((layer, transformer))
        return layer

    def _block_layers(self) -> list[Any]:
        layers = self._keras.layers
        norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        dense = [layers.Dense(n) for n in (MLP, WIDTH, WIDTH, WIDTH, WIDTH, WIDTH)]
        return [self._made(each, transformer=True) for each in (*norms, *dense)]

    def _unit(self, filters: int) -> tuple[Any, Any]:
        layers = self._keras.layers
        conv = self._made(layers.Conv3D(filters, 3, padding="same"))
        return conv, self._made(layers.BatchNormalization())

    def _up(self, filters: int) -> Any:
        return self._made(self._keras.layers.Conv3DTranspose(filters, 2, 2))

    def _keep(self, path: str, x: Any) -> Any:
        self.found[path] = x
        return x

    def _units(self, path: str, x: Any, units: list[tuple[Any, Any]]) -> Any:
        for number, (conv, norm) in enumerate(units, start=1):
            x = self._ops.relu(norm(conv(x)))
            self._keep(f"{path}/unit{number}/activation", x)
        return x

    def _attended(self, x: Any, query: Any, key: Any, value: Any, out: Any) -> Any:
        def heads(y: Any) -> Any:
            return self._ops.transpose(
                self._ops.reshape(y, (-1, TOKENS, HEADS, WIDTH // HEADS)), (0, 2, 1, 3)
            )

        q, k, v = (heads(layer(x)) for layer in (query, key, value))
        scores = self._ops.matmul(q, self._ops.transpose(k, (0, 1, 3, 2)))
        shares = self._ops.softmax(scores / np.sqrt(WIDTH // HEADS), axis=-1)
        mixed = self._ops.transpose(self._ops.matmul(shares, v), (0, 2, 1, 3))
        return out(self._ops.reshape(mixed, (-1, TOKENS, WIDTH)))

    def _block(self, path: str, x: Any, layers: list[Any]) -> Any:
        before, after, wide, narrow, *attention = layers
        y = self._keep(f"{path}/attention", self._attended(before(x), *attention))
        x = self._keep(f"{path}/attention_add", y + x)
        y = self._keep(f"{path}/mlp_out", narrow(self._ops.relu(wide(after(x)))))
        return self._keep(f"{path}/add", y + x)

    def _volume(self, path: str, x: Any) -> Any:
        turned = self._ops.transpose(x, (0, 2, 1))
        return self._keep(f"{path}/volume", self._ops.reshape(turned, (-1, *PLACES, WIDTH)))

    def _called(self, image: Any) -> None:
        ops = self._ops
        x = self._projection(ops.reshape(self._patches(image), (-1, TOKENS, WIDTH)))
        # Keras calls it once and for all here, so that its values must stay.
        x = self._keep("embedding/add", x + self._positions(np.arange(TOKENS)[None]))
        skips = [self._units("skip0", image, self._skip0)]
        per = BLOCKS // DEPTH
        for index, layers in enumerate(self._blocks):
            x = self._block(f"encoder{index // per + 1}/block{index % per + 1}", x, layers)
            level = (index + 1) // per
            if (index + 1) % per or level == DEPTH:
                continue
            y = self._volume(f"skip{level}", x)
            for step, (up, (conv, norm)) in enumerate(self._towers[level - 1], start=1):
                y = ops.relu(norm(conv(up(y))))
                self._keep(f"skip{level}/up{step}/unit/activation", y)
            skips.append(y)
        x = self._keep("bottom/up", self._bottom(self._volume("bottom", x)))
        for level, (units, last) in zip(reversed(range(DEPTH)), self._decoders, strict=True):
            x = ops.concatenate([skips.pop(), x], axis=4)
            x = last(self._units(f"decoder{level}/convs", x, units))
            self._keep(f"decoder{level}/up" if level else "", x)

    def fill(self, random: np.random.Generator) -> None:
        """Random values for all weights but the positions, which have them."""
        for layer, _ in self.made:
            for weight in layer.weights if layer is not self._positions else ():
                low = 0.5 if weight.name in ("gamma", "moving_variance") else -0.5
                weight.assign(random.uniform(low, low + 1, weight.shape))

    def stored(self) -> Iterator[tuple[str, np.ndarray]]:
        """The weights as Keras 2.14 wrote them, and the token that the class never reads."""
        yield "Variable:0", np.ones((1, 512, WIDTH), np.float32)
        for group in ("trainable_weights", "non_trainable_weights"):
            for layer, transformer in self.made:
                scope = "unetr/transformer_encoder/" if transformer else ""
                for weight in getattr(layer, group):
                    yield f"{scope}{layer.name}/{weight.name}:0", np.asarray(weight)


@pytest.fixture(scope="module")
def reference(keras: Any) -> Reference:
    made = Reference(keras)
    made.fill(np.random.default_rng(0))
    return made


@pytest.fixture(scope="module")
def path(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model as Keras 2.14 writes Nobrainer's, whose class does not write its name."""
    folder = tmp_path_factory.mktemp("unetr")

    def layer(name: str, class_name: str, config: dict[str, Any], *source: str) -> dict[str, Any]:
        nodes = [[[each, 0, 0, {}] for each in source]] if source else []
        return {"class_name": class_name, "config": config, "name": name, "inbound_nodes": nodes}

    image = layer("image", "InputLayer", {"name": "image", "batch_input_shape": [None, *SIZE, 2]})
    last = layer("last", "Activation", {"name": "last", "activation": "softmax"}, "unetr")
    config = {
        "name": "model",
        "layers": [image, layer("unetr", "UNETR", CONFIG, "image"), last],
        "input_layers": [["image", 0, 0]],
        "output_layers": [["last", 0, 0]],
    }
    tensors = dict(reference.stored())
    with h5py.File(folder / "unetr.h5", "w") as file:
        document = {"class_name": "Functional", "config": config}
        file.attrs["model_config"] = json.dumps(document).encode()
        file.attrs["keras_version"], file.attrs["backend"] = b"2.14.0", b"tensorflow"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"image", b"unetr", b"last"]
        for name, arrays in (("image", {}), ("unetr", tensors), ("last", {})):
            held = group.create_group(name)
            held.attrs["weight_names"] = [each.encode() for each in arrays]
            for weight, array in arrays.items():
                held.create_dataset(weight, data=array)
        with h5py.File(folder / "weights.h5", "w") as alone:
            for name in group:
                group.copy(name, alone)
            alone.attrs["layer_names"] = group.attrs["layer_names"]
            alone.attrs["keras_version"], alone.attrs["backend"] = b"2.14.0", b"tensorflow"
    return folder / "unetr.h5"


@pytest.fixture(scope="module")
def model(path: Path) -> KerasModel:
    found = read_keras_file(path)
    assert isinstance(found, KerasModel)
    return found


@pytest.fixture(scope="module")
def conversion(model: KerasModel) -> Conversion:
    return convert(model)


@pytest.fixture
def layer(model: KerasModel) -> KerasLayer:
    return model.by_name["unetr"]


def test_it_becomes_the_family_and_no_tensor_is_unaccounted_for(
    conversion: Conversion, model: KerasModel
) -> None:
    assert (conversion.family, conversion.arguments) == ("unetr", ARGUMENTS)
    assert conversion.output_activation == "softmax"
    names = {f"unetr/{name}" for name in model.by_name["unetr"].weights}
    assert {each.keras for each in conversion.tensors} == names
    left_out = [(each.keras, each.done) for each in conversion.tensors if not each.path]
    assert left_out == [("unetr/Variable", "left out: its class never reads it")]
    assert {each.done for each in conversion.tensors if "/attention/" in each.path} == {
        "loaded, heads apart", "loaded",
    }  # fmt: skip


def test_every_layer_is_that_of_keras(conversion: Conversion, reference: Reference) -> None:
    x = np.random.default_rng(1).normal(size=(2, *SIZE, 2)).astype(np.float32)
    wanted = jax.jit(lambda x: reference.model(x, training=False))(x)
    found, _ = intermediate(conversion, {"image": x})
    assert len(wanted) == 44
    for place, value in wanted.items():
        ours = found[f"unetr/{place}" if place else "unetr"]
        largest = float(np.abs(value).max())
        assert largest > 0.01, place
        np.testing.assert_allclose(ours, value, atol=1e-5 * largest, rtol=0, err_msg=place)


def test_weights_alone_are_the_same_network(path: Path, conversion: Conversion) -> None:
    alone = read_keras_file(path.with_name("weights.h5"))
    assert isinstance(alone, KerasWeights)
    told = {"size": list(SIZE), "heads": HEADS, "dropout": 0.2}
    found = fit(alone, "unetr", told)
    assert (found.family, found.arguments) == ("unetr", ARGUMENTS)
    assert found.output_activation == "softmax"
    assert found.parameters.keys() == conversion.parameters.keys()
    for name, value in conversion.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], value)
    # Six tokens are no cube, and 64 channels a head are more than there are.
    assert candidates(alone) == ["--model unetr --arguments size=48,8,8 heads=1"]
    for wrong, says in (
        ({}, "do not tell its size and heads; pass --arguments"),
        ({**told, "filters": 4}, "holds a network with filters=2, not 4"),
        ({**told, "size": [16, 8, 16]}, "where 'embeddings' (4, 10) is expected"),
    ):
        with pytest.raises(ConversionError) as caught:
            fit(alone, "unetr", wrong)
        assert says in str(caught.value)


def test_the_order_of_a_frozen_network_is_read_too(layer: KerasLayer) -> None:
    """Keras lists the weights of a network that is not trained layer by layer."""
    names = sorted(layer.weights, key=lambda name: name.startswith("batch_normalization"))
    order: list[str] = []
    for name in layer.weights:
        scope = name.rpartition("/")[0]
        order += [each for each in names if each.rpartition("/")[0] == scope and each not in order]
    assert order != list(layer.weights)
    frozen = dataclasses.replace(layer, weights={name: layer.weights[name] for name in order})
    found, wanted = opened(frozen), opened(layer)
    assert found.graph == wanted.graph
    for place, stored in wanted.weights.items():
        assert {k: v.name for k, v in found.weights[place].items()} == {
            k: v.name for k, v in stored.items()
        }


def _without(end: str) -> Callable[[dict[str, np.ndarray]], None]:
    def alter(weights: dict[str, np.ndarray]) -> None:
        del weights[next(name for name in weights if name.endswith(end))]

    return alter


def _renamed(weights: dict[str, np.ndarray]) -> None:
    """A kernel and a bias change places."""
    names = list(weights)
    first, second = names[1], names[2]
    items = list(weights.items())
    items[1], items[2] = (second, weights[second]), (first, weights[first])
    weights.clear()
    weights.update(items)


@pytest.mark.parametrize(
    ("config", "alter", "says"),
    [
        ({"img_shape": [16, 8, 16]}, None, r"embeddings' \(6, 10\) stands where"),
        ({"img_shape": "16"}, None, "'size' is a list"),
        ({"img_shape": None}, None, "settings and weights are not its class's"),
        ({"num_heads": 0}, None, "'heads' is a whole number above zero"),
        ({"num_heads": 3}, None, "stands where 'kernel'"),
        ({"dropout": 2}, None, "'dropout' is a number from 0 up to 1"),
        ({}, _without("/embeddings"), "are not its class's"),
        ({}, _without("moving_mean"), "it has 187 weights where 188 are expected"),
        ({}, _renamed, "stands where 'kernel'"),
        ({}, dict.clear, "are not its class's"),
    ],
)
def test_what_is_not_the_class_is_refused(
    layer: KerasLayer, config: dict[str, Any], alter: Callable[..., None] | None, says: str
) -> None:
    weights = dict(layer.weights)
    if alter is not None:
        alter(weights)
    strange = KerasLayer("unetr", "UNETR", {**layer.config, **config}, weights)
    with pytest.raises(ValueError, match=says):
        opened(strange)


def test_another_input_is_refused(model: KerasModel) -> None:
    image = KerasLayer("image", "InputLayer", {"batch_input_shape": [None, 16, 16, 24, 2]}, {})
    layers = tuple(image if each.name == "image" else each for each in model.layers)
    with pytest.raises(ConversionError, match=r"'unetr' .* takes .* is called with") as caught:
        convert(dataclasses.replace(model, layers=layers))
    assert str(model.path) in str(caught.value)


def test_a_class_of_ones_own_comes_first(
    layer: KerasLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_subclassed(layer)
    monkeypatch.setitem(KINDS, "UNETR", KINDS["Identity"])
    assert not is_subclassed(layer)
