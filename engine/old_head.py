"""The last layer of a pretrained model, on what became of the rest of it in another training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from voxtune.engine.config import Finetune
from voxtune.engine.model_dir import ModelSpec, read_model, write_model
from voxtune.engine.sources import Target
from voxtune.engine.surgery import channel_places


@dataclass(frozen=True, eq=False)
class OldHead:
    """A pretrained model, of which the last layer is kept.

    Attributes:
        folder: its model directory.
        spec: what it is.
        tensors: path → array, of all its parameters and statistics.
        paths: of those in the last layer.
    """

    folder: Path
    spec: ModelSpec
    tensors: Mapping[str, np.ndarray]
    paths: frozenset[str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """A model directory.

        Raises:
            InputError: it cannot be read.
        """
        spec, tensors = read_model(folder)
        return cls(folder, spec, tensors, Target.of(spec, np.ones(1)).in_head)

    def why_not(self, run: Finetune) -> str:
        """Why it does not belong on the network of a finished run; empty where it does.

        Raises:
            InputError: the run's model cannot be read.
        """
        if run.model_dir.resolve() != self.folder.resolve():
            return f"it starts from another model, {run.model_dir.name}"
        if run.init_from is not None:
            return f"it starts from the weights of another model, {run.init_from.name}"
        if run.head != "new":
            return f"with --head {run.head} it trained the old last layer too"
        if not self.paths:
            return "the model's outputs come from no last layer that could be kept"
        spec, tensors = read_model(run.run_dir / "model")
        old, new = self.spec, spec
        places = channel_places(
            old.contract.channels, old.channels, new.contract.channels, new.channels
        )
        if places != tuple(range(old.channels)):
            return "its network reads other channels, or in another order"
        theirs = {path: each.shape for path, each in tensors.items() if path not in self.paths}
        odd = [path for path, each in self._trunk().items() if theirs.pop(path, None) != each.shape]
        if odd or theirs:
            return f"its network is another: {[*odd, *theirs][0]} has no counterpart of its shape"
        return ""

    def write_on(self, run: Finetune, folder: Path) -> None:
        """Writes a model directory: the pretrained model with all but its last layer as trained.

        What is there is replaced.

        Args:
            run: finished, and `why_not` had nothing against it.
            folder: the model directory to make.

        Raises:
            InputError: the run's model cannot be read, or the disk does not take the new one.
        """
        _, trained = read_model(run.run_dir / "model")
        kept = {path: self.tensors[path] for path in self.paths}
        trunk = {path: trained[path] for path in self._trunk()}
        write_model(folder, self.spec, {**trunk, **kept}, history={}, overwrite=True)

    def _trunk(self) -> dict[str, np.ndarray]:
        return {path: each for path, each in self.tensors.items() if path not in self.paths}
