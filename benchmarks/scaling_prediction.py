"""What it would cost to add devices, computed of bytes, FLOPs and links. No JAX here.

Sums and halos are taken not to overlap with the step, which is the worst case, and latency,
stragglers and reading to cost nothing.
"""

from collections.abc import Mapping

# Bytes/s one way. NVLink 4 is half of the 900 GB/s that its maker states for both.
LINKS = {"nvlink": 450e9, "ndr": 50e9, "ethernet": 12.5e9}
# FLOP/s of a training step of U-Net3D on one H200 in MLPerf Training 4.0: 75.7 samples/s.
RATE = 217e12
EDGE, BATCH = 128, 2  # of blocks, voxels, and how many each device takes
WHOLE = 256  # edge of a scan that is split along depth, voxels
PARTS = 4  # that it is split into


def of_sums(step: float, gradient: int, devices: int) -> dict[str, float]:
    """The share of its speed that a device keeps when gradients are summed over several.

    Args:
        step: seconds of one device alone.
        gradient: bytes. A ring sends twice as much, less the part that a device has of the sum.
        devices: how many there are.

    Returns:
        For each link `predicted_efficiency_8_nvlink`, with the number of devices.
    """
    sent = 2 * gradient * (devices - 1) / devices
    return {
        f"predicted_efficiency_{devices}_{link}": step / (step + sent / speed)
        for link, speed in LINKS.items()
    }


def of_halos(
    step: float, collectives: Mapping[str, float], edge: int, rows: int
) -> dict[str, float]:
    """The same when a scan of 256³ is split along depth over `PARTS` devices, and planes are sent.

    Args:
        step: seconds of one device alone on its part of the scan.
        collectives: of a step, see `voxtune.benchmarks.collectives.counted`.
        edge: height and width of its blocks, voxels; planes grow with their square, and what is
            sent does not depend on depth.
        rows: blocks that each device has a part of.

    Returns:
        `predicted_halo_bytes_256`, of a device and a step, and for each link
        `predicted_efficiency_256_nvlink`.
    """
    sent = collectives["collective_permute_bytes"] * (WHOLE / edge) ** 2 / rows
    shares = {
        f"predicted_efficiency_{WHOLE}_{link}": step / (step + sent / speed)
        for link, speed in LINKS.items()
    }
    return {f"predicted_halo_bytes_{WHOLE}": sent, **shares}
