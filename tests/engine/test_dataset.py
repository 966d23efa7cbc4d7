"""From scans and labels to blocks: padding, classes, and which block comes when."""

import dataclasses
from pathlib import Path

import grain
import nibabel as nib
import numpy as np
import pytest

from voxtune.engine.dataset import (
    Case,
    batches,
    load_channels,
    make_case,
    make_target_case,
    network_image,
    pad_to_block,
    read_pairs,
)
from voxtune.engine.losses import IGNORE
from voxtune.engine.model_dir import Contract, LabelClass
from voxtune.engine.subjects import Subject, read_subjects
from voxtune.engine.volume import Volume
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)
CONTRACT = Contract("RAS", None, "none", (4, 4, 4))
TWO = (LabelClass(0, "background"), LabelClass(1, "class 1"))
CLASSES = (LabelClass(0, "background"), LabelClass(17, "left"), LabelClass(53, "right"))


def volume(data: np.ndarray, name: str = "made.nii", affine: np.ndarray | None = None) -> Volume:
    return Volume(data, np.eye(4) if affine is None else affine, Path(name), nib.Nifti1Header())


def case(number: int, shape: tuple[int, int, int] = (8, 8, 8)) -> Case:
    """A case whose image tells which voxel of which case a value is; one corner is labelled."""
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 10_000 * number
    label = np.zeros(shape, np.uint8)
    label[:2, :2, :2] = 17
    return make_case(f"case{number}", [volume(image)], volume(label), CONTRACT, CLASSES)


CASES = [case(number) for number in range(3)]


def owner(block: np.ndarray) -> int:
    """The number of the case that a block is of."""
    (number,) = set((block // 10_000).astype(int).ravel().tolist())
    return number


class TestCases:
    def test_values_become_indices_in_the_order_of_the_classes(self) -> None:
        values = RNG.choice([0, 17, 53], (4, 4, 4)).astype(np.uint8)
        image = volume(RNG.normal(size=(4, 4, 4)).astype(np.float32))
        for order in ((0, 17, 53), (0, 53, 17)):
            classes = [LabelClass(value, f"{value}") for value in order]
            found = make_case("a", [image], volume(values), CONTRACT, classes).label
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(np.array(order)[found], values)

    def test_values_that_are_no_class_are_listed(self) -> None:
        label = np.zeros((4, 4, 4), np.uint8)
        label.flat[:4] = (17, 53, 54, 99)
        image = volume(RNG.normal(size=(4, 4, 4)).astype(np.float32))
        with pytest.raises(InputError, match=r"seg\.nii .*\(54, 99\).*0, 17, 53.*--labels"):
            make_case("a", [image], volume(label, "seg.nii"), CONTRACT, CLASSES)

    def test_image_and_label_are_conformed_alike(self) -> None:
        """An image that is its label, on an LAS grid: both are flipped along the first axis."""
        label = RNG.choice([0, 17, 53], (4, 5, 6)).astype(np.uint8)
        affine = np.diag([-1.0, 1.0, 1.0, 1.0])
        image = volume(label.astype(np.float32), affine=affine)
        found = make_case("a", [image], volume(label, affine=affine), CONTRACT, CLASSES)
        np.testing.assert_array_equal(found.image[..., 0], label[::-1])
        np.testing.assert_array_equal(np.array([0, 17, 53])[found.label], found.image[..., 0])

    def test_the_contract_scales_the_image(self) -> None:
        data = (7 + 3 * RNG.normal(size=(4, 5, 6))).astype(np.float32)
        image, grid = network_image([volume(data)], Contract("RAS", None, "zscore", (4, 4, 4)))
        assert (image.shape, image.dtype) == ((4, 5, 6, 1), np.float32)
        assert grid.exact
        assert image.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
        assert image.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)

    def test_a_small_scan_is_reflected_and_its_label_ignored_there(self) -> None:
        """3 voxels in a block of 6: one before, two behind."""
        data = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
        contract = Contract("RAS", None, "none", (6, 3, 3))
        found = make_case(
            "a", [volume(data)], volume(np.zeros((3, 3, 3), np.uint8)), contract, CLASSES
        )
        np.testing.assert_array_equal(found.image[..., 0], data[[1, 0, 1, 2, 1, 0]])
        assert (found.label[1:4] == 0).all()
        assert (found.label[[0, 4, 5]] == IGNORE).all()

    def test_padding_says_where_the_scan_lies(self) -> None:
        data = RNG.normal(size=(3, 9, 5, 2))
        padded, inside = pad_to_block(data, (8, 8, 8))
        assert padded.shape == (8, 9, 8, 2)
        np.testing.assert_array_equal(padded[inside], data)
        assert pad_to_block(data, (3, 9, 5))[0] is data

    def test_a_scan_of_one_slice_can_be_padded(self) -> None:
        padded, inside = pad_to_block(np.full((1, 2, 2), 5.0), (4, 4, 4))
        assert padded.shape == (4, 4, 4)
        assert (padded == 5).all()
        assert padded[inside].shape == (1, 2, 2)


class TestPairs:
    def test_pairs_must_fit(self, tmp_path: Path) -> None:
        data = RNG.normal(size=(4, 4, 4)).astype(np.float32)
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "image.nii")
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 5), np.uint8), np.eye(4)), tmp_path / "label.nii")
        files = {"image": tmp_path / "image.nii"}
        subject = Subject("a", files, tmp_path / "label.nii", None)
        with pytest.raises(InputError, match=r"label\.nii has shape \(4, 4, 5\)"):
            read_pairs([subject])


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def test_voxels_of_the_ignored_value_count_for_nothing():
    """Also where the value lies between or above those of the classes."""
    for ignored in (5, 9, -1, 255):
        label = np.zeros((4, 4, 4), np.int16)
        label[0], label[1], label[2] = 3, 7, ignored
        classes = (LabelClass(0, "background"), LabelClass(7, "b"), LabelClass(3, "a"))
        contract = Contract("RAS", None, "none", (4, 4, 4))
        found = make_case("a", [volume(label)], volume(label), contract, classes, ignored).label
        assert found[:, 0, 0].tolist() == [2, 1, IGNORE, 0]
    with pytest.raises(InputError, match=r"no class \(9\).*--ignore-label"):
        make_case("a", [volume(label)], volume(np.full_like(label, 9)), contract, classes, 5)


