"""Weights that keep the scale of pretrained ones and nothing of what was learned.

A network that learns as well from them owes the pretrained ones their scale alone. `matched` is the
"Mean Var" start of Raghu et al. 2019 (Transfusion: understanding transfer learning for medical
imaging, NeurIPS), for kernels.
"""

import hashlib

import numpy as np

from voxtune.engine.rules import is_kernel
from voxtune.engine.surgery import Array


def shuffled(path: str, value: Array, seed: int) -> np.ndarray:
    """A pretrained tensor with its values in other places.

    Those of a kernel go anywhere in it, over taps and channels. All vectors of a layer, such as the
    scale and the statistics of a norm, are put in one order, so that what belongs together stays.

    Args:
        path: of the tensor.
        value: of any shape.
        seed: of the run.
    """
    flat = np.asarray(value).ravel()
    owner = path if is_kernel(path) else path.rpartition("/")[0]
    return flat[_random(owner, seed).permutation(flat.size)].reshape(np.shape(value))


def matched(fresh: Array, pretrained: Array) -> np.ndarray:
    """A freshly drawn kernel, moved and stretched to the mean and the standard deviation of the
    pretrained one.

    Args:
        fresh: of more than one value, not all the same.
        pretrained: of the same shape.
    """
    drawn, wanted = (np.asarray(each, np.float64) for each in (fresh, pretrained))
    spread = drawn.std()
    scaled = (drawn - drawn.mean()) * (wanted.std() / spread if spread else 0.0) + wanted.mean()
    return scaled.astype(np.asarray(pretrained).dtype)


def _random(owner: str, seed: int) -> np.random.Generator:
    """Draws for a layer that do not depend on which other layers there are."""
    digest = hashlib.sha256(owner.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
