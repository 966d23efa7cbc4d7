"""Whether a pretrained network is at home on some scans: a check before the first step.

It finds some wrong scalings and some wrong orientations; where it finds nothing, nothing is proved.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
from flax import nnx
from jax import Array

from voxtune.engine.contract import Contract
from voxtune.engine.intensity import IntensityKind, scaling_of
from voxtune.engine.losses import class_logits
from voxtune.engine.model_dir import ModelSpec
from voxtune.engine.predicted import most_probable
from voxtune.engine.preprocessing import pad_to_block
from voxtune.models.errors import InputError
from voxtune.models.families import Network
from voxtune.models.graph_net import GraphNet, attribute
from voxtune.models.kinds import KINDS
from voxtune.models.norms import BatchNorm

Change = Callable[[np.ndarray], np.ndarray]  # of a scan [D, H, W, C]

# Measured on brainchop's four networks with T1 scans of three sources (a whole head, hippocampus
# crops, skull-stripped brains), and on the demonstration's network with phantoms; blocks of 40 to
# 64 voxels. None has batch norms: statistics were those of each convolution in blocks of the first
# source, as a norm behind it would hold them.
#
# Variances over the stored ones, median over channels and layers: 0.3 to 2.5 where all was right;
# 12 to 60 (ReLU) and 3 (ELU, not told) with zscore in the place of minmax, below 0.002 the other
# way round; 1,900 and more for values 255 times too large. Distance of the means in stored standard
# deviations: up to 1.0 where all was right, up to 4.3 with zscore, 25 and more for such values.
_VARIANCES, _DISTANCE = 10.0, 2.5
# The same of the first norm alone, which nothing has evened out yet. It was measured as well on a
# U-Net with batch norms, trained on z-scored phantoms, whose median stays at 0.8 to 1.3 with any
# scaling: 0.46 to 3.4 where all was right; minmax, percentile and quantile for zscore 0.036 to
# 0.18, for minmax the others 5.4 to 70, minmax for quantile 0.03 to 0.24, zscore for it 4.4 to 6.9.
_FIRST = 5.0
# |v(x) - 2 v(x / 2)| over |v(x)|, v being what a layer gives, median over layers: 0.15 to 1.05
# where all was right, 0.001 to 0.04 for values 255 times too large, which drown the biases. The
# outputs alone do not tell: behind ELUs that had saturated they gave 0.6.
_PROPORTIONAL = 0.07
# Share of the voxels that are of one class, of background: up to 0.92 in whole heads where all was
# right, 1.000 with minmax in the place of quantile; but 0.81 to 1.000 in crops, and nearly all of a
# block where small lesions are looked for. Of another class: up to 0.41 where all was right, 0.977
# to 0.999 with other scalings in the place of zscore.
_BACKGROUND, _OTHER = 0.999, 0.95
# How much more than now is labelled in another orientation, as a ratio and a difference of shares.
# LIA over RAS, where LIA was right: in the whole head 1.5 to 2.6 for tissues and 0.08 against 0.000
# for 18 structures; in stripped brains 1.1 to 1.2 for tissues, which is not told, and 0.10 against
# 0.003. Any other over the right one: at most 1.2. Networks that no turn disturbs are not told.
_RATIO, _MORE = 1.5, 0.05
_ORIENTATIONS = ("RAS", "LPS", "LIA", "SPL")  # nibabel's, DICOM's, FreeSurfer's, SimpleITK's arrays


@dataclass(frozen=True)
class _Norm:
    """A batch norm; arrays are `[C]`."""

    mean: np.ndarray
    variance: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    epsilon: float

    def deviations(self, means: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far what reaches it is from what it stored, for each channel that counts.

        Args:
            means: of what it gave, `[scans, C]`.
            variances: likewise.

        Returns:
            Distance of the mean in stored standard deviations, and variance over the stored one.
        """
        used = (self.variance > 0) & (np.abs(self.scale) > 1e-6)
        spread = np.sqrt((self.variance + self.epsilon)[used]) / np.abs(self.scale[used])
        deviation = np.sqrt(self.variance[used])
        mean, variance = means.mean(0)[used], (variances.mean(0) + means.var(0))[used]
        distance = np.abs(mean - self.bias[used]) * spread / deviation
        return distance, variance * (spread / deviation) ** 2


def _norms(network: Network) -> dict[str, _Norm]:
    """The batch norms by the path under which what they give is tapped."""
    found = {}
    if isinstance(network, GraphNet):
        for layer in network.graph.layers:
            if layer.kind == "BatchNormalization" and _of_channels(layer.config):
                held = {
                    k: np.asarray(v)
                    for k, v in getattr(network, attribute(layer.name)).arrays().items()
                }
                mean, variance = held["moving_mean"], held["moving_variance"]
                scale, bias = held.get("gamma", np.ones_like(mean)), held.get("beta", 0 * mean)
                epsilon = KINDS[layer.kind].complete(layer.config)["epsilon"]
                found[layer.name] = _Norm(mean, variance, scale, bias, epsilon)
        return found
    assert isinstance(network, nnx.Module)
    for path, each in nnx.iter_modules(network):
        if isinstance(each, BatchNorm):
            assert each.scale is not None
            assert each.bias is not None
            mean, variance, scale, bias = (
                np.asarray(a[...]) for a in (each.mean, each.var, each.scale, each.bias)
            )
            found["/".join(map(str, path))] = _Norm(mean, variance, scale, bias, each.epsilon)
    return found


