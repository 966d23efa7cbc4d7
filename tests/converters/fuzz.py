"""Mutates good files of each format: each must become a model or one sentence, in bounds.

    python tests/converters/fuzz.py --count 3000 --seed 0

The same seed gives the same mutations. A file that breaks the rule is kept and named, and the exit
status is 1.
"""

import argparse
import io
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from voxtune.converters.keras_file import KerasModel, read_keras_file
from voxtune.converters.to_flax import convert
from voxtune.converters.weights_only import fit
from voxtune.models.errors import InputError

MAX_SECONDS = 10.0
MAX_BYTES = 2**30
TENSORFLOW = Path(__file__).with_name("tensorflow")

GOOD = ("model", "network", "weights")
# Families that weights alone are fitted to, and what weights do not tell.
FAMILIES: dict[str, dict[str, Any]] = {
    "meshnet": {"dilations": [1, 1], "activation": "relu"},
    "unet": {},
}


def outcome(path: Path) -> str:
    """What came of a file; any error but a sentence is a fault.

    Returns:
        "model", "network" for weights that fit a family, "weights" for others, or the sentence.
    """
    try:
        found = read_keras_file(path)
        if isinstance(found, KerasModel):
            convert(found)
            return "model"
    except InputError as error:
        return _sentence(error, path)
    result = "weights"
    for family, arguments in FAMILIES.items():
        try:
            fit(found, family, arguments)
            result = "network"
        except InputError as error:
            _sentence(error, path)
    return result


def _sentence(error: InputError, path: Path) -> str:
    sentence = str(error)
    if "\n" in sentence or str(path) not in sentence:
        raise AssertionError(f"not one line that names the file: {sentence!r}") from error
    return sentence


# Good files


def _layer(name: str, class_name: str, *inputs: str, **config: Any) -> dict[str, Any]:
    return {
        "class_name": class_name,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": [[[source, 0, 0, {}] for source in inputs]] if inputs else [],
    }


def _model(name: str, *layers: dict[str, Any]) -> dict[str, Any]:
    config = {
        "name": name,
        "layers": list(layers),
        "input_layers": [[layers[0]["name"], 0, 0]],
        "output_layers": [[layers[-1]["name"], 0, 0]],
    }
    return {"class_name": "Functional", "config": config}


INNER = _model(
    "inner",
    _layer("inner_image", "InputLayer", batch_input_shape=[None, 4, 4, 4, 2]),
    _layer("norm", "BatchNormalization", "inner_image", axis=[4], epsilon=0.001),
    _layer("mixed", "Conv3D", "norm", filters=2, kernel_size=[1, 1, 1], use_bias=False),
)
CONFIG = _model(
    "net",
    _layer("image", "InputLayer", batch_input_shape=[None, 4, 4, 4, 1]),
    _layer("conv", "Conv3D", "image", filters=2, kernel_size=[3, 3, 3], padding="same"),
    INNER | {"name": "inner", "inbound_nodes": [[["conv", 0, 0, {}]]]},
    _layer("relu", "LeakyReLU", "inner", alpha=0.1),
    _layer("joined", "Concatenate", "relu", "conv", axis=-1),
    _layer("drop", "Dropout", "joined", rate=0.5),
)
SHAPES = {
    "conv": {"kernel": (3, 3, 3, 1, 2), "bias": (2,)},
    "norm": {"gamma": (2,), "beta": (2,), "moving_mean": (2,), "moving_variance": (2,)},
    "mixed": {"kernel": (1, 1, 1, 2, 2)},
}
GROUPS = {"image": [], "conv": ["conv"], "inner": ["norm", "mixed"], "relu": [], "joined": []}
PLACES = {
    "conv3d": "conv",
    "functional/layers/batch_normalization": "norm",
    "functional/layers/conv3d": "mixed",
    "dropout": "drop",
}


