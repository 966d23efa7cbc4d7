"""Times voxtune's training step beside other frameworks': `python -m voxtune.benchmarks.peers`.

Peers live in an environment of their own:

    python3 -m venv peers
    peers/bin/pip install torch tensorflow-cpu 'keras>=3.10' jax
    python -m voxtune.benchmarks.peers --python peers/bin/python

Each framework has a process of its own (`peer.py`) with the same network, weights, batch, loss and
optimiser, on the CPU. Their steps take turns, so that a busy machine slows all of them; the table
holds medians. That they compute the same is checked by the loss of the first step.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from voxtune.benchmarks.child import Child, start
from voxtune.benchmarks.peer import FRAMEWORKS
from voxtune.benchmarks.step import CASES, batch_of, keras_weights, machine

OWN = "voxtune"
PAUSE = 0.3  # seconds between turns, for threads that wait for work to fall asleep


@dataclass
class Peer(Child):
    """A framework that does training steps in its process, see `peer.py`.

    Attributes:
        losses: before each step.
        times: of each step, seconds; the first compiles.
    """

    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def step(self) -> None:
        """Has it do a step."""
        found = self.ask("step")
        self.losses.append(found["loss"])
        self.times.append(found["seconds"])
        time.sleep(PAUSE)


def measure(network: str, python: str, repeats: int) -> list[Peer]:
    """Has each framework that is there do its steps; the first of the list is voxtune.

    Raises:
        RuntimeError: a framework failed, or computes something else than voxtune.
    """
    peers: list[Peer] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arrays.npz"
        weights = {f"weight{n}": each for n, each in enumerate(keras_weights(CASES[network]))}
        image, label = batch_of(CASES[network])
        np.savez(file, allow_pickle=False, image=image, label=label, **weights)
        try:
            for name in FRAMEWORKS:
                interpreter = sys.executable if name == OWN else python
                peer = Peer(name, start(interpreter, "peer.py", name, network, str(file)))
                peers.append(peer)
                peer.hello = peer.listen()
                if "missing" not in peer.hello:
                    peer.step()
            there = [peer for peer in peers if peer.losses]
            for _ in range(repeats + 1):  # the first warms up
                for peer in there:
                    peer.step()
        finally:
            for peer in peers:
                peer.end()
    for peer in there:
        if abs(peer.losses[0] - there[0].losses[0]) > 1e-4:
            losses = f"{peer.losses[0]:.5f} and {there[0].losses[0]:.5f}"
            raise RuntimeError(f"{peer.name} does not compute what voxtune does: losses {losses}")
    return peers


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="voxtune.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", default=sys.executable, help="of the peers' environment")
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if shutil.which(given.python) is None:
        parser.error(f"there is no {given.python}; see `python -m voxtune.benchmarks.peers --help`")
    table = Table(title=f"Training step on the CPU, {machine()}")
    columns = ("network", "framework", "first step", "step", "voxtune is faster by", "loss")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    lines: dict[str, None] = {}
    for network in given.networks:
        peers = measure(network, given.python, given.repeats)
        own = median(peers[0].times[2:])
        for peer in peers:
            if "missing" in peer.hello:
                problem = peer.hello["missing"]
                lines[f"{peer.name} is not measured: {given.python} says: {problem}."] = None
                continue
            lines[f"{peer.name}: {peer.hello['version']}"] = None
            seconds = median(peer.times[2:])
            row = (f"{peer.times[0]:.1f} s", f"{seconds:.3f} s", f"{seconds / own:.2f}")
            title = CASES[network].title if peer.name == OWN else ""
            table.add_row(title, peer.name, *row, f"{peer.losses[0]:.5f}")
        table.add_section()
        table.caption = f"{len(peers[0].times) - 2} steps each, taking turns; medians"
    console = Console(width=110)
    console.print(table)
    console.print("\n".join(lines))


if __name__ == "__main__":
    main()
