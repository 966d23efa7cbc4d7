"""Training on label maps alone: what `--synthetic` makes of a run's subjects."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from voxtune.engine.case import IGNORE, Affine, Case, class_indices, quantised
from voxtune.engine.config import Finetune
from voxtune.engine.labels import read_label_map
from voxtune.engine.model_dir import LabelClass
from voxtune.engine.synthetic import Generator
from voxtune.models.errors import InputError


@dataclass(frozen=True)
class Drawn:
    """What images are drawn from, and what is learned of it.

    Attributes:
        values: label values of the maps, the background 0 first.
        learned: of each, the label value that it counts as.
        names: label value that is learned → its name, as far as it has one.
    """

    values: tuple[int, ...]
    learned: tuple[int, ...]
    names: Mapping[int, str]

    def table(self) -> np.ndarray:
        """Label value → its index in `values`, uint8 `[65536]`."""
        table = np.full(2**16, IGNORE, np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        return table

    def as_learned(self, cases: Sequence[Case]) -> list[Case]:
        """The cases, with the counts of the label values that are learned."""
        to = dict(zip(self.values, self.learned, strict=True))

        def counted(case: Case) -> Case:
            counts = dict.fromkeys(sorted({to[value] for value in case.counts}), 0)
            for value, count in case.counts.items():
                counts[to[value]] += count
            return dataclasses.replace(case, counts=counts)

        return [counted(case) for case in cases]

    def indices(self, table: np.ndarray) -> tuple[int, ...]:
        """The class of each value by the table of the classes, or `IGNORE`."""
        return tuple(table[list(self.learned)].tolist())


def drawn_of(config: Finetune, cases: Sequence[Case]) -> Drawn:
    """What the label maps of a run hold, and what the options for labels make of it.

    Args:
        config: of the run.
        cases: all that have been read, their label values as the files have them.

    Raises:
        InputError: the label map is bad or misses values, or there are too many.
    """
    values = (0, *sorted({value for case in cases for value in case.counts} - {0}))
    if len(values) > IGNORE:
        raise InputError(
            f"The label maps of {config.subjects} have {len(values)} values, {IGNORE} are the most "
            "that --synthetic draws; merge some with 'voxtune prepare --label-map'."
        )
    label_map = read_label_map(config.label_map, config.keep, config.binarise, config.unlisted)
    learned = label_map.new_values(values, config.subjects)
    return Drawn(values, learned, label_map.names)


def to_draw(cases: Sequence[Case], indices: Mapping[int, int]) -> list[Case]:
    """Training cases without images; blocks are centred on what is learned, each class as likely.

    Args:
        cases: the subjects.
        indices: label value → class index, or `IGNORE`.
    """

    def without(case: Case) -> Case:
        found: dict[int, list[np.ndarray]] = {}
        first: dict[int, int] = {}  # class → the value that stands for all of its values
        for value, positions in sorted(case.positions.items()):
            if indices[value] not in (0, IGNORE):
                found.setdefault(first.setdefault(indices[value], value), []).append(positions)
        merged = {value: np.concatenate(each) for value, each in found.items()}
        return dataclasses.replace(case, image=None, positions=merged)

    return [without(case) for case in cases]


def drawn_cases(
    cases: Sequence[Case],
    drawn: Drawn,
    generator: Generator,
    classes: Sequence[LabelClass],
    ignored: int | None,
    seed: int,
) -> list[Case]:
    """Cases to validate on whose images are drawn, always the same.

    Args:
        cases: the subjects; of one that has an image, that is kept.
        drawn: what images are drawn from.
        generator: how.
        classes: that are learned.
        ignored: label value of voxels that count for nothing.
        seed: of the run.
    """
    found = []
    draw = jax.jit(generator)
    values = np.array([*(each.value for each in classes), 0 if ignored is None else ignored])
    to = np.array(drawn.learned)
    for number, case in enumerate(cases):
        index = class_indices(case, np.asarray(case.label[:, :, :]), drawn.table())
        if case.image is not None:
            found.append(dataclasses.replace(case, label=_smallest(to[index])))
            continue
        key = jax.random.fold_in(jax.random.key(seed), number)
        image, label = draw(jax.random.split(key, 1), index[None])
        label = np.minimum(np.asarray(label[0]), len(classes))
        channels = list(np.moveaxis(np.asarray(image[0]), -1, 0))
        found.append(
            dataclasses.replace(
                case,
                image=quantised(channels, [Affine()] * len(channels)),
                label=_smallest(values[label]),
            )
        )
    return found


def _smallest(label: np.ndarray) -> np.ndarray:
    return label.astype(np.uint8 if label.max() <= 255 else np.uint16)
