"""Reading and writing, and there and back; references are nibabel's and values by hand."""

import dataclasses
import gzip
import struct
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest

from voxtune.engine.conform import conform
from voxtune.engine.predicted import Predicted
from voxtune.engine.scan_grid import to_scan_grid
from voxtune.engine.volume import (
    Volume,
    _nibabel_errors,
    check_same_grid,
    load_image,
    load_label,
    save_image,
    save_label,
    written_beside,
)
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def there_and_back(scan: Volume, labels: np.ndarray, orientation: str, spacing, path: Path):
    """Labels as a network would give them: conform, one-hot, back, save, read again."""
    moved = conform(dataclasses.replace(scan, data=labels), orientation, spacing, "nearest")
    conformed = conform(scan, orientation, spacing, "linear")
    assert moved.data.shape == conformed.data.shape
    back = to_scan_grid(conformed, Predicted.of(np.eye(3, dtype=np.float32)[moved.data]))
    save_label(path, back, scan)
    return conformed, load_label(path)


def mean_dice(a: np.ndarray, b: np.ndarray) -> float:
    masks = [(a == k, b == k) for k in (1, 2)]
    return float(np.mean([2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in masks]))


class TestReading:
    def test_values_and_affine_are_nibabels(
        self, tmp_path: Path, oriented_affine: Callable[..., np.ndarray]
    ) -> None:
        data = RNG.normal(size=(5, 6, 7)).astype(np.float32)
        affine = oriented_affine("PSR", (1, 2, 3))
        read = load_image(save(tmp_path / "a.nii.gz", data, affine))
        np.testing.assert_array_equal(read.data, data)
        np.testing.assert_allclose(read.affine, affine, atol=1e-6)
        assert read.spacing_mm == pytest.approx((1, 2, 3))
        assert read.voxel_ml == pytest.approx(0.006)

    def test_slope_and_intercept_are_applied(self, tmp_path: Path) -> None:
        image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
        image.header.set_slope_inter(0.5, -3)
        image.to_filename(tmp_path / "a.nii")
        expected = nib.load(tmp_path / "a.nii").get_fdata()
        np.testing.assert_allclose(load_image(tmp_path / "a.nii").data, expected)

    def test_one_frame_is_squeezed(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.nii.gz", RNG.random((4, 5, 6, 1)).astype(np.float32))
        assert load_image(path).data.shape == (4, 5, 6)

    @pytest.mark.parametrize("shape", [(128, 128, 32), (128, 128, 32, 1)])
    def test_it_is_scaled_a_plane_at_a_time(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        """The whole in float64 would be twice the scan."""
        image = nib.Nifti1Image(RNG.integers(0, 99, shape).astype(np.int16), np.eye(4))
        image.header.set_slope_inter(0.5, -3)
        image.to_filename(tmp_path / "a.nii")
        tracemalloc.start()
        read = load_image(tmp_path / "a.nii").data
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2.5 * read.nbytes  # the file itself is half of it, its copy and masks too

    def test_micrometres_become_millimetres(
        self, tmp_path: Path, blob: Callable[..., np.ndarray]
    ) -> None:
        image = nib.Nifti1Image(blob((5, 5, 5)), np.diag([50.0, 50, 50, 1]))
        image.header.set_xyzt_units("micron")
        image.to_filename(tmp_path / "mouse.nii")
        assert load_image(tmp_path / "mouse.nii").spacing_mm == pytest.approx((0.05, 0.05, 0.05))

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [((0, 255), np.uint8), ((0, 256), np.uint16), ((-1, 3), np.int32), ((0, 70000), np.int32)],
    )
    def test_labels_take_the_smallest_type(
        self, tmp_path: Path, values: tuple[int, int], dtype: type
    ) -> None:
        data = np.resize(np.array(values, np.float64), (3, 4, 5))
        read = load_label(save(tmp_path / "a.nii.gz", data))
        assert read.data.dtype == dtype
        np.testing.assert_array_equal(read.data, data)

    def test_scaled_integers_are_labels(self, tmp_path: Path) -> None:
        image = nib.Nifti1Image(np.resize([0, 255], (2, 2, 2)).astype(np.uint8), np.eye(4))
        image.header.set_slope_inter(0.00392157, 0)  # as SPM writes masks
        image.to_filename(tmp_path / "a.nii")
        assert set(np.unique(load_label(tmp_path / "a.nii").data)) == {0, 1}

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_pairs(self, tmp_path: Path, version: int, ending: str) -> None:
        data = RNG.integers(-9, 9, (4, 5, 6)).astype(np.int16)
        image_class = nib.Nifti1Pair if version == 1 else nib.Nifti2Pair
        image = image_class(data, np.diag([1.0, 2, 3, 1]))
        image.header.set_slope_inter(0.5, 3)
        nib.save(image, tmp_path / f"a.img{ending}")
        for part in ("hdr", "img"):
            read = load_image(tmp_path / f"a.{part}{ending}")
            np.testing.assert_array_equal(read.data, 0.5 * data + 3)
            np.testing.assert_array_equal(read.affine, image.affine)

    def test_the_sform_is_believed_before_the_qform_before_the_voxel_size(
        self, tmp_path: Path, blob: Callable[..., np.ndarray]
    ) -> None:
        for sform, qform, wanted in ((2, 1, 3.0), (0, 1, 2.0), (0, 0, 2.0)):
            image = nib.Nifti1Image(blob((5, 5, 5)), None)
            image.header.set_sform(np.diag([3.0, 3, 3, 1]), sform)
            image.header.set_qform(np.diag([2.0, 2, 2, 1]), qform)
            image.to_filename(tmp_path / "a.nii")
            read = load_image(tmp_path / "a.nii")
            np.testing.assert_allclose(read.affine, nib.load(tmp_path / "a.nii").affine)
            assert read.spacing_mm == (wanted,) * 3
            # Voxel sizes alone: the middle is the origin.
            assert read.affine[1, 3] == (0 if qform else -4)

    def test_voxels_that_are_no_numbers_are_replaced_where_asked(self, tmp_path: Path) -> None:
        data = RNG.normal(size=(3, 3, 3))
        data[0, 0] = np.nan, np.inf, 1e300  # the last beyond float32
        path = save(tmp_path / "a.nii", data)
        read = load_image(path, 2)
        assert read.replaced == 3
        assert read.data[0, 0].tolist() == [2, 2, 2]
        np.testing.assert_array_equal(read.data[1:], data[1:].astype(np.float32))
        assert load_image(save(tmp_path / "b.nii", data[1:]), 2).replaced == 0
        for value in (np.nan, -np.inf, 1e39):
            with pytest.raises(InputError, match="--nonfinite"):
                load_image(path, value)


class TestRefusals:
    """Each is one sentence that names the file and holds the reason."""

    def refuse(self, load, path: Path, *reasons: str) -> None:
        with pytest.raises(InputError) as caught:
            load(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        assert not message.endswith(".")
        for reason in reasons:
            assert reason in message

    def test_missing(self, tmp_path: Path) -> None:
        self.refuse(load_image, tmp_path / "no.nii.gz", "does not exist")

    def test_other_kinds_of_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.dcm").write_bytes(b"DICM")
        self.refuse(load_image, tmp_path / "a.dcm", "dcm2niix")

    def test_analyze_without_orientation(
        self, tmp_path: Path, blob: Callable[..., np.ndarray]
    ) -> None:
        nib.save(nib.AnalyzeImage(blob((5, 5, 5)), np.eye(4)), tmp_path / "a.img")
        self.refuse(load_image, tmp_path / "a.img", "no NIfTI")

    def test_pair_without_its_half(self, tmp_path: Path, blob: Callable[..., np.ndarray]) -> None:
        nib.save(nib.Nifti1Pair(blob((5, 5, 5)), np.eye(4)), tmp_path / "a.img")
        (tmp_path / "a.img").unlink()
        self.refuse(load_image, tmp_path / "a.hdr", "a.img")

    def test_frames(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.nii", RNG.random((3, 3, 3, 4)))
        self.refuse(load_image, path, "4 frames")

    def test_two_dimensions(self, tmp_path: Path) -> None:
        self.refuse(load_image, save(tmp_path / "a.nii", RNG.random((3, 4))), "(3, 4)")

    def test_complex(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.nii", RNG.random((3, 3, 3)).astype(np.complex64))
        self.refuse(load_image, path, "complex")

    def test_colours(self, tmp_path: Path) -> None:
        rgb = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        self.refuse(load_image, save(tmp_path / "a.nii", rgb), "colours")

    @pytest.mark.parametrize("load", [load_image, load_label])
    def test_not_finite(self, tmp_path: Path, load) -> None:
        data = np.zeros((3, 3, 3), np.float32)
        data[0, 0] = np.nan, np.inf, -np.inf
        self.refuse(load, save(tmp_path / "a.nii", data), "3 voxels")

    def test_beyond_float32(self, tmp_path: Path) -> None:
        data = np.full((3, 3, 3), 1e300)
        data[0] = 0
        self.refuse(load_image, save(tmp_path / "a.nii", data), "18 voxels")

    def test_constant(self, tmp_path: Path) -> None:
        self.refuse(load_image, save(tmp_path / "a.nii", np.full((3, 3, 3), 7.0)), "(7)")
        assert not load_label(save(tmp_path / "b.nii", np.zeros((3, 3, 3)))).data.any()

    @pytest.mark.parametrize("row", [(0, 0, 0, 0), (1, 2, 3, 0), (np.nan, 0, 0, 0)])
    def test_singular_affine(
        self, tmp_path: Path, row: tuple[float, ...], blob: Callable[..., np.ndarray]
    ) -> None:
        image = nib.Nifti1Image(blob((5, 5, 5)), np.eye(4))
        image.header["srow_x"], image.header["srow_y"] = row, (1, 2, 3, 0)
        image.header["sform_code"] = 1
        nib.Nifti1Image(blob((5, 5, 5)), None, image.header).to_filename(tmp_path / "a.nii")
        self.refuse(load_image, tmp_path / "a.nii", "affine")

    def test_labels_that_are_not_whole(self, tmp_path: Path) -> None:
        data = np.zeros((3, 3, 3))
        data[0] = np.arange(9).reshape(3, 3) + 0.5
        with pytest.raises(InputError) as caught:
            load_label(save(tmp_path / "a.nii", data))
        assert "(0.5, 1.5, 2.5, 3.5, 4.5)" in str(caught.value)

    def test_labels_too_large(self, tmp_path: Path) -> None:
        self.refuse(load_label, save(tmp_path / "a.nii", np.full((2, 2, 2), 3e9)), "too large")

    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.mgh"])
    def test_cut_short(self, tmp_path: Path, name: str) -> None:
        data = RNG.integers(0, 99, (20, 20, 20)).astype(np.int16)
        image_class = nib.MGHImage if "mg" in name else nib.Nifti1Image
        image_class(data, np.eye(4)).to_filename(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        assert load_image(tmp_path / name).data.shape == (20, 20, 20)
        # Voxels of MGH files end before the file does.
        for length in (0, 1, 10, 100, 300, 1000, len(whole) // 2, len(whole) - 60):
            (tmp_path / name).write_bytes(whole[:length])
            self.refuse(load_image, tmp_path / name)

    def test_a_flipped_bit_in_a_compressed_file(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.nii.gz", RNG.integers(0, 255, (20, 20, 20)).astype(np.uint8))
        contents = bytearray(path.read_bytes())
        contents[len(contents) // 2] ^= 1
        path.write_bytes(contents)
        self.refuse(load_image, path)

    def test_nibabels_log_stays_quiet(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, blob: Callable[..., np.ndarray]
    ) -> None:
        path = save(tmp_path / "a.nii", blob((5, 5, 5)))
        contents = bytearray(path.read_bytes())
        contents[70:72] = struct.pack("<h", 9999)  # no data type; nibabel logs it and raises
        path.write_bytes(contents)
        self.refuse(load_image, path, "9999")
        assert not caplog.records

    def test_threads_leave_no_filter_of_warnings(self, tmp_path: Path) -> None:
        """Of two reads at once, the first to begin is the first to end."""
        entered, leave = threading.Event(), threading.Event()

        def other() -> None:
            with _nibabel_errors(tmp_path):
                entered.set()
                leave.wait(10)

        before = list(warnings.filters)
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(10)
        with _nibabel_errors(tmp_path):
            leave.set()
            thread.join()
        assert list(warnings.filters) == before

    def test_not_really_compressed(self, tmp_path: Path, blob: Callable[..., np.ndarray]) -> None:
        save(tmp_path / "a.nii", blob((5, 5, 5))).rename(tmp_path / "a.nii.gz")
        self.refuse(load_image, tmp_path / "a.nii.gz")

    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("n", [1200, 1300, 32767])  # 2^31 is 1290^3
    def test_headers_that_claim_too_much(
        self, tmp_path: Path, n: int, compressed: bool, blob: Callable[..., np.ndarray]
    ) -> None:
        path = save(tmp_path / "a.nii", blob((5, 5, 5)))
        contents = bytearray(path.read_bytes())
        contents[40:48] = struct.pack("<4h", 3, n, n, n)
        path = tmp_path / ("b.nii.gz" if compressed else "b.nii")
        path.write_bytes(gzip.compress(contents) if compressed else contents)
        self.refuse(load_image, path, "claims")


class TestSameGrid:
    def test_rounding_is_no_difference(
        self, oriented_affine: Callable[..., np.ndarray], volume: Callable[..., Volume]
    ) -> None:
        image = volume(np.zeros((3, 4, 5), np.float32), oriented_affine("LAS", (1, 1, 2)))
        label = volume(np.zeros((3, 4, 5), np.uint8), image.affine + 2e-4)
        assert check_same_grid(image, label).affine is image.affine

    def test_a_qform_and_the_sform_it_was_made_from(
        self, oriented_affine: Callable[..., np.ndarray], volume: Callable[..., Volume]
    ) -> None:
        affine = oriented_affine("LAS", (1, 1, 1))
        affine[:3, :3] = nib.eulerangles.euler2mat(z=np.radians(0.03)) @ affine[:3, :3]
        header = nib.Nifti1Header()
        header.set_qform(affine, 1)
        data = np.zeros((3, 3, 3), np.float32)
        check_same_grid(volume(data, affine), volume(data, header.get_qform()))

    def test_shapes(self, volume: Callable[..., Volume]) -> None:
        image = volume(np.zeros((3, 4, 5), np.float32), np.eye(4))
        label = volume(np.zeros((3, 5, 4), np.uint8), np.eye(4))
        with pytest.raises(InputError, match=r"\(3, 5, 4\).*\(3, 4, 5\)"):
            check_same_grid(image, label)

    @pytest.mark.parametrize("place", [(0, 3), (1, 0), (2, 2)])
    def test_affines(self, place: tuple[int, int], volume: Callable[..., Volume]) -> None:
        data = np.zeros((3, 4, 5), np.uint8)
        moved = np.eye(4)
        moved[place] += 0.5
        with pytest.raises(InputError, match=r"\[1 0 0 0; 0 1 0 0; 0 0 1 0\]") as caught:
            check_same_grid(volume(data, np.eye(4)), volume(data, moved))
        assert ".5" in str(caught.value)


class TestRoundTrip:
    def check_header(self, scan: Volume, path: Path) -> None:
        """What describes the grid is the scan's, byte for byte; no text is left."""
        ours, theirs = nib.load(path), scan.header
        assert type(ours.header) is (
            nib.Nifti2Header if isinstance(theirs, nib.Nifti2Header) else nib.Nifti1Header
        )
        assert ours.header.endianness == theirs.endianness
        for field in (
            *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
            *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
            *("xyzt_units", "pixdim"),
        ):
            assert ours.header[field].tobytes() == theirs[field].tobytes(), field
        for field in ("descrip", "aux_file", "db_name", "intent_name"):
            assert field not in ours.header or ours.header[field].item() == b""
        assert not ours.header.extensions
        raw = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read(600)
        slope = ours.header.template_dtype.fields["scl_slope"][1]
        order = "<" if ours.header.endianness == "<" else ">"
        kind = ("d", 8) if isinstance(theirs, nib.Nifti2Header) else ("f", 4)
        stored = struct.unpack(f"{order}2{kind[0]}", raw[slope : slope + 2 * kind[1]])
        assert stored in ((1, 0), (0, 0))
        assert ours.get_data_dtype() in (np.uint8, np.dtype(f"{order}u2"), np.dtype(f"{order}i4"))

    @pytest.mark.parametrize("orientation", ["LIA", "PSR"])
    @pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)])
    @pytest.mark.parametrize(
        "name",
        [
            "sform_shear_uint8_scaled.nii.gz",
            "bigendian_int16.nii",
            "ail_orientation.nii.gz",
            "no_qform_no_sform_bigendian.nii.gz",
            "pair.hdr",
        ],
    )
    def test_odd_scans(
        self,
        shared_data: Path,
        tmp_path: Path,
        name: str,
        spacing,
        orientation: str,
        blob: Callable[..., np.ndarray],
    ) -> None:
        scan = load_image(shared_data / "mri" / "odd" / name)
        labels = blob(scan.data.shape)
        path = tmp_path / "out.nii.gz"
        conformed, read = there_and_back(scan, labels, orientation, spacing, path)
        assert read.data.shape == scan.data.shape
        np.testing.assert_array_equal(read.affine, scan.affine)
        self.check_header(scan, path)
        assert conformed.exact == (spacing is None and "shear" not in name)
        assert mean_dice(labels, read.data) > (0.999999 if conformed.exact else 0.9)
        if conformed.exact:
            np.testing.assert_array_equal(read.data, labels)

    def test_nifti2_with_text_and_an_extension(
        self, tmp_path: Path, blob: Callable[..., np.ndarray]
    ) -> None:
        image = nib.Nifti2Image(blob((9, 9, 9, 1)[:3])[..., None], np.diag([1.0, 2, 3, 1]))
        image.header["descrip"], image.header["aux_file"] = b"Jane Doe", b"jane.txt"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
        image.header["pixdim"][4] = 2.5
        image.to_filename(tmp_path / "in.nii.gz")
        scan = load_image(tmp_path / "in.nii.gz")
        save_label(tmp_path / "out.nii.gz", scan.data.astype(np.uint8), scan)
        self.check_header(scan, tmp_path / "out.nii.gz")
        assert b"Jane" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())
        assert scan.header.extensions  # the scan's own header is untouched
        assert nib.load(tmp_path / "out.nii.gz").shape == (9, 9, 9)

    @pytest.mark.parametrize("shear", [0.0, 0.3])
    def test_mgh_becomes_nifti(
        self,
        tmp_path: Path,
        shear: float,
        oriented_affine: Callable[..., np.ndarray],
        blob: Callable[..., np.ndarray],
    ) -> None:
        affine = oriented_affine("LIA", (1, 1, 1.5))
        affine[0, 1] = shear
        nib.MGHImage(blob((9, 8, 7)), affine).to_filename(tmp_path / "in.mgz")
        scan = load_image(tmp_path / "in.mgz")
        save_label(tmp_path / "out.nii.gz", blob((9, 8, 7)), scan)
        ours = nib.load(tmp_path / "out.nii.gz")
        np.testing.assert_allclose(ours.affine, scan.affine, atol=1e-5)
        assert int(ours.header["sform_code"]) == 1
        assert int(ours.header["qform_code"]) == (0 if shear else 1)
        np.testing.assert_array_equal(np.asarray(ours.dataobj), blob((9, 8, 7)))

    @pytest.mark.parametrize(
        ("high", "dtype"), [(255, np.uint8), (256, np.uint16), (65536, np.int32)]
    )
    def test_the_smallest_type_is_written(
        self, tmp_path: Path, high: int, dtype: type, blob: Callable[..., np.ndarray]
    ) -> None:
        scan = load_image(save(tmp_path / "in.nii", blob((5, 5, 5))))
        data = np.zeros((5, 5, 5), np.int64)
        data[0, 0, 0] = high
        save_label(tmp_path / "out.nii", data, scan)
        assert nib.load(tmp_path / "out.nii").get_data_dtype() == dtype
        assert load_label(tmp_path / "out.nii").data.max() == high

    def test_images_keep_their_values_whatever_the_scan_was_scaled_by(
        self, tmp_path: Path, oriented_affine: Callable[..., np.ndarray]
    ) -> None:
        affine = oriented_affine("LIA", (1, 1, 1.5))
        image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine)
        image.header.set_slope_inter(2.0, -5.0)
        image.header["cal_max"] = 99
        image.to_filename(tmp_path / "in.nii.gz")
        scan = load_image(tmp_path / "in.nii.gz")
        values = np.linspace(-1e-3, 2e5, 24).reshape(2, 3, 4)
        save_image(tmp_path / "out.nii.gz", values, scan)
        found = nib.load(tmp_path / "out.nii.gz")
        assert found.get_data_dtype() == np.float32
        assert found.header["cal_max"] == 0
        np.testing.assert_array_equal(np.asanyarray(found.dataobj), values.astype(np.float32))
        np.testing.assert_array_equal(found.affine, scan.affine)

    def test_writing_where_one_cannot(
        self, tmp_path: Path, blob: Callable[..., np.ndarray]
    ) -> None:
        scan = load_image(save(tmp_path / "in.nii", blob((5, 5, 5))))
        labels = blob((5, 5, 5))
        (tmp_path / "folder.nii").mkdir()
        for path in (
            tmp_path / "no" / "a.nii.gz",
            tmp_path / "in.nii" / "a.nii.gz",
            tmp_path / "folder.nii",
            tmp_path / "a.mgz",
        ):
            with pytest.raises(InputError, match="cannot be written"):
                save_label(path, labels, scan)
        assert {p.name for p in tmp_path.iterdir()} == {"in.nii", "folder.nii"}

    def test_a_failure_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blob: Callable[..., np.ndarray]
    ) -> None:
        scan = load_image(save(tmp_path / "in.nii", blob((5, 5, 5))))
        (tmp_path / "out.nii").write_bytes(b"old")

        def full(_: object, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(nib, "save", full)
        with pytest.raises(InputError, match="No space left"):
            save_label(tmp_path / "out.nii", blob((5, 5, 5)), scan)
        assert (tmp_path / "out.nii").read_bytes() == b"old"
        assert {p.name for p in tmp_path.iterdir()} == {"in.nii", "out.nii"}


def test_two_writers_of_one_file_share_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with written_beside(path) as first, written_beside(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("first", [path])
