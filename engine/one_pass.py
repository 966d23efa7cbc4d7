"""Whole volumes in one pass of a network, where the memory suffices."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from voxtune.engine.memory import Memory, size_of
from voxtune.engine.mesh import amounts, ran_out
from voxtune.engine.model_dir import ModelSpec, check_block
from voxtune.engine.predicted import Predicted
from voxtune.engine.predictor import Member, Predictor
from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.lowering import SPATIAL
from voxtune.models.sharding import check_depth_split, splitting_depth

_MULTIPLE = 16  # voxels: edges of blocks are multiples of it, so that scans share their programs


class OnePass:
    """Predicts each scan in one pass, or by windows where that does not fit, and says so.

    Args:
        windows: what predicts by windows; the devices of its `data` all do the same here.
        specs: what the members' networks are.
        block: shape of the windows, for the sentence.
    """

    def __init__(
        self, windows: Predictor, specs: Sequence[ModelSpec], block: tuple[int, int, int]
    ) -> None:
        self._windows, self._specs, self._by = windows, specs, block
        self._networks = [abstract(each.family, each.arguments) for each in specs]
        self._lacks: dict[tuple[int, ...], str | None] = {}

    def __call__(self, members: Sequence[Member], image: np.ndarray) -> Predicted:
        """As `Predictor`.

        Raises:
            InputError: a network does not take a block that holds the image; or one pass does not
                fit, and windows do not split over the devices.
        """
        block = self.block(image.shape)
        channels = image.shape[-1]
        if (*block, channels) not in self._lacks:
            self._check(block)
            self._lacks[(*block, channels)] = self._lack(members, block, channels)
        lack = self._lacks[(*block, channels)]
        if lack is None:
            try:
                found = self._windows.in_one(members, image, block)
                jax.block_until_ready((found.held, found.spread))  # or it fails later on
                return found
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                lack = self._lacks[(*block, channels)] = _refusal(error)  # for the next scan
        sizes = " x ".join(map(str, block))
        note = (
            f"one pass over {sizes} voxels does not fit into memory{lack}; predicted by windows of "
            f"{' x '.join(map(str, self._by))}"
        )
        for network in self._networks:
            check_depth_split(network, self._by[0], self._windows.mesh.shape[SPATIAL])
        return dataclasses.replace(self._windows(members, image), notes=(note,))

    def block(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape that an image `[D, H, W, ...]` is padded to, voxels."""
        shards = self._windows.mesh.shape[SPATIAL]
        multiples = [each.min_multiple for each in self._networks]
        unit = math.lcm(_MULTIPLE, *multiples)
        along_depth = math.lcm(_MULTIPLE, *(shards * each for each in multiples))
        depth = max(splitting_depth(each, shape[0], shards) for each in self._networks)
        depth, height, width = (
            -(-size // part) * part
            for size, part in zip((depth, *shape[1:3]), (along_depth, unit, unit), strict=True)
        )
        return depth, height, width

    def _check(self, block: tuple[int, int, int]) -> None:
        for spec in self._specs:
            try:
                check_block(spec.family, spec.arguments, block)
            except InputError as error:
                raise InputError(
                    f"--block full does not suit this scan, which is padded to "
                    f"{' x '.join(map(str, block))} voxels ({error}); leave it out."
                ) from error

    def _lack(
        self, members: Sequence[Member], block: tuple[int, int, int], channels: int
    ) -> str | None:
        """How much memory is missing, to go into a sentence; None where it suffices."""
        image = math.prod(block) * channels * np.dtype(np.float32).itemsize
        several = self._windows.passes(len(members)) > 1
        for member in members:
            try:
                compiled = self._windows.compiled(member, block, channels)
            except (MemoryError, jax.errors.JaxRuntimeError) as error:  # as on TPUs
                return _refusal(error)
            memory = Memory.of(compiled, self._windows.mesh, ())
            # The sum of passes lies beside what the next gives.
            lack = memory and memory.lack(image + memory.outputs * several)
            if lack:
                needed, free, where = lack
                return f" (it needs {size_of(needed)}, and {where} {size_of(free)} free)"
        return None


def _refusal(error: Exception) -> str:
    """What an error that says that memory ran out adds to a sentence."""
    if not isinstance(error, MemoryError) and not ran_out(error):
        raise error
    return amounts(error)