class TestChannels:
    def test_a_table_of_two_becomes_blocks_of_two(self, tmp_path: Path) -> None:
        """Each channel is scaled by its own extremes: 0 to 7 and -100 to 600 both to 0 to 1."""
        ramp = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
        las = np.diag([-1.0, 1, 1, 1])  # the first axis runs to the left: it is turned round
        for name, data in (("t1", ramp), ("t2", 600 - 100 * ramp), ("seg", ramp > 6)):
            save(tmp_path / f"{name}.nii", data.astype(np.float32), las)
        table = tmp_path / "subjects.csv"
        table.write_text("subject,image_t1,image_t2,label\nsub-7,t1.nii,t2.nii,seg.nii\n")
        (pair,) = read_pairs(read_subjects(table))
        contract = Contract("RAS", None, "minmax", (2, 2, 2), channels=("t1", "t2"))
        one = make_case("sub-7", *pair, contract, TWO)
        batch = batches([one], (2, 2, 2), 1, 0.5, seed=0)[0]
        turned = ramp[::-1] / 7
        assert (batch["image"].shape, batch["image"].dtype) == ((1, 2, 2, 2, 2), np.float32)
        np.testing.assert_allclose(batch["image"][0, ..., 0], turned, rtol=1e-6)
        np.testing.assert_allclose(batch["image"][0, ..., 1], (6 - 7 * turned + 1) / 7, atol=1e-6)
        np.testing.assert_array_equal(batch["label"][0], turned == 1)
        assert batch["name"].tolist() == ["sub-7"]

    def test_three_channels_of_a_patient(self, shared_data: Path, tmp_path: Path) -> None:
        """FLAIR, T1 and T1 with contrast agent, each z-scored, and as many voxels of lesions."""
        folder, names = shared_data / "mri" / "open_ms" / "patient07", ("flair", "t1", "t1post")
        cells = ",".join(str(folder / f"{name}.nii.gz") for name in (*names, "lesions"))
        header = ",".join(f"image_{name}" for name in names)
        (tmp_path / "subjects.csv").write_text(f"subject,{header},label\n07,{cells}\n")
        (pair,) = read_pairs(read_subjects(tmp_path / "subjects.csv"))
        contract = Contract("RAS", None, "zscore", (8, 8, 8))
        one = make_case("07", *pair, contract, TWO)
        assert one.image.shape == (182, 218, 182, 3)
        for channel, name in enumerate(names):
            data = np.asanyarray(nib.load(folder / f"{name}.nii.gz").dataobj)[::-1]  # LAS
            wanted = (data - data.mean(dtype=np.float64)) / data.std(dtype=np.float64)
            np.testing.assert_allclose(one.image[..., channel], wanted, atol=1e-4)
        lesions = np.asanyarray(nib.load(folder / "lesions.nii.gz").dataobj)
        assert (one.label == 1).sum() == (lesions == 1).sum() > 0

    def test_channels_lie_on_the_grid_of_the_first(self, tmp_path: Path) -> None:
        """To the last bit, or resampled they would be of different shapes."""
        data = RNG.normal(size=(4, 4, 4)).astype(np.float32)
        near = np.eye(4) + 1e-4 * np.eye(4, k=1)
        files = {
            "t1": save(tmp_path / "t1.nii", data),
            "t2": save(tmp_path / "t2.nii", data, near),
        }
        first, second = load_channels(files)
        np.testing.assert_array_equal(first.affine, second.affine)

    @pytest.mark.parametrize(
        ("shape", "shift", "words"),
        [
            ((4, 4, 5), 0.0, r"\(4, 4, 5\) but .*t1\.nii has \(4, 4, 4\)"),
            ((4, 4, 4), 1.0, "affine"),
        ],
    )
    def test_channels_on_two_grids_are_refused(
        self, tmp_path: Path, shape: tuple[int, ...], shift: float, words: str
    ) -> None:
        data = RNG.normal(size=shape).astype(np.float32)
        files = {
            "t1": save(tmp_path / "t1.nii", RNG.normal(size=(4, 4, 4)).astype(np.float32)),
            "t2": save(tmp_path / "t2.nii", data, np.eye(4) + shift * np.eye(4, k=3)),
        }
        with pytest.raises(InputError, match=rf"t2\.nii has .*{words}.*\(linear\)"):
            load_channels(files)


