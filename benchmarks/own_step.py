"""voxtune's training step of a network that is measured, mapped over devices as a run's is."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered

from voxtune.benchmarks.nets import Net, batch_of
from voxtune.engine.config import Finetune
from voxtune.engine.mapping import first_state, lower_step
from voxtune.engine.mesh import make_mesh, placed
from voxtune.engine.rules import Parameters, make_rules
from voxtune.engine.step import TrainState, TrainStep, make_step
from voxtune.models.flops import flops


@dataclass(frozen=True)
class OwnStep:
    """A step of a network with random weights on a random batch.

    Attributes:
        net: the network, for blocks of this shape.
        step: what is done to the whole batch.
        config: of a run that would do so.
        mesh: the devices.
        state: the first one, on the devices.
        batch: on the devices, as its mapping wants it.
        whole: the batch on the host.
    """

    net: Net
    step: TrainStep
    config: Finetune
    mesh: Mesh
    state: TrainState
    batch: dict[str, jax.Array]
    whole: dict[str, np.ndarray]

    @staticmethod
    def of(net: Net, shape: Sequence[int], **options: Any) -> "OwnStep":
        """The step of a network, without augmentation.

        Args:
            net: the network.
            shape: `[B, D, H, W]` of the whole batch.
            options: of `Finetune`.

        Raises:
            InputError: there are not so many devices as `mesh` asks for.
        """
        config, net = Finetune(Path(), "", Path(), **options), net.at(shape[1:])
        network, mesh = net.built(), make_mesh(config.mesh)
        rules = make_rules(Parameters.of(network), config)
        step, params, statistics = make_step(network, config, rules)
        image, label = batch_of(shape)
        whole = {"image": image, "label": label}
        return OwnStep(
            net,
            step,
            config,
            mesh,
            first_state(step, params, statistics, config, mesh),
            placed(whole, mesh, mapped=config.map == "pmap"),
            whole,
        )

    def lower(self) -> Lowered:
        """The step ready to be compiled; what that gives is called with `state` and `batch`."""
        return lower_step(self.step, self.config, self.mesh, (self.state, self.batch))

    @property
    def flops(self) -> int:
        """Of a step on all devices together, see `voxtune.benchmarks.measurement.Work`."""
        kept = dataclasses.replace(self.step.apply, remat=False)
        return flops(dataclasses.replace(self.step, apply=kept), self.state, self.whole)
