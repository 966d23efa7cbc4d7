"""Whether a network can be split along depth over devices."""

from voxtune.models.errors import InputError
from voxtune.models.families import Network


def check_depth_split(network: Network, depth: int, shards: int) -> None:
    """Makes sure that each device gets a whole part of every resolution, wide enough to be a halo.

    A convolution reads slices that the neighbours hold. If it reads further than the neighbour's
    part, or a part ends inside a coarse voxel, XLA sends every device the whole array.

    Args:
        network: what is run.
        depth: slices of a block.
        shards: devices that they are split over.

    Raises:
        InputError: they do not split so.
    """
    if shards == 1:
        return
    multiple, wanted = network.min_multiple, splitting_depth(network, 1, shards)
    if depth < wanted:
        raise InputError(
            f"A block of {depth} slices cannot be split along depth over {shards} devices: each "
            f"needs at least {wanted // shards} slices for this network; pass a --block of at "
            f"least {wanted} slices, or --mesh with a smaller spatial."
        )
    if depth % (shards * multiple):
        nearest = depth // (shards * multiple) * shards * multiple
        each = "as many slices as the others"
        if multiple > 1:
            each = f"a multiple of {multiple} slices for this network"
        raise InputError(
            f"A block of {depth} slices cannot be split along depth over {shards} devices: each "
            f"needs {each}; pass a --block of {nearest} slices, or --mesh with another spatial."
        )


def splitting_depth(network: Network, depth: int, shards: int) -> int:
    """The least depth from this one on that a network's blocks can be split at.

    Args:
        network: what is run.
        depth: slices of a block.
        shards: devices that they are split over.

    Returns:
        Slices, a multiple of what the network halves blocks by.
    """
    multiple = network.min_multiple
    fewest = multiple if shards == 1 else network.min_local_depth
    if shards == 2:
        # With one slice of the coarsest resolution on each of two devices, both halos come from
        # the same neighbour, and XLA (jaxlib 0.10.2, CPU) gives a wrong gradient or gathers.
        fewest = max(fewest, 2 * multiple)
    each = max(-(-depth // shards), fewest)
    return shards * multiple * -(-each // multiple)
