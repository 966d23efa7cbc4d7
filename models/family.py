"""What the architectures have in common: how they are called, and the two forms that most have."""

from typing import Any

from flax import nnx
from jax import Array

from voxtune.models.lowering import max_pool
from voxtune.models.run import Run, Tap, ignore


class Family(nnx.Module):
    """A network whose stages are attributes, the last of them `head`."""

    @property
    def min_multiple(self) -> int:
        """Spatial shapes must be multiples of this, voxels."""
        return 1

    @property
    def min_local_depth(self) -> int:
        """Fewest depth slices that a device can hold where depth is split, voxels."""
        return self.min_multiple  # one of the coarsest, whose neighbours are one slice away

    @property
    def fixed_block(self) -> tuple[int, int, int] | None:
        """The only shape of blocks that it takes, voxels; None for any that suits."""
        return None

    @property
    def head_paths(self) -> tuple[str, ...]:
        """Paths of the layers that give the outputs."""
        return ("head",)

    def levels(self) -> tuple[str, ...]:
        """Names of the stages, from input to output."""
        raise NotImplementedError

    def level_of(self, path: str) -> str:
        """The level that a parameter or statistic belongs to; the heads are the last one's."""
        if path.startswith(tuple(f"{head}/" for head in self.head_paths)):
            return self.levels()[-1]
        return max((each for each in self.levels() if path.startswith(f"{each}/")), key=len)

    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        tap: Tap = ignore,
        remat: bool = False,
        step: Array | None = None,
        axis: str | None = None,
    ) -> Array:
        """Logits of each voxel.

        Args:
            x: `[B, D, H, W, C]`, D, H and W multiples of `min_multiple`.
            train: whether statistics are taken from the batch, values dropped and weights drawn.
            rngs: source of what is random, needed where `train` and the network has any; where
                given, values are dropped and weights drawn in prediction too.
            tap: receives each intermediate result under its path.
            remat: whether the backward pass computes each level again, to save memory; nothing
                inside of levels is tapped then.
            step: number of the training step, needed where `train` and a norm is frozen until one.
            axis: name of the mapped axis that the batch is split over, if any.

        Returns:
            `[B, D, H, W, outputs]`, float32.
        """
        return self.forward(x, Run(train, rngs, tap, remat, step, axis))

    def forward(self, x: Array, run: Run) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, outputs]`: the levels, each by `level`."""
        raise NotImplementedError

    def level(self, name: str, run: Run, *inputs: Array) -> Any:
        """What the level of that name gives, see `Run.level`."""
        return run.level(getattr(self, name), *inputs, path=name)


class Chain(Family):
    """A network whose levels follow each other at full resolution."""

    def forward(self, x: Array, run: Run) -> Array:
        """As in `Family`."""
        for name in self.levels():
            x = self.level(name, run, x)
        return x


class UShape(Family):
    """Levels `encoder1` and so on down to `bottom`, and up again over `decoder1` to `head`.

    Each level of the decoder reads what its namesake in the encoder gave.

    Attributes:
        depth: how often the resolution is halved.
    """

    depth: int

    @property
    def min_multiple(self) -> int:
        """As in `Family`."""
        return 2**self.depth

    def levels(self) -> tuple[str, ...]:
        """As in `Family`."""
        down = (f"encoder{level}" for level in range(1, self.depth + 1))
        up = (f"decoder{level}" for level in range(self.depth, 0, -1))
        return (*down, "bottom", *up, "head")

    def down(self, x: Array, run: Run, path: str) -> tuple[Array, Array]:
        """A level of the encoder: `[B, D, H, W, C]` → what goes down, halved, and what is kept."""
        skip = self.level(path, run, x)
        x = max_pool(skip)
        run.tap(f"{path}/pool", x)
        return x, skip

    def forward(self, x: Array, run: Run) -> Array:
        """As in `Family`."""
        skips = []
        for level in range(1, self.depth + 1):
            x, skip = self.down(x, run, f"encoder{level}")
            skips.append(skip)
        x = self.level("bottom", run, x)
        for level in range(self.depth, 0, -1):
            name = f"decoder{level}"
            x = self.level(name, run, x, skips.pop())
        return self.level("head", run, x)