def _of_channels(config: Mapping[str, Any]) -> bool:
    """Whether a batch norm of a graph normalises channels, the last of five axes."""
    axis = KINDS["BatchNormalization"].complete(config)["axis"]
    return axis in (-1, 4, [-1], [4])


@dataclass(frozen=True)
class _Seen:
    """What a network does with two blocks.

    Attributes:
        outputs: `[2, *block, K]`.
        moments: mean and variance of what batch norms gave, by path, each `[2, C]`; as they are
            called.
        differences: for each layer's result v: |v(first) - 2 v(second)| over |v(first)|.
    """

    outputs: Array
    moments: Mapping[str, tuple[Array, Array]]
    differences: Sequence[Array]


Look = Callable[[np.ndarray], _Seen]


def _look(network: Network, norms: Mapping[str, _Norm]) -> Look:
    """The network as a function of two blocks `[2, *block, C]`, compiled once."""
    graph, state = nnx.split(network)
    called: list[str] = []  # a dictionary that leaves a jitted function is sorted

    @jax.jit
    def run(state: nnx.State, blocks: Array) -> tuple[Any, ...]:
        moments, differences = {}, []

        def tap(path: str, value: Array) -> None:
            if path in norms and value.ndim == 5:
                moments[path] = value.mean((1, 2, 3)), value.var((1, 2, 3))
            if value.shape[0] == 2:  # not what is the same for all blocks
                first, second = value
                size = jnp.abs(first).mean()
                differences.append(jnp.abs(first - 2 * second).mean() / size)

        outputs = nnx.merge(graph, state)(blocks, tap=tap)
        called[:] = moments
        return outputs, moments, differences

    def look(blocks: np.ndarray) -> _Seen:
        outputs, moments, differences = run(state, blocks)
        return _Seen(outputs, {path: moments[path] for path in called}, differences)

    return look


def check_start(
    spec: ModelSpec, parameters: Mapping[str, np.ndarray], images: Sequence[np.ndarray]
) -> list[str]:
    """What is odd about how a pretrained network does in the middle of some scans.

    At most six forward passes of two blocks, a few more where it says one class everywhere. A
    network whose weights are random is run with their means.

    Args:
        spec: the pretrained network, with the contract of the run.
        parameters: its own, path → array.
        images: scans, the first two of which count: float32 `[D, H, W, C]` as that contract makes
            them, at least as large as a block.

    Returns:
        Sentences; none where nothing is odd.
    """
    contract, images = spec.contract, [*images, *images][:2]
    network = spec.network(parameters)
    norms = _norms(network)
    look = _look(network, norms)
    blocks = _middle(images, contract)
    seen = look(blocks)
    if not bool(jnp.isfinite(seen.outputs).all()):
        return [
            "the pretrained network gives values that are not finite in the first training scans: "
            f"check intensity ({contract.intensity}) in model.json, and the scans' own values"
        ]
    # Where values are wrong, classes say little more.
    return (
        list(_statistics(norms, seen, contract))
        or list(_size(look, blocks, contract))
        or list(_classes(spec, look, images, seen) if spec.classes else ())
    )


