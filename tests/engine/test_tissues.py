"""A published network on a real head: tissues as large and as bright as they are known to be."""

from pathlib import Path

import numpy as np
import pytest

from voxtune.engine.cli import main
from voxtune.engine.config import Segmenting
from voxtune.engine.predict import load_model
from voxtune.engine.preprocessing import network_image
from voxtune.engine.volume import load_image

PART = np.s_[80:176, 80:176, 62:158]


def test_tissues_of_a_part_of_a_head(tmp_path: Path, shared_data: Path) -> None:
    """Scaled as the whole head is, cut, and predicted in one window: what tf.keras makes of it."""
    original = shared_data / "keras" / "brainchop" / "model5_gw_ae"
    main(["convert", str(original), str(tmp_path / "model")])
    model = load_model(tmp_path / "model", options=Segmenting(block=(96, 96, 96), mesh="data=1"))
    head = load_image(shared_data / "mri" / "t1_crop.nii.gz")
    image, grid = network_image([head], model.spec.contract)
    assert grid.exact  # the head lies as the network wants it, so its voxels are the image's
    found = model.predictor(model.members, image[PART]).winners()
    shares = [(found == tissue).mean() for tissue in range(3)]
    other, white, grey = (head.data[PART][found == tissue].mean() for tissue in range(3))
    # Figures: shared/data/README.md.
    assert shares == pytest.approx((0.324, 0.347, 0.329), abs=0.002)
    assert (other, white, grey) == pytest.approx((81, 119, 100), abs=1)
    assert white > grey + 15
