"""Training on label maps alone: what is drawn, and what is learned of it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.engine.case import IGNORE, Affine, Case, contents_of, quantised
from voxtune.engine.config import Finetune
from voxtune.engine.contract import Contract
from voxtune.engine.dataset import class_table
from voxtune.engine.label_maps import drawn_cases, drawn_of, to_draw
from voxtune.engine.model_dir import LabelClass
from voxtune.engine.synthetic import Generator
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)
LABEL = RNG.choice(np.uint16([0, 2, 41, 1003]), (8, 9, 10))
CASE = Case("a", None, None, LABEL, np.eye(4), *contents_of(LABEL), LABEL.shape, (1.0, 1.0, 1.0))
CLASSES = (LabelClass(0, "background"), LabelClass(1, "white"), LabelClass(2, "cortex"))


@pytest.fixture
def config(tmp_path: Path) -> Any:
    path = tmp_path / "map.csv"
    path.write_text("original,new,name\n2,1,white\n41,1,white\n1003,2,cortex\n")
    return Finetune(Path("model"), "subjects.csv", Path("run"), label_map=path)


def test_values_are_drawn_and_what_they_become_is_learned(config: Finetune) -> None:
    drawn = drawn_of(config, [CASE])
    assert (drawn.values, drawn.learned) == ((0, 2, 41, 1003), (0, 1, 1, 2))
    assert drawn.names == {1: "white", 2: "cortex"}
    (learned,) = drawn.as_learned([CASE])
    assert learned.counts == {
        0: CASE.counts[0],
        1: CASE.counts[2] + CASE.counts[41],
        2: CASE.counts[1003],
    }
    np.testing.assert_array_equal(np.array(drawn.values)[drawn.table()[LABEL]], LABEL)
    assert drawn.indices(class_table(CLASSES)) == (0, 1, 1, 2)
    assert drawn.indices(class_table(CLASSES[:2])) == (0, 1, 1, IGNORE)


def test_a_value_that_the_map_misses_is_a_sentence(config: Finetune) -> None:
    assert config.label_map is not None
    config.label_map.write_text("2,1\n41,1\n")
    with pytest.raises(InputError, match=r"subjects\.csv has label values .* \(1003\)"):
        drawn_of(config, [CASE])


def test_too_many_values_are_a_sentence(config: Finetune) -> None:
    many = dataclasses.replace(CASE, counts=dict.fromkeys(range(256), 1))
    with pytest.raises(InputError, match="256 values, 255 are the most"):
        drawn_of(dataclasses.replace(config, label_map=None), [many])


def test_blocks_are_centred_on_what_is_learned() -> None:
    (found,) = to_draw([CASE], {0: 0, 2: 1, 41: 0, 1003: IGNORE})
    assert found.image is None
    assert list(found.positions) == [2]
    # 2 and 41 are one class: its positions are those of both, under the first of them.
    (merged,) = to_draw([CASE], {0: 0, 2: 1, 41: 1, 1003: 2})
    assert merged.positions.keys() == {2, 1003}
    both = len(CASE.positions[2]) + len(CASE.positions[41])
    assert len(merged.positions[2]) == both


def test_scans_to_validate_on_are_drawn_once_and_real_ones_are_kept(config: Finetune) -> None:
    drawn = drawn_of(config, [CASE])
    contract = Contract("RAS", (1.0, 1.0, 1.0), "minmax", (8, 8, 8))
    generator = Generator.of(contract, drawn.values, drawn.indices(class_table(CLASSES)))
    real = quantised([RNG.normal(size=LABEL.shape).astype(np.float32)], [Affine()])
    given = [CASE, dataclasses.replace(CASE, name="b", image=real)]
    found, kept = drawn_cases(given, drawn, generator, CLASSES, None, seed=0)
    again, _ = drawn_cases(given, drawn, generator, CLASSES, None, seed=0)
    everywhere = (slice(None),) * 3
    assert found.image is not None
    assert again.image is not None
    assert found.shape == CASE.shape
    assert found.image.shape == (*CASE.shape, 1)
    np.testing.assert_array_equal(found.image[everywhere], again.image[everywhere])
    assert set(np.unique(found.label[everywhere])) == {0, 1, 2}
    assert kept.image is real
    np.testing.assert_array_equal(
        kept.label[everywhere], np.uint16([0, 1, 1, 2])[drawn.table()[LABEL]]
    )