def _middle(images: Sequence[np.ndarray], contract: Contract) -> np.ndarray:
    """Blocks in the middle of scans, each `[D, H, W, C]` and padded where it is too small."""
    blocks = []
    for image in images:
        padded, _ = pad_to_block(image, contract.block)
        starts = [(n - size) // 2 for n, size in zip(padded.shape, contract.block, strict=False)]
        where = (slice(a, a + n) for a, n in zip(starts, contract.block, strict=True))
        blocks.append(padded[tuple(where)])
    return np.stack(blocks)


def _statistics(norms: Mapping[str, _Norm], seen: _Seen, contract: Contract) -> Iterator[str]:
    """Whether batch norms receive what they stored."""
    found = [
        norms[path].deviations(*map(np.asarray, moments)) for path, moments in seen.moments.items()
    ]
    found = [each for each in found if each[0].size]
    if not found:
        return
    distance, ratio = (float(np.median(np.concatenate(e))) for e in zip(*found, strict=True))
    first = float(np.median(found[0][1]))
    if not 1 / _FIRST < first < _FIRST and 1 / _VARIANCES < ratio < _VARIANCES:
        yield (
            f"what reaches the first batch norm of the pretrained network has {first:.2g} times "
            "the variance that it stored (median; a half to three times is usual): check intensity "
            f"({contract.intensity}) in model.json"
        )
    elif distance > _DISTANCE or not 1 / _VARIANCES < ratio < _VARIANCES:
        yield (
            f"what reaches the batch norms of the pretrained network has {ratio:.2g} times the "
            f"variance that they stored, and its mean is {distance:.2g} standard deviations from "
            "theirs (medians; a third to three times and at most one are usual): check intensity "
            f"({contract.intensity}) in model.json, and that the scans are of the kind that it "
            "was trained on"
        )


def _size(look: Look, blocks: np.ndarray, contract: Contract) -> Iterator[str]:
    """Whether values are so large that the network does not feel its biases."""
    found = np.array(look(np.stack([blocks[0], blocks[0] / 2])).differences)
    # Halving is exact: a layer that no bias reaches gives the half to the last bit.
    found = found[found > 0]
    if found.size and np.median(found) < _PROPORTIONAL:
        yield (
            "the pretrained network hardly feels its biases: of half the values its layers give "
            f"half, to {np.median(found):.1%} (median; 15 % and more are usual), so that values up "
            f"to {blocks[0].max():.4g} are far larger than those that it was trained on; check "
            f"intensity ({contract.intensity}) in model.json"
        )


def _classes(
    spec: ModelSpec, look: Look, images: Sequence[np.ndarray], seen: _Seen
) -> Iterator[str]:
    """Whether the network tells classes apart, and whether it would find more if turned."""
    contract = spec.contract

    def shares(outputs: Array) -> np.ndarray:
        """Share of the voxels of each block that are of each class, `[2, K]`."""
        probabilities = jax.nn.softmax(class_logits(outputs), axis=-1)
        classes = np.asarray(most_probable(probabilities, spec.threshold)).reshape(2, -1)
        return np.stack([(classes == i).mean(axis=1) for i in range(len(spec.classes))], axis=1)

    def rest(index: int, change: Change) -> np.ndarray:
        """Share of the voxels that are not of a class in scans that were changed, `[2]`."""
        changed = _middle([change(image) for image in images], contract)
        return np.asarray(1 - shares(look(changed).outputs)[:, index])

    now = shares(seen.outputs)
    single = int(now.min(axis=0).argmax())
    share = now[:, single].min()
    turns = {f"orientation {code}": turn for code, turn in _turns(contract).items()}
    background = next((i for i, each in enumerate(spec.classes) if each.value == 0), None)
    if share >= (_BACKGROUND if single == background else _OTHER):
        others = {
            how: rest(single, change).mean()
            for how, change in {**turns, **_scalings(contract)}.items()
        }
        better = [f"{other:.0%} with {how}" for how, other in others.items() if other >= _MORE]
        hint = f" (the rest would be {', '.join(better)})" if better else ""
        yield (
            f"the pretrained network calls {share:.1%} of the middle of the first training scans "
            f"{spec.classes[single].name}{hint}: check orientation ({contract.orientation}) and "
            f"intensity ({contract.intensity}) in model.json; if the scans are cropped, the block "
            "is small, or there is nothing else in their middle, this may be so"
        )
    elif background is not None:
        before = 1 - now[:, background]
        found = {how: rest(background, turn) for how, turn in turns.items()}
        # In both scans, since in one it may be chance.
        least = np.maximum(_RATIO * before, before + _MORE)
        better = [how for how, after in found.items() if (after > least).all()]
        if better:
            best = max(better, key=lambda how: found[how].mean())
            yield (
                f"the pretrained network labels {before.mean():.1%} of the middle of the first "
                f"training scans, but {found[best].mean():.1%} with {best}: check orientation "
                f"({contract.orientation}) in model.json, and that the scans' headers say which "
                "way is up"
            )


def _turns(contract: Contract) -> Mapping[str, Change]:
    """Usual orientations → what turns a scan `[D, H, W, C]` to one.

    Left and right are no difference, since heads have none that a network would tell. Where the
    sizes of a voxel differ, axes are not exchanged: the scan would have to be resampled.
    """
    now, spacing = contract.orientation, contract.spacing_mm
    found = {}
    for code in _ORIENTATIONS:
        axes = (nib.orientations.axcodes2ornt(each) for each in (now, code))
        transform = nib.orientations.ornt_transform(*axes)
        exchanged = list(transform[:, 0]) != [0, 1, 2]
        even = spacing is None or len(set(spacing)) == 1
        if code.replace("R", "L") != now.replace("R", "L") and (even or not exchanged):
            found[code] = partial(nib.orientations.apply_orientation, ornt=transform)
    return found


def _scalings(contract: Contract) -> Mapping[str, Change]:
    """Other scalings → what scales a scan `[D, H, W, C]` again; what was clipped stays so.

    A window cannot be guessed, and a scaled scan no longer tells which of its voxels were zero.
    """

    def scale(kind: IntensityKind, image: np.ndarray) -> np.ndarray:
        try:
            channels = [scaling_of(each, kind)(each) for each in np.moveaxis(image, -1, 0)]
        except InputError:  # it would divide by zero
            return image
        return np.stack(channels, axis=-1)

    left_out = (contract.intensity, "none", "window", "zscore_nonzero")
    kinds = (kind for kind in get_args(IntensityKind) if kind not in left_out)
    return {f"intensity {kind}": partial(scale, kind) for kind in kinds}
