"""A whole scan in one pass, and what is done where memory does not suffice."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import nibabel as nib
import numpy as np
import pytest

from voxtune.engine import memory, one_pass
from voxtune.engine.config import Segmenting
from voxtune.engine.contract import Contract
from voxtune.engine.mesh import make_mesh
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.engine.one_pass import OnePass
from voxtune.engine.predict import load_model
from voxtune.engine.predictor import Predictor
from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.parameters import shapes
from voxtune.models.sharding import check_depth_split

LESION = ModelSpec(
    family="meshnet",
    arguments={
        "channels": 1,
        "outputs": 2,
        "filters": 4,
        "dilations": [1],
        "activation": "relu",
        "norm": None,
    },
    output_activation="softmax",
    classes=(LabelClass(0, "background"), LabelClass(1, "lesion")),
    contract=Contract("RAS", (1.0, 1.0, 1.0), "minmax", (16, 16, 16)),
)


class TestOnePass:
    """With a random network that sees one voxel around each."""

    @pytest.fixture(scope="class")
    @classmethod
    def random_dir(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("models") / "random"
        rng = np.random.default_rng(0)
        values = {
            path: rng.normal(size=shape).astype(np.float32)
            for path, shape in shapes(LESION.family, LESION.arguments).items()
        }
        write_model(folder, LESION, values, history={})
        return folder

    scan = nib.Nifti1Image(
        np.random.default_rng(0).random((24, 33, 20)).astype(np.float32), np.eye(4)
    )

    @classmethod
    def segment(cls, folder: Path, **options: Any) -> Any:
        options = {"mesh": "data=1", "block": "full", **options}
        model = load_model(folder, options=Segmenting(**options), maps=("probabilities",))
        return model.segment(cls.scan)

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, random_dir: Path) -> Any:
        return cls.segment(random_dir)

    def test_it_is_the_network_of_the_reflected_scan(self, random_dir: Path, whole: Any) -> None:
        """Padded to multiples of 16: one block of that shape gives the same."""
        assert whole.notes == ()
        found = whole.maps["probabilities"]
        wanted = self.segment(random_dir, block=(32, 48, 32)).maps["probabilities"]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        windows = self.segment(random_dir, block=(16, 16, 16)).maps["probabilities"]
        assert not np.allclose(found, windows, atol=1e-3)

    @pytest.mark.parametrize("mesh", ["data=2", "data=1,spatial=4"])
    def test_devices_share_its_depth(self, random_dir: Path, whole: Any, mesh: str) -> None:
        """24 slices are padded to 32 for four devices too."""
        found = self.segment(random_dir, mesh=mesh).maps["probabilities"]
        np.testing.assert_allclose(found, whole.maps["probabilities"], rtol=1e-4, atol=1e-5)

    def test_depth_is_padded_by_no_more_than_splits(self) -> None:
        """A network that halves twice, on eight devices: 8 x 4 slices, or twice that."""
        arguments = {"channels": 1, "outputs": 2, "filters": 2, "depth": 2, "norm": None}
        unet = dataclasses.replace(LESION, family="unet", arguments=arguments)
        windows = Predictor((32, 32, 32), 0.25, make_mesh("data=1,spatial=8"))
        one = OnePass(windows, [unet], (32, 32, 32))
        assert one.block((50, 44, 70)) == (64, 48, 80)
        check_depth_split(abstract("unet", arguments), 64, 8)

    def test_a_network_that_does_not_take_the_padded_shape(self) -> None:
        """One of positions of blocks of 16 voxels: a scan of 24 is padded to 32."""
        arguments = {
            "channels": 1, "outputs": 2, "size": [16, 16, 16], "width": 4, "blocks": 2, "heads": 2,
            "patch": 4, "mlp": 4, "filters": 2,
        }  # fmt: skip
        spec = dataclasses.replace(LESION, family="unetr", arguments=arguments)
        one = OnePass(Predictor((16, 16, 16), 0.25, make_mesh("data=1")), [spec], (16, 16, 16))
        said = r"--block full does not suit this scan, which is padded to 32 x 32 x 32 voxels \(--b"
        with pytest.raises(InputError, match=said):
            one([], np.zeros((24, 24, 24, 1), np.float32))

    def test_without_the_memory_windows_are_run_and_it_is_said(
        self, random_dir: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "available_memory", lambda: 1e5)
        found = self.segment(random_dir)
        (note,) = found.notes
        assert note.startswith("one pass over 32 x 48 x 32 voxels does not fit into memory (it")
        assert note.endswith("the machine has 0.1 MB free); predicted by windows of 16 x 16 x 16")
        wanted = self.segment(random_dir, block=(16, 16, 16)).maps["probabilities"]
        np.testing.assert_allclose(found.maps["probabilities"], wanted, atol=1e-6)

    def test_a_device_that_runs_out_is_no_end(
        self, random_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def exhausted(*arguments: Any) -> Any:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: allocating 5 GiB")

        monkeypatch.setattr(one_pass.Predictor, "compiled", exhausted)
        (note,) = self.segment(random_dir).notes
        assert "does not fit into memory (5 GiB more were asked for); predicted by" in note
        monkeypatch.undo()
        original: Callable[..., Any] = one_pass.Predictor.in_one

        def once(predictor: Any, members: Any, image: Any, block: Any) -> Any:
            if block != (16, 16, 16):
                exhausted()
            return original(predictor, members, image, block)

        monkeypatch.setattr(one_pass.Predictor, "in_one", once)
        assert "5 GiB more were asked for" in self.segment(random_dir).notes[0]

    def test_another_failure_is_not_hidden(
        self, random_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*arguments: Any) -> Any:
            raise jax.errors.JaxRuntimeError("INTERNAL: broken")

        monkeypatch.setattr(one_pass.Predictor, "in_one", broken)
        with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
            self.segment(random_dir)
