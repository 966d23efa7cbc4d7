"""From a Keras file to a model directory."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from voxtune.converters.keras_file import read_keras_file
from voxtune.converters.keras_model import KerasModel
from voxtune.converters.to_flax import Conversion, Tensor, convert
from voxtune.converters.verify import TOLERANCE, Comparison, compare_golden
from voxtune.engine.config import Convert
from voxtune.engine.conform import check_target
from voxtune.engine.model_dir import (
    Contract,
    LabelClass,
    ModelSpec,
    check_threshold,
    write_model,
)
from voxtune.engine.output import check_free
from voxtune.models.errors import InputError
from voxtune.models.families import abstract

# What the two makers of these networks did to a scan. Nobrainer writes its training records in RAS
# with whole-volume z-scores, conformed to 1 mm, and predicts in blocks of 128³ above 0.3. The
# brainchop networks take FreeSurfer's conformed LIA grid at 1 mm, min-max scaled.
NOBRAINER = Contract("RAS", (1.0, 1.0, 1.0), "zscore", (128, 128, 128), 0.3)
BRAINCHOP = Contract("LIA", (1.0, 1.0, 1.0), "minmax", (128, 128, 128))


def convert_file(config: Convert, console: Console) -> bool:
    """Converts a Keras file, compares it with golden arrays if given, and writes a model directory.

    Prints what became of each tensor. Nothing is written where a comparison fails.

    Returns:
        Whether every comparison was met; True without one.

    Raises:
        InputError: the file, the golden file or an option is bad, or the model directory exists.
    """
    check_free(config.model_dir, config.overwrite)
    model = read_keras_file(config.keras_file)
    conversion = convert(model)
    spec = _spec(model, conversion, config)
    console.print(_tensor_table(conversion.tensors))
    comparisons = compare_golden(conversion, config.golden) if config.golden else []
    if comparisons:
        console.print(_comparison_table(comparisons))
    if not all(each.met for each in comparisons):
        console.print("The converted network differs from the golden file: nothing was written.")
        return False
    parameters = conversion.parameters
    record = {"conversion": _record(model, conversion, comparisons)}
    write_model(config.model_dir, spec, parameters, history=record, overwrite=config.overwrite)
    total = sum(value.size for value in parameters.values())
    contract = spec.contract
    voxels = contract.spacing_mm and " x ".join(f"{size:g}" for size in contract.spacing_mm)
    block = " x ".join(map(str, contract.block))
    one_class = spec.arguments["outputs"] == 1
    settings = ["orientation", "spacing", "intensity", "block", *(["threshold"] * one_class)]
    assumed = [f"--{name}" for name in settings if getattr(config, name) is None]
    for line in (
        f"{spec.family}: {len(parameters)} tensors, {total:,} values, none left over",
        f"contract: {contract.orientation}, {voxels or 'own'} mm, {contract.intensity}, "
        f"blocks of {block} voxels" + f", threshold {contract.threshold:g}" * one_class,
        f"assumed, since a Keras file does not say it: {', '.join(assumed) or 'nothing'}",
        f"wrote {config.model_dir}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    return True


def _spec(model: KerasModel, conversion: Conversion, config: Convert) -> ModelSpec:
    recognised = conversion.recognised
    usual = BRAINCHOP if model.format.startswith("TF.js") else NOBRAINER
    if recognised.arguments["channels"] != 1:
        raise InputError(
            f"{model.path} takes {recognised.arguments['channels']} channels; voxtune gives "
            "networks one scan a subject for now."
        )
    multiple = abstract(recognised.family, recognised.arguments).min_multiple
    chosen = {
        "orientation": config.orientation,
        "spacing_mm": config.spacing if config.spacing != "own" else None,
        "intensity": config.intensity,
        "block": config.block,
        "threshold": config.threshold,
    }
    given: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    contract = dataclasses.replace(usual, **given)
    if config.spacing == "own":
        contract = dataclasses.replace(contract, spacing_mm=None)
    if min(contract.block) < 1 or any(size % multiple for size in contract.block):
        raise InputError(
            f"--block {' '.join(map(str, contract.block))} does not suit this {recognised.family}: "
            f"each size must be at least {multiple} and a multiple of {multiple}."
        )
    check_target(contract.orientation, contract.spacing_mm)
    check_threshold(contract.threshold)
    outputs = max(2, recognised.arguments["outputs"])
    brainchop = usual is BRAINCHOP
    published = _published_names(model.path, outputs) if brainchop else None
    names = config.classes or published or _plain_names(outputs)
    if len(names) != outputs:
        raise InputError(
            f"--classes names {len(names)} classes, but {model.path} tells {outputs} apart."
        )
    return ModelSpec(
        family=recognised.family,
        arguments=recognised.arguments,
        output_activation=recognised.output_activation,
        classes=tuple(LabelClass(value, name) for value, name in enumerate(names)),
        contract=contract,
    )


def _plain_names(outputs: int) -> tuple[str, ...]:
    return ("background", *(f"class {value}" for value in range(1, outputs)))


def _published_names(model_json: Path, outputs: int) -> tuple[str, ...] | None:
    """Class names in the colormap.json that brainchop keeps beside a model.json, if they fit."""
    try:
        labels = json.loads((model_json.parent / "colormap.json").read_text())["labels"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    fits = isinstance(labels, list) and len(labels) == outputs
    return tuple(map(str, labels)) if fits else None


def _tensor_table(tensors: tuple[Tensor, ...]) -> Table:
    table = Table(title="Tensors")
    for name in ("Keras tensor", "shape", "parameter", "done"):
        table.add_column(name, overflow="fold")
    for each in tensors:
        before, after = ("x".join(map(str, shape)) for shape in (each.keras_shape, each.shape))
        shape = before if before == after else f"{before} → {after}"
        table.add_row(each.keras, shape, each.path, each.done)
    return table


def _comparison_table(comparisons: list[Comparison]) -> Table:
    table = Table(
        title="Largest difference from the golden file, of its largest value "
        f"(met up to {TOLERANCE:.0e})"
    )
    table.add_column("entry", overflow="fold")
    table.add_column("computed at", overflow="fold")
    for name in ("difference", "of", "relative", ""):
        table.add_column(name, justify="right")
    for each in comparisons:
        figures = (f"{each.difference:.1e}", f"{each.largest:.3g}", f"{each.relative:.1e}")
        table.add_row(each.name, each.path, *figures, "met" if each.met else "NOT MET")
    return table


def _record(
    model: KerasModel, conversion: Conversion, comparisons: list[Comparison]
) -> dict[str, Any]:
    return {
        "file": model.path.name,
        "format": model.format,
        "keras_version": model.keras_version,
        "sha256": model.sha256,
        "tensors": [dataclasses.asdict(each) for each in conversion.tensors],
        "golden": [{**dataclasses.asdict(each), "relative": each.relative} for each in comparisons],
    }
