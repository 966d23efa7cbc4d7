"""A comparison that can fail: golden files that are right, wrong and broken."""

from pathlib import Path

import numpy as np
import pytest

from voxtune.converters.canonical import CanonicalModel, Origin
from voxtune.converters.errors import ConversionError
from voxtune.converters.from_flax import to_graph
from voxtune.converters.to_flax import EMITTED, Conversion, from_canonical
from voxtune.converters.verify import Comparison, compare_golden, intermediate
from voxtune.models.parameters import shapes

RNG = np.random.default_rng(0)
ARGUMENTS = {"channels": 1, "outputs": 1, "filters": 2, "dilations": [1, 2], "norm": None}
X = RNG.normal(size=(1, 8, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def conversion() -> Conversion:
    """A MeshNet that ends in a sigmoid, as a Keras file of these layer names gives it."""
    parameters = {
        path: RNG.normal(size=shape).astype(np.float32)
        for path, shape in shapes("meshnet", ARGUMENTS).items()
    }
    graph, weights = to_graph("meshnet", ARGUMENTS, "sigmoid", parameters)
    origins = {
        layer: {name: Origin(f"{layer}/{name}", value.shape) for name, value in arrays.items()}
        for layer, arrays in weights.items()
    }
    names = {"a": "block1/activation", "b": "block2/conv", "last": "sigmoid", "input": "input"}
    canonical = CanonicalModel(graph, weights, origins, names, frozenset())
    return from_canonical(canonical, Path("net.h5"))


@pytest.fixture(scope="module")
def results(conversion: Conversion) -> dict[str, np.ndarray]:
    return intermediate(conversion, {"input": X})[0]


def golden(path: Path, **entries: object) -> Path:
    np.savez(path, **entries)  # type: ignore[arg-type]
    return path


def test_what_the_network_computes_is_met(
    conversion: Conversion, results: dict[str, np.ndarray], tmp_path: Path
) -> None:
    entries = {
        "x": X,
        "y": results["last"],
        "act:a": results["a"],
        "act4:b": results["b"][:, ::4, ::4, ::4],
        "act:last": results["last"],
        "note": "how it was made",
    }
    found = compare_golden(conversion, golden(tmp_path / "golden.npz", **entries))
    assert [each.name for each in found] == ["y", "act:a", "act4:b", "act:last"]
    assert all(each.met for each in found)
    assert conversion.paths["last"] == EMITTED
    probability = results["last"]
    assert 0 < probability.min() < probability.max() < 1  # what Keras emitted, not logits


def test_a_difference_is_found_where_it_is(
    conversion: Conversion, results: dict[str, np.ndarray], tmp_path: Path
) -> None:
    wrong = results["a"].copy()
    wrong[0, 3, 3, 3, 1] += 2e-4 * abs(wrong).max()
    path = golden(tmp_path / "golden.npz", x=X, y=results["last"], **{"act:a": wrong})
    assert [each.met for each in compare_golden(conversion, path)] == [True, False]


def test_what_is_not_a_number_is_not_met() -> None:
    assert not Comparison("y", "output", float("nan"), 1.0).met
    assert Comparison("y", "output", 0.0, 0.0).met
    assert not Comparison("y", "output", 1.0, 0.0).met


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"x": X}, "needs the arrays 'x' and 'y'"),
        ({"x": X[..., 0], "y": X}, r"'x' has shape \(1, 8, 8, 8\)"),
        ({"x": np.repeat(X, 2, -1), "y": X}, "3 spatial axes and 1 channels"),
        ({"x": X, "y": X, "act:zebra": X}, "a layer 'zebra'"),
        ({"x": X, "y": X[:, :4]}, "'y' has shape"),
        ({"x": X, "y": np.array([None])}, "cannot be read"),
    ],
)
def test_bad_golden_files_are_a_sentence(
    entries: dict[str, np.ndarray], says: str, conversion: Conversion, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=says):
        compare_golden(conversion, golden(tmp_path / "golden.npz", **entries))


def test_missing_and_truncated_golden_files(conversion: Conversion, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="does not exist"):
        compare_golden(conversion, tmp_path / "none.npz")
    whole = golden(tmp_path / "golden.npz", x=X, y=X).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(ConversionError, match="cannot be read"):
            compare_golden(conversion, tmp_path / "cut.npz")