class TestTargets:
    def test_a_target_is_conformed_and_scaled_as_the_scan_is(self, tmp_path: Path) -> None:
        """Halving the resolution of a ramp linearly; what it gives is scaled to 0 to 1."""
        image = RNG.normal(size=(5, 3, 3)).astype(np.float32)
        target = np.broadcast_to(0.5 + np.arange(5.0).reshape(5, 1, 1), (5, 3, 3))
        files = {"image": save(tmp_path / "image.nii", image)}
        label = save(tmp_path / "target.nii", target.astype(np.float32))
        subject = Subject("a", files, label, None)
        (pair,) = read_pairs([subject], target=True)
        found = make_target_case("a", *pair, Contract("RAS", (2.0, 1.0, 1.0), "minmax", (3, 3, 3)))
        assert (found.label.shape, found.label.dtype) == ((3, 3, 3), np.float32)
        middle = found.label[:, 1, 1]
        np.testing.assert_allclose(middle, [0, 0.5, 1], atol=1e-6)
        assert found.positions == ()
        with pytest.raises(InputError, match=r"target\.nii is not a label map"):
            read_pairs([subject])

    def test_what_padding_adds_is_unknown(self) -> None:
        data = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
        contract = Contract("RAS", None, "none", (6, 3, 3))
        one = make_target_case("a", [volume(data)], volume(data + 0.5), contract)
        np.testing.assert_array_equal(one.label[1:4], data + 0.5)
        assert np.isnan(one.label[[0, 4, 5]]).all()
        np.testing.assert_array_equal(one.image[..., 0], data[[1, 0, 1, 2, 1, 0]])
        batch = batches([one], (6, 3, 3), 2, 1.0, seed=0)[0]
        assert (batch["label"].shape, batch["label"].dtype) == ((2, 6, 3, 3), np.float32)
        np.testing.assert_array_equal(batch["label"][0], one.label)

    def test_target_and_scan_must_fit(self, tmp_path: Path) -> None:
        data = RNG.normal(size=(4, 4, 4)).astype(np.float32)
        files = {"image": save(tmp_path / "image.nii", data)}
        subject = Subject("a", files, save(tmp_path / "target.nii", data[:3]), None)
        with pytest.raises(InputError, match=r"target\.nii has shape .*\(linear\)"):
            read_pairs([subject], target=True)


