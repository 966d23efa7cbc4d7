"""Which block comes when, and what is in it."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

from voxtune.engine.case import IGNORE, Case, Quantised
from voxtune.engine.dataset import Plan, batches, choices, class_table, host_cached
from voxtune.engine.model_dir import LabelClass

RNG = np.random.default_rng(0)
TABLE = class_table([LabelClass(0, "background"), LabelClass(17, "left"), LabelClass(53, "right")])
PLAN = Plan(block=(4, 4, 4), sampling="random", foreground=0.5, batch=2, seed=0)


def make(name: str, image: np.ndarray | None, label: np.ndarray) -> Case:
    """A case in memory. Image `[D, H, W]` or `[D, H, W, C]` of whole numbers; target float32."""
    target = label.dtype.kind == "f"
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    if image is not None:
        image = image.reshape(*label.shape, -1).astype(np.int16)
    return Case(
        name=name,
        split=None,
        image=None if image is None else Quantised(image, one, zero),
        label=Quantised(label[..., None].astype(np.float16), one, zero) if target else label,
        affine=np.eye(4),
        counts={},
        boxes={},
        positions={
            int(value): np.argwhere(label == value).astype(np.int16)
            for value in np.unique(label)[::-1]
            if value and not target
        },
        scan_shape=(1, 1, 1),
        scan_spacing_mm=(1.0, 1.0, 1.0),
    )


def numbered(number: int, shape: tuple[int, int, int] = (8, 8, 8)) -> Case:
    """A case whose image tells which voxel of which case a value is; one corner is labelled."""
    label = np.zeros(shape, np.uint8)
    label[:2, :2, :2] = 17
    image = np.arange(np.prod(shape)).reshape(shape) + 10_000 * number
    return make(f"case{number}", image, label)


CASES = [numbered(number) for number in range(3)]


def owner(block: np.ndarray) -> int:
    """The number of the case that a block is of."""
    (number,) = set((block // 10_000).astype(int).ravel().tolist())
    return number


def drawn(cases: list[Case] = CASES, **changed: Any) -> grain.MapDataset:
    return batches(cases, dataclasses.replace(PLAN, **changed), TABLE, IGNORE)


def chosen(cases: list[Case] = CASES, count: int = 600, **changed: Any) -> list[tuple[int, ...]]:
    """Case and first voxel of the first examples."""
    data = choices(cases, dataclasses.replace(PLAN, **changed), TABLE)
    return [(int(data[i]["case"]), *data[i]["start"].tolist()) for i in range(count)]


def test_values_become_indices_and_others_are_ignored():
    assert TABLE[[0, 17, 53, 1, 65535]].tolist() == [0, 1, 2, IGNORE, IGNORE]
    assert (TABLE.shape, TABLE.dtype) == ((65536,), np.uint8)


class TestBatches:
    def test_each_block_has_the_name_of_its_subject(self) -> None:
        """Whatever the lengths of the names, in a batch of one too."""
        cases = [
            dataclasses.replace(each, name=name)
            for each, name in zip(CASES, ("a", "a long name", "ü"), strict=True)
        ]
        for size in (1, 3):
            data = drawn(cases, batch=size)
            for step in range(3):
                wanted = [cases[owner(block)].name for block in data[step]["image"]]
                assert data[step]["name"].tolist() == wanted

    def test_a_batch_follows_from_seed_and_step_alone(self) -> None:
        one, other = drawn(seed=7), drawn(seed=7)
        for step in (5, 0, 123):  # in any order, without those before
            for name in ("image", "label"):
                np.testing.assert_array_equal(one[step][name], other[step][name])

    def test_another_seed_gives_other_batches(self) -> None:
        assert chosen(seed=0, count=6) != chosen(seed=1, count=6)

    def test_shapes_are_the_blocks(self) -> None:
        label = np.zeros((8, 8, 8), np.uint16)
        two = make("a", RNG.integers(0, 9, (8, 8, 8, 2)), label)
        batch = drawn([two], block=(4, 6, 8), batch=5)[0]
        assert (batch["image"].shape, batch["image"].dtype) == ((5, 4, 6, 8, 2), np.float32)
        assert (batch["label"].shape, batch["label"].dtype) == ((5, 4, 6, 8), np.uint8)

    def test_label_maps_alone_give_no_image(self) -> None:
        batch = drawn([make("a", None, np.zeros((8, 8, 8), np.uint8))])[0]
        assert set(batch) == {"label", "name"}

    def test_image_and_label_are_cut_at_the_place_that_was_chosen(self) -> None:
        data, places = drawn(batch=3), chosen(count=15)
        for step in range(5):
            for number, (case, *start) in enumerate(places[3 * step : 3 * step + 3]):
                where = tuple(slice(a, a + 4) for a in start)
                image, label = (data[step][name][number] for name in ("image", "label"))
                np.testing.assert_array_equal(image, CASES[case].image[where])
                np.testing.assert_array_equal(label, TABLE[CASES[case].label[where]])

    def test_a_batch_may_be_larger_than_the_cases(self) -> None:
        assert sorted(set(map(owner, drawn(batch=8)[0]["image"]))) == [0, 1, 2]

    @pytest.mark.parametrize("count", [1, 2, 4])
    @pytest.mark.parametrize("read", [True, False])
    def test_parts_of_processes_make_up_the_batch(self, count: int, read: bool) -> None:
        plan = dataclasses.replace(PLAN, batch=4)
        whole = batches(CASES, plan, TABLE, IGNORE, read=read)
        parts = [batches(CASES, plan, TABLE, IGNORE, (n, count), read) for n in range(count)]
        for step in range(3):
            for name, wanted in whole[step].items():
                found = [part[step][name] for part in parts]
                assert all(len(each) == 4 // count for each in found)
                np.testing.assert_array_equal(np.concatenate(found), wanted)

    def test_blocks_that_are_not_read_are_the_same(self) -> None:
        plan = dataclasses.replace(PLAN, batch=3)
        read, told = drawn(batch=3), batches(CASES, plan, TABLE, IGNORE, read=False)
        for step in range(3):
            assert set(told[step]) == {"case", "start", "name"}
            assert told[step]["name"].tolist() == read[step]["name"].tolist()
        places = [
            (int(case), *start)
            for step in range(3)
            for case, start in zip(told[step]["case"], told[step]["start"].tolist(), strict=True)
        ]
        assert places == chosen(count=9)


class TestRandom:
    def test_each_pass_sees_every_case_in_a_new_order(self) -> None:
        order = [case for case, *_ in chosen([numbered(n) for n in range(6)], 30)]
        passes = {tuple(order[first : first + 6]) for first in range(0, 30, 6)}
        assert all(sorted(each) == list(range(6)) for each in passes)
        assert len(passes) > 1

    def test_a_case_is_cut_elsewhere_in_the_next_pass_and_everywhere_in_time(self) -> None:
        starts = [start for _, *start in chosen(CASES[:1], foreground=0.0, block=(7, 8, 6))]
        assert len({tuple(each) for each in starts[:10]}) > 3
        assert np.unique(starts, axis=0).tolist() == [
            list(each) for each in itertools.product((0, 1), (0,), (0, 1, 2))
        ]

    def test_foreground_alone_always_holds_a_labelled_voxel(self) -> None:
        data = drawn(block=(3, 3, 3), batch=4, foreground=1.0)
        assert all((data[step]["label"] == 1).any(axis=(1, 2, 3)).all() for step in range(10))

    def test_foreground_is_the_share_of_blocks_round_a_label(self) -> None:
        """A block of one voxel is labelled where it was to be, else in 8 of 512 places."""
        found = chosen(CASES[:1], 3000, block=(1, 1, 1), foreground=0.33)
        labelled = np.mean([max(start) < 2 for _, *start in found])
        wanted = 0.33 + 0.67 * 8 / 512
        assert labelled == pytest.approx(wanted, abs=4 * np.sqrt(0.33 * 0.67 / 3000))

    def test_a_block_is_centred_on_its_voxel_unless_the_border_is_near(self) -> None:
        label = np.zeros((9, 9, 9), np.uint8)
        label[4, 8, 1] = 17
        one = make("a", label, label)
        assert set(chosen([one], 20, foreground=1.0)) == {(0, 2, 5, 0)}

    def test_classes_are_centred_on_alike_whatever_their_size(self) -> None:
        """Background and values that are no class are never centred on."""
        label = np.full((8, 8, 8), 99, np.uint8)
        label[:6], label[7, 7, 7], label[7, 0, 0] = 17, 53, 0
        found = chosen([make("a", label, label)], block=(1, 1, 1), foreground=1.0)
        hit = np.array([label[tuple(start)] for _, *start in found])
        assert set(hit) == {17, 53}
        assert (hit == 53).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(600))

    def test_the_order_in_which_labels_were_found_makes_no_difference(self) -> None:
        label = RNG.choice([0, 17, 53], (8, 8, 8)).astype(np.uint8)
        one = make("a", label, label)
        other = dataclasses.replace(one, positions=dict(sorted(one.positions.items())))
        assert list(one.positions) != list(other.positions)
        assert chosen([one], 20, foreground=1.0) == chosen([other], 20, foreground=1.0)

    def test_a_case_without_labels_gives_blocks_all_the_same(self) -> None:
        empty = np.zeros((8, 8, 8), np.uint8)
        assert len(set(chosen([make("a", empty, empty)], 50, foreground=1.0))) > 20


class TestSmallCases:
    def test_the_image_is_reflected_and_the_label_ignored_there(self) -> None:
        """3 voxels in a block of 6: one before, two behind, in batches with a larger case."""
        data = np.arange(27).reshape(3, 3, 3)
        small = make("small", data, np.full((3, 3, 3), 17, np.uint8))
        large = make("large", np.zeros((9, 9, 9)), np.zeros((9, 9, 9), np.uint8))
        batch = drawn([small, large], block=(6, 3, 2), foreground=1.0)[0]
        image, label = (batch[name][batch["name"] == "small"][0] for name in ("image", "label"))
        start = image[0, 0, 0, 0] - data[1, 0, 0]  # along the last axis the block is smaller
        wanted = data[[1, 0, 1, 2, 1, 0]][..., int(start) : int(start) + 2]
        np.testing.assert_array_equal(image[..., 0], wanted)
        assert label[:, 0, 0].tolist() == [IGNORE, 1, 1, 1, IGNORE, IGNORE]

    def test_a_block_as_large_as_all_cases_is_the_whole_volume(self) -> None:
        shapes = [(4, 6, 5), (3, 7, 5)]
        cases = [numbered(number, shape) for number, shape in enumerate(shapes)]
        for sampling in ("random", "grid"):
            found = chosen(cases, 10, block=(4, 7, 5), sampling=sampling, foreground=1.0)
            assert set(found) == {(0, 0, 0, 0), (1, 0, 0, 0)}


class TestGrid:
    def test_each_pass_holds_each_voxel_of_each_case_once_in_a_new_order(self) -> None:
        cases = [numbered(0), numbered(1, (4, 8, 12))]
        data = drawn(cases, sampling="grid", batch=2)  # 8 and 6 blocks
        passes = [np.stack([data[7 * p + s]["image"] for s in range(7)]) for p in range(3)]
        every = np.concatenate([each.image[:, :, :].ravel() for each in cases])
        for one in passes:
            np.testing.assert_array_equal(np.sort(one.ravel()), every)
        assert not np.array_equal(passes[0], passes[1])

    def test_blocks_overlap_evenly_where_they_do_not_fit(self) -> None:
        """10 voxels in blocks of 4: three of them, 3 apart; 3 voxels: one, at 0."""
        found = chosen([numbered(0, (10, 4, 3))], 3, sampling="grid")
        assert sorted(found) == [(0, 0, 0, 0), (0, 3, 0, 0), (0, 6, 0, 0)]


def test_blocks_of_targets_lie_anywhere_and_are_unknown_beside_the_case():
    data = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    plan = dataclasses.replace(PLAN, block=(6, 3, 3), foreground=1.0)
    batch = batches([make("a", data, data + 0.5)], plan, None, np.nan)[0]
    assert (batch["label"].shape, batch["label"].dtype) == ((2, 6, 3, 3), np.float32)
    np.testing.assert_array_equal(batch["label"][0, 1:4], data + 0.5)
    assert np.isnan(batch["label"][:, [0, 4, 5]]).all()
    np.testing.assert_array_equal(batch["image"][0, ..., 0], data[[1, 0, 1, 2, 1, 0]])


def test_cases_in_memory_give_the_bits_of_those_on_the_disk(tmp_path: Path):
    def mapped(array: np.ndarray, name: str) -> np.ndarray:
        np.save(tmp_path / name, array)
        return np.load(tmp_path / f"{name}.npy", mmap_mode="r")

    stored = RNG.integers(-32768, 32767, (8, 9, 7, 2)).astype(np.int16)
    scale, offset = np.float32([0.013, 1.7]), np.float32([0.1, -3])
    label = RNG.choice([0, 17], (8, 9, 7)).astype(np.uint8)
    target = Quantised(mapped(stored[..., :1], "target"), scale[:1], offset[:1])
    image = Quantised(mapped(stored, "image"), scale, offset)
    disk = dataclasses.replace(CASES[0], image=image, label=mapped(label, "label"))
    for cases, table in (([disk], TABLE), ([dataclasses.replace(disk, label=target)], None)):
        (host,) = host_cached(cases)
        for array in (host.image.stored, getattr(host.label, "stored", host.label)):
            assert type(array) is np.ndarray
        one, other = (batches(each, PLAN, table, np.nan) for each in (cases, [host]))
        for step in range(3):
            for name in ("image", "label"):
                assert one[step][name].tobytes() == other[step][name].tobytes()