def _array(shape: tuple[int, ...]) -> np.ndarray:
    return np.linspace(0.1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def _legacy(file: h5py.File, root: str) -> None:
    group = file.require_group(root)
    group.attrs["layer_names"] = [name.encode() for name in GROUPS]
    group.attrs["keras_version"], group.attrs["backend"] = b"2.14.0", b"tensorflow"
    for name, layers in GROUPS.items():
        held = group.create_group(name)
        names = [f"{layer}/{weight}:0" for layer in layers for weight in SHAPES[layer]]
        held.attrs["weight_names"] = [weight.encode() for weight in names]
        for weight in names:
            layer, short = weight.removesuffix(":0").split("/")
            held[weight] = _array(SHAPES[layer][short])


def _meshnet(file: h5py.File) -> None:
    """Weights that fit a family."""
    shapes = {
        "conv": {"kernel": (3, 3, 3, 1, 2), "bias": (2,)},
        "norm": SHAPES["norm"],
        "mixed": {"kernel": (3, 3, 3, 2, 2), "bias": (2,)},
        "norm_1": SHAPES["norm"],
        "head": {"kernel": (1, 1, 1, 2, 3), "bias": (3,)},
    }
    file.attrs["layer_names"] = [name.encode() for name in shapes]
    for layer, held in shapes.items():
        group = file.create_group(layer)
        group.attrs["weight_names"] = [f"{layer}/{weight}:0".encode() for weight in held]
        for weight, shape in held.items():
            group[f"{layer}/{weight}:0"] = _array(shape)


def _by_place(file: h5py.File) -> None:
    file.create_group("vars")
    for place, layer in PLACES.items():
        group = file.create_group(f"layers/{place}/vars")
        group.attrs["name"] = layer
        for number, shape in enumerate(SHAPES.get(layer, {}).values()):
            group[str(number)] = _array(shape)
    file["layers/dropout/seed_generator/vars/0"] = np.arange(2, dtype=np.uint32)
    file["optimizer/vars/0"] = np.int64(3)


def _h5(write: Callable[[h5py.File], object]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write(file)
    return content.getvalue()


def _whole(file: h5py.File) -> None:
    file.attrs["model_config"] = json.dumps(CONFIG)
    file.attrs["keras_version"], file.attrs["backend"] = "2.14.0", "tensorflow"
    _legacy(file, "model_weights")
    file["optimizer_weights/Adam/m"] = _array((2,))


def _compressed(file: h5py.File) -> None:
    _whole(file)
    for name in ("model_weights/conv/conv/kernel:0", "model_weights/conv/conv/bias:0"):
        values = file[name][()]
        del file[name]
        file.create_dataset(name, data=values, compression="gzip", shuffle=True)


def _zip(compression: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.5.0"}))
        archive.writestr("config.json", json.dumps(CONFIG))
        archive.writestr("model.weights.h5", _h5(_by_place))
    return content.getvalue()


def _tfjs() -> dict[str, bytes]:
    entries, shard = [], b""
    for number, (layer, shapes) in enumerate(SHAPES.items()):
        for weight, shape in shapes.items():
            entry: dict[str, Any] = {"name": f"{layer}/{weight}", "shape": list(shape)}
            entry["dtype"] = "float32"
            content = _array(shape).tobytes()
            if number == 2:
                entry["quantization"] = {"dtype": "uint8", "scale": 0.1, "min": -3}
                content = bytes(range(int(np.prod(shape))))
            entries.append(entry)
            shard += content
    document = {
        "format": "layers-model",
        "modelTopology": {"keras_version": "2.7.0", "model_config": CONFIG},
        "weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": entries}],
    }
    return {"model.json": json.dumps(document).encode(), "a.bin": shard[:99], "b.bin": shard[99:]}


@dataclass(frozen=True)
class Target:
    """One file to mutate, among those that belong together.

    Attributes:
        files: name → content.
        mutated: the name of the one.
        given: the name that is read; "" for the folder.
    """

    files: dict[str, bytes]
    mutated: str
    given: str


def _folder(name: str) -> dict[str, bytes]:
    root = TENSORFLOW / name
    return {
        str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()
    }


def targets() -> dict[str, Target]:
    """A good file of each format, each file of formats with several."""
    single = {
        "whole.h5": _h5(_whole),
        "compressed.h5": _h5(_compressed),
        "old_weights.h5": _h5(lambda file: _legacy(file, "/")),
        "meshnet_weights.h5": _h5(_meshnet),
        "new.weights.h5": _h5(_by_place),
        "stored.keras": _zip(zipfile.ZIP_STORED),
        "deflated.keras": _zip(zipfile.ZIP_DEFLATED),
    }
    found = {name: Target({name: content}, name, name) for name, content in single.items()}
    groups = {
        "tfjs": _tfjs(),
        "saved": _folder("saved") | {"saved_model.pb": b""},
        "ckpt": _folder("ckpt"),
        "tf1": _folder("tf1"),
    }
    for group, files in groups.items():
        for name in files:
            if name not in ("saved_model.pb", "fingerprint.pb"):
                found[f"{group}/{name}"] = Target(files, name, "")
    return found


# Mutations

EXTREMES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), "", "x" * 5000, "../../etc",
    "\ud800", [], {}, [[]], [None], [-1, 2**40], {"class_name": "Lambda"}, "conv", "inner",
]  # fmt: skip


def flip(content: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 1, 2, 8, 64))):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def truncate(content: bytearray, dice: random.Random) -> None:
    del content[dice.randrange(len(content)) :]


def insert(content: bytearray, dice: random.Random) -> None:
    position = dice.randrange(len(content))
    content[position:position] = dice.randbytes(dice.choice((1, 2, 8, 100, 1000)))


def splice(content: bytearray, dice: random.Random) -> None:
    size = min(dice.choice((1, 4, 8, 16, 64, 512)), len(content))
    source, target = (dice.randrange(len(content) - size + 1) for _ in range(2))
    content[target : target + size] = content[source : source + size]