class TestBatches:
    def test_each_block_has_the_name_of_its_subject(self) -> None:
        """Whatever the lengths of the names, in a batch of one too."""
        cases = [
            dataclasses.replace(each, name=name)
            for each, name in zip(CASES, ("a", "a long name", "ü"), strict=True)
        ]
        for size in (1, 3):
            data = batches(cases, (4, 4, 4), size, 0.5, seed=0)
            for step in range(3):
                batch = data[step]
                assert batch["name"].shape == (size,)
                wanted = [cases[owner(block)].name for block in batch["image"]]
                assert batch["name"].tolist() == wanted

    def test_a_batch_follows_from_seed_and_step_alone(self) -> None:
        one, other = (batches(CASES, (4, 4, 4), 2, 0.5, seed=7) for _ in range(2))
        for step in (5, 0, 123):  # in any order, without those before
            for name in ("image", "label"):
                np.testing.assert_array_equal(one[step][name], other[step][name])
        fed = iter(one.to_iter_dataset(grain.ReadOptions(num_threads=1)))
        for step in range(8):
            np.testing.assert_array_equal(next(fed)["image"], one[step]["image"])

    def test_another_seed_gives_other_batches(self) -> None:
        one, other = (batches(CASES, (4, 4, 4), 2, 0.5, seed=seed) for seed in (0, 1))
        assert not all((one[step]["image"] == other[step]["image"]).all() for step in range(3))

    def test_shapes_are_the_blocks(self) -> None:
        batch = batches(CASES, (4, 6, 8), 5, 0.5, seed=0)[0]
        assert (batch["image"].shape, batch["image"].dtype) == ((5, 4, 6, 8, 1), np.float32)
        assert (batch["label"].shape, batch["label"].dtype) == ((5, 4, 6, 8), np.uint8)

    def test_image_and_label_are_cut_at_the_same_place(self) -> None:
        data = batches(CASES, (4, 4, 4), 3, 0.5, seed=0)
        for step in range(5):
            for image, label in zip(
                *(data[step][name] for name in ("image", "label")), strict=True
            ):
                number = owner(image)
                place = np.argwhere(CASES[number].image[..., 0] == image[0, 0, 0, 0])[0]
                where = tuple(slice(start, start + 4) for start in place)
                np.testing.assert_array_equal(image, CASES[number].image[where])
                np.testing.assert_array_equal(label, CASES[number].label[where])

    def test_each_pass_sees_every_case_in_a_new_order(self) -> None:
        cases = [case(number, (4, 4, 4)) for number in range(6)]
        data = batches(cases, (4, 4, 4), 2, 0.0, seed=0)
        passes = [
            tuple(owner(block) for step in range(3) for block in data[3 * number + step]["image"])
            for number in range(5)
        ]
        assert all(sorted(order) == list(range(6)) for order in passes)
        assert len(set(passes)) > 1

    def test_a_case_is_cut_elsewhere_in_the_next_pass(self) -> None:
        data = batches(CASES[:1], (4, 4, 4), 1, 0.0, seed=0)
        assert len({data[step]["image"].tobytes() for step in range(10)}) > 5

    def test_foreground_alone_always_holds_a_labelled_voxel(self) -> None:
        data = batches(CASES, (3, 3, 3), 4, 1.0, seed=0)
        assert all((data[step]["label"] == 1).any(axis=(1, 2, 3)).all() for step in range(10))

    def test_foreground_is_the_share_of_blocks_round_a_label(self) -> None:
        """A block of one voxel is labelled where it was to be, else in 8 of 512 places."""
        data = batches(CASES[:1], (1, 1, 1), 10, 0.5, seed=0)
        found = np.mean([(data[step]["label"] == 1).mean() for step in range(60)])
        assert found == pytest.approx(0.5 + 0.5 * 8 / 512, abs=4 * 0.5 / np.sqrt(600))

    def test_classes_are_centred_on_alike_whatever_their_size(self) -> None:
        label = np.zeros((8, 8, 8), np.uint8)
        label[:6], label[7, 7, 7] = 17, 53
        image = volume(RNG.normal(size=label.shape).astype(np.float32))
        one = make_case("a", [image], volume(label), CONTRACT, CLASSES)
        data = batches([one], (1, 1, 1), 10, 1.0, seed=0)
        found = np.mean([(data[step]["label"] == 2).mean() for step in range(60)])
        assert found == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(600))

    def test_a_case_without_labels_gives_blocks_all_the_same(self) -> None:
        empty = volume(np.zeros((8, 8, 8), np.uint8))
        image = volume(RNG.normal(size=(8, 8, 8)).astype(np.float32))
        one = make_case("a", [image], empty, CONTRACT, CLASSES)
        batch = batches([one], (4, 4, 4), 2, 1.0, seed=0)[0]
        assert batch["image"].shape == (2, 4, 4, 4, 1)

    def test_a_batch_may_be_larger_than_the_cases(self) -> None:
        batch = batches(CASES, (4, 4, 4), 8, 0.5, seed=0)[0]
        assert sorted(set(map(owner, batch["image"]))) == [0, 1, 2]
