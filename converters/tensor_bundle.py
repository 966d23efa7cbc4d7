"""TensorFlow's checkpoint format, read without TensorFlow: `x.index` and `x.data-00000-of-00001`.

The index is a table of LevelDB's kind: blocks of sorted keys, each written as what differs from the
key before. Formats: leveldb's doc/table_format.md, and TensorFlow's tensor_bundle.proto,
trackable_object_graph.proto and types.proto.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.protobuf import integer, messages, text, varint
from voxtune.converters.stored import Stored, size_of

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_MAX_INDEX_BYTES = 256 * 2**20
# Numbers of types.proto → NumPy's names, of those that variables have.
_DTYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 9: "<i8", 10: "|b1", 14: "bfloat16",
    17: "<u2", 19: "<f2", 22: "<u4", 23: "<u8",
}  # fmt: skip
_STRING = 7
_MAX_NAME = 4096
# Of all names to the index: each may repeat most of the one before. Real ones have some 3.
_MAX_RATIO = 16
_MAX_DEPTH = 64
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class Variable:
    """How a program's objects hold a variable.

    Attributes:
        place: names of the attributes that lead to it, from the model on.
        name: its own, `conv/kernel`; "" if the file does not say.
    """

    place: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Bundle:
    """A checkpoint.

    Attributes:
        tensors: key → where the values are.
        variables: key → the variable; empty for a checkpoint of TensorFlow 1.
    """

    tensors: Mapping[str, Stored]
    variables: Mapping[str, Variable]


def read_bundle(prefix: Path, path: Path) -> Bundle:
    """Reads the index of a checkpoint.

    Args:
        prefix: the files' names without `.index` and `.data-...`.
        path: what the user gave, for messages.

    Raises:
        ConversionError: the index is broken, or of a kind that only TensorFlow reads.
        OSError: the system refuses to read.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    _check_file(index, path)
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise ConversionError(
            f"{path}: {quoted(index.name)} is larger than {_MAX_INDEX_BYTES >> 20} MB, too large "
            "for a checkpoint's index; check that it is the right file"
        )
    try:
        entries = dict(_table(memoryview(index.read_bytes())))
        shards = integer(entries.pop("", memoryview(b"")), 1)
        tensors: dict[str, Stored] = {}
        files: dict[int, Path] = {}
        graph = None
        for key, value in entries.items():
            if next(messages(value, 7), None) is not None:
                raise ConversionError(
                    f"{path}: the variable {quoted(key)} is stored in slices, which voxtune does "
                    "not read; load the checkpoint in TensorFlow and save it again without them"
                )
            dtype, shard = integer(value, 1), integer(value, 3)
            if shard not in files:
                files[shard] = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
                _check_file(files[shard], path)
            tensors[key] = Stored(
                file=files[shard],
                offset=_signed(integer(value, 4)),
                dtype=_DTYPES.get(dtype, f"no number: type {dtype}"),
                shape=_shape(value),
            )
            if dtype in _DTYPES and integer(value, 5) != size_of(tensors[key]):
                raise ValueError("a shape and a size disagree")
            if key == _OBJECT_GRAPH and dtype == _STRING:
                graph = _string(tensors.pop(key), integer(value, 5))
        return Bundle(tensors, dict(_variables(memoryview(graph))) if graph else {})
    except (ValueError, OverflowError) as error:
        _broken(path, index, error)


def _check_file(file: Path, path: Path) -> None:
    if file.is_symlink() or not file.is_file():
        raise ConversionError(
            f"{path}: {quoted(file.name)} is missing, or a link; put all files of the checkpoint "
            "into one folder"
        )


def _broken(path: Path, index: Path, error: Exception) -> NoReturn:
    raise ConversionError(
        f"{path}: {quoted(index.name)} is broken or no checkpoint's index ({quoted(error)}); get "
        "the checkpoint again"
    ) from error