def extreme(content: bytearray, dice: random.Random) -> None:
    """An aligned integer becomes a largest, smallest or odd one."""
    size = dice.choice((1, 2, 4, 8))
    position = dice.randrange(max(len(content) // size, 1)) * size
    number = dice.choice(EXTREMES) % 2 ** (8 * size)
    content[position : position + size] = number.to_bytes(size, "little")


def double_a_name(content: bytearray, dice: random.Random) -> None:
    """A name takes the place of another of its length."""
    names = [b"conv", b"norm", b"relu", b"drop", b"mixed", b"image", b"inner", b"joined", b"kernel"]
    old = dice.choice([name for name in names if name in content] or [content[:1]])
    new = dice.choice([name for name in names if len(name) == len(old)] or [old])
    at = [i for i in range(len(content)) if content.startswith(old, i)]
    content[(start := dice.choice(at)) : start + len(old)] = new


MUTATIONS = [flip, flip, truncate, insert, splice, extreme, extreme, double_a_name]


def mutate_json(content: bytes, dice: random.Random) -> bytes:
    """Replaces, removes, doubles or swaps values anywhere in a JSON document."""
    document = json.loads(content)
    for _ in range(dice.choice((1, 1, 2, 5))):
        places: list[tuple[Any, Any]] = []
        queue = [document]
        while queue:
            item = queue.pop()
            keys = range(len(item)) if isinstance(item, list) else [*item]
            places += [(item, key) for key in keys]
            queue += [item[key] for key in keys if isinstance(item[key], dict | list)]
        if not places:
            break
        (holder, key), (other, source) = dice.choice(places), dice.choice(places)
        kind = dice.randrange(4)
        if kind == 0:
            holder[key] = dice.choice(VALUES)
        elif kind == 1:
            del holder[key]
        elif kind == 2:
            holder[key] = json.loads(json.dumps(other[source]))  # a copy: no cycle
        elif isinstance(holder, list):
            holder.append(json.loads(json.dumps(holder[key])))
    text = json.dumps(document)
    if dice.random() < 0.02:
        text = "[" * 10_000 + text + "]" * 10_000
    return text.encode()


def mutate_member(content: bytes, dice: random.Random) -> bytes:
    """An archive in which one member is changed and its checksum is right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
        compression = archive.infolist()[0].compress_type
    name = dice.choice([*members])
    members[name] = mutated(members[name], name, dice)
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w", compression) as archive:
        for each, text in members.items():
            archive.writestr(each, text)
    return changed.getvalue()


def mutated(content: bytes, name: str, dice: random.Random) -> bytes:
    """The content of a file, changed."""
    if name.endswith(".json") and dice.random() < 0.8:
        return mutate_json(content, dice)
    if name.endswith(".keras") and dice.random() < 0.7:  # whole again around a mutated member
        return mutate_member(content, dice)
    config = json.dumps(CONFIG).encode()
    if config in content and dice.random() < 0.5:  # in place: its length stays
        new = mutate_json(config, dice)
        if len(new) <= len(config):
            return content.replace(config, new + b" " * (len(config) - len(new)))
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        if changed:
            dice.choice(MUTATIONS)(changed, dice)
    return bytes(changed)


def main() -> int:
    """Runs; prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    dice = random.Random(given.seed)
    chosen = targets()
    outcomes: Counter[str] = Counter()
    slowest = (0.0, "")
    faults = 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="voxtune-fuzz-") as folder:
        for number in range(-len(chosen), given.count):
            # First each good file as it is: a reader that refuses everything shall not pass.
            key = [*chosen][number] if number < 0 else dice.choice([*chosen])
            target = chosen[key]
            root = Path(folder) / "files"
            for name, content in target.files.items():
                file = root / name
                file.parent.mkdir(parents=True, exist_ok=True)
                if name == target.mutated and number >= 0:
                    content = mutated(content, name, dice)
                file.write_bytes(content)
            begin = time.monotonic()
            fault = ""
            try:
                result = outcome(root / target.given)
                outcomes[result if result in GOOD else "refused"] += 1
                if number < 0 and result not in GOOD:
                    fault = f"the good file is refused: {result}"
            except Exception as error:  # what is not our sentence is the fault looked for
                fault = f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - begin
            slowest = max(slowest, (seconds, f"number {number}, {key}"))
            if seconds > MAX_SECONDS:
                fault = f"took {seconds:.1f} s"
            if fault:
                faults += 1
                kept = Path(tempfile.mkdtemp(prefix="voxtune-fault-"))
                shutil.copytree(root, kept, dirs_exist_ok=True)
                print(f"number {number}, {key}: {fault}\n  kept in {kept / target.given}")
            shutil.rmtree(root)
    unit = 1 if sys.platform == "darwin" else 1024
    from voxtune.converters.hdf5 import _server

    _server.close()  # its memory counts once it has ended
    for who, name in ((resource.RUSAGE_SELF, "reader"), (resource.RUSAGE_CHILDREN, "libhdf5")):
        peak = resource.getrusage(who).ru_maxrss * unit
        status = Path("/proc/self/status")
        if name == "reader" and status.is_file():
            # A process starts with the peak of the one that started it; not so here.
            peak = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
        print(f"peak memory of the {name}: {peak / 2**20:.0f} MB")
        faults += peak > MAX_BYTES
    print(
        f"seed {given.seed}: {given.count} mutations in {time.monotonic() - start:.1f} s, "
        f"{dict(outcomes)}, slowest {slowest[0]:.2f} s ({slowest[1]}), {faults} faults"
    )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