def _table(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    """The keys and values of a LevelDB table."""
    if len(data) < 48 or data[-8:] != _MAGIC:
        raise ValueError("its last bytes are not those of a table")
    position = len(data) - 48
    for _ in range(2):  # the handle of the meta index, which is empty
        _, position = varint(data, position)
    names = 2**20 + _MAX_RATIO * len(data)
    blocks = len(data)
    for _, handle in _block(data, *_handle(data, position)):
        start, size = _handle(handle, 0)
        blocks -= size
        if blocks < 0:
            raise ValueError("its blocks overlap")
        for key, value in _block(data, start, size):
            names -= len(key)
            if names < 0:
                raise ValueError("its names are far longer than the file")
            # Keys of slices are no texts; the variable that they belong to says that it has them.
            yield str(bytes(key), "utf-8", "replace"), value


def _handle(data: memoryview, position: int) -> tuple[int, int]:
    """Where a block begins, and its size."""
    start, position = varint(data, position)
    return start, varint(data, position)[0]


def _block(data: memoryview, start: int, size: int) -> Iterator[tuple[bytearray, memoryview]]:
    """The keys and values of a block."""
    if start + size + 5 > len(data) or size < 4:
        raise ValueError("a block lies outside")
    if data[start + size] != 0:
        raise ValueError("a block is compressed, which TensorFlow does not write")
    block = data[start : start + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    key, position = bytearray(), 0
    while position < end:
        shared, position = varint(block, position)
        new, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or position + new + length > end:
            raise ValueError("an entry is cut short")
        if shared + new > _MAX_NAME:  # each may repeat most of the one before
            raise ValueError("a name is too long")
        key[shared:] = block[position : position + new]
        position += new + length
        yield key, block[position - length : position]


def _signed(value: int) -> int:
    if value >= 2**63:
        raise ValueError("a negative number")
    return value


def _shape(entry: memoryview) -> list[int]:
    shape = [_signed(integer(dim, 1)) for part in messages(entry, 2) for dim in messages(part, 2)]
    if len(shape) > 32:
        raise ValueError("a shape of more than 32 sizes")
    return shape


def _string(stored: Stored, size: int) -> bytes:
    """The one text of a string tensor: its length, a checksum of that, and its bytes."""
    assert stored.offset is not None
    if stored.offset + size > stored.file.stat().st_size or size > _MAX_INDEX_BYTES:
        raise ValueError("the graph of the objects is cut short")
    with stored.file.open("rb") as file:
        file.seek(stored.offset)
        content = memoryview(file.read(size))
    length, position = varint(content, 0)
    if position + 4 + length != len(content):
        raise ValueError("the graph of the objects is cut short")
    return bytes(content[position + 4 :])


def _variables(graph: memoryview) -> Iterator[tuple[str, Variable]]:
    """Key → variable, in the order of the model's layers, found from the root of the objects.

    An object may be reached in many ways. That over the layers comes first.
    """
    nodes = [
        (
            [(text(child, 2), integer(child, 1)) for child in messages(node, 1)],
            [(text(attribute, 3), text(attribute, 2)) for attribute in messages(node, 2)],
        )
        for node in messages(graph, 1)
    ]
    seen: set[int] = set()
    stack: list[tuple[tuple[str, ...], int]] = [((), 0)]
    while stack:
        place, number = stack.pop()
        if number in seen or number >= len(nodes) or len(place) > _MAX_DEPTH:
            continue
        seen.add(number)
        children, attributes = nodes[number]
        for key, name in attributes:
            yield key, Variable(place, name)
        if any(len(name) > _MAX_NAME for name, _ in children):
            raise ValueError("a name is too long")
        ordered = sorted(children, key=lambda child: _order(child[0]), reverse=True)
        stack += [((*place, name), child) for name, child in ordered]


def _order(name: str) -> tuple[int, int, str]:
    """`layer_with_weights-2` before `layer_with_weights-10`, and both before anything else."""
    stem, _, number = name.rpartition("-")
    if stem == "layer_with_weights" and number.isdecimal() and len(number) < 10:
        return (0, int(number), "")
    return (1, 0, name)
