"""From a Keras file to a model directory."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from voxtune.converters.keras_file import read_keras_file
from voxtune.converters.keras_model import KerasModel, KerasWeights
from voxtune.converters.keras_reference import Verification, verify
from voxtune.converters.to_flax import Conversion, Tensor, convert
from voxtune.converters.verify import Comparison, compare_golden
from voxtune.converters.weights_only import candidates, fit, parse_arguments
from voxtune.engine.config import Convert
from voxtune.engine.contract import Contract, check_contract
from voxtune.engine.known_models import BRAINCHOP, NOBRAINER, KnownModel, recognise
from voxtune.engine.model_dir import (
    LabelClass,
    ModelSpec,
    check_block,
    gives_image,
    labels_voxels,
    write_model,
)
from voxtune.engine.options import Preprocessing, Source
from voxtune.engine.output import check_free
from voxtune.models.errors import InputError

_NAMED = 3  # layers that a verdict names for each reason


def convert_file(config: Convert, console: Console) -> bool:
    """Converts a Keras file, proves it as far as asked, and writes a model directory.

    Prints what became of each tensor, and last what was verified. Nothing is written where a
    comparison fails.

    Returns:
        Whether every comparison was met; True without one.

    Raises:
        InputError: the file, the golden file or an option is bad, or the model directory exists.
    """
    check_free(config.model_dir, config.overwrite)
    source = read(config)
    conversion = converted(source, config)
    known, by = recognise(source.path, source.sha256, conversion)
    spec = _spec(source, conversion, known, config)
    golden = compare_golden(conversion, config.golden) if config.golden else []
    model = source if isinstance(source, KerasModel) else None
    verification = verify(conversion, model) if config.verify else None
    console.print(_tensor_table(conversion.tensors))
    if golden:
        console.print(_comparison_table(golden, f"the golden file {config.golden}"))
    if verification:
        title = f"Keras, {verification.original}"
        console.print(_comparison_table(list(verification.comparisons), title))
    met = all(each.met for each in golden) and (verification is None or verification.met)
    verdict = _verdict(golden, verification, model is None)
    if met:
        record = _record(source, conversion, known, by, golden, verification, verdict)
        write_model(
            config.model_dir,
            spec,
            conversion.parameters,
            history={"conversion": record},
            overwrite=config.overwrite,
        )
        for line in (*_summary(conversion, spec, known, by, config), f"wrote {config.model_dir}"):
            console.print(line, highlight=False, soft_wrap=True)
    else:
        console.print("The converted network differs from the original: nothing was written.")
    console.print(verdict, highlight=False, soft_wrap=True)
    return met


def read(source: Source) -> KerasModel | KerasWeights:
    """Reads a Keras file, with what stands for its Lambda layers.

    Raises:
        InputError: the file cannot be read, or `--lambda` does not suit it.
    """
    return read_keras_file(source.keras_file, dict(map(_replacement, source.lambdas)))


def converted(found: KerasModel | KerasWeights, source: Source) -> Conversion:
    """The network of a Keras file, in memory.

    Raises:
        InputError: it cannot be converted, or an option does not suit it.
    """
    if isinstance(found, KerasModel):
        if source.model or source.arguments:
            raise InputError(
                f"{found.path} holds the whole network: --model and --arguments are for files of "
                "weights alone; leave them out."
            )
        return convert(found)
    if source.model is None:
        options = " or ".join(candidates(found))
        would = f"it would fit {options}" if options else "it fits none that voxtune can name"
        raise InputError(
            f"{found.path} holds weights alone ({found.format}), not the network: say which one "
            f"with --model ({would}), or give a file written by model.save()."
        )
    return fit(found, source.model, parse_arguments(source.arguments))


def _replacement(text: str) -> tuple[str, str]:
    name, _, activation = text.rpartition("=")
    if not name or not activation:
        raise InputError(
            f"--lambda takes LAYER=ACTIVATION or LAYER=identity, such as scale=relu; '{text}' is "
            "not that."
        )
    return name, activation


def usual_contract(source: KerasModel | KerasWeights, known: KnownModel | None) -> Contract:
    """The contract of a published network, else that of the makers who use the file's format."""
    if known:
        return known.contract
    return BRAINCHOP if source.format.startswith("TF.js") else NOBRAINER


def _spec(
    source: KerasModel | KerasWeights,
    conversion: Conversion,
    known: KnownModel | None,
    config: Convert,
) -> ModelSpec:
    usual = usual_contract(source, known)
    usual = dataclasses.replace(usual, block=_own_block(conversion, usual.block))
    contract = chosen_contract(usual, config)
    if config.block:
        check_block(conversion.family, conversion.arguments, config.block)
    spec = ModelSpec(
        family=conversion.family,
        arguments=conversion.arguments,
        output_activation=conversion.output_activation,
        classes=(),
        contract=contract,
    )
    classes = classes_of(spec, source.path, known, config.classes, config.image)
    return dataclasses.replace(spec, classes=classes)


def chosen_contract(usual: Contract, options: Preprocessing) -> Contract:
    """The usual contract, with what the options say instead.

    Raises:
        InputError: an option is not possible.
    """
    chosen = {
        "orientation": options.orientation,
        "spacing_mm": options.spacing if options.spacing != "own" else None,
        "intensity": options.intensity,
        "block": options.block,
        "threshold": options.threshold,
        "grid": options.grid,
        "interpolation": options.interpolation,
        "window": options.window,
    }
    given: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    contract = dataclasses.replace(usual, **given)
    if options.spacing == "own":
        contract = dataclasses.replace(contract, spacing_mm=None)
    check_contract(contract)
    return contract


def _own_block(conversion: Conversion, usual: tuple[int, int, int]) -> tuple[int, int, int]:
    """The usual block, or the shape that the network was made for where it takes no other."""
    try:
        check_block(conversion.family, conversion.arguments, usual)
    except InputError:
        inputs = list(conversion.canonical.graph.inputs.values())
        if len(inputs) == 1 and len(inputs[0]) == 4 and None not in inputs[0]:
            first, second, third, _ = (size or 1 for size in inputs[0])
            return first, second, third
    return usual


def classes_of(
    spec: ModelSpec,
    path: Path,
    known: KnownModel | None,
    names: tuple[str, ...] | None,
    image: bool = False,
) -> tuple[LabelClass, ...]:
    """What the outputs mean; nothing where they are no classes that exclude each other."""
    outputs = spec.arguments["outputs"]
    if image and (outputs != 1 or spec.output_activation != "linear"):
        raise InputError(
            f"--image is for networks of one linear output, and {path} has {outputs} and ends in "
            f"{spec.output_activation}; leave it out."
        )
    images = image or (known is not None and not known.classes)
    several = outputs is not None and outputs > 1
    if images or not labels_voxels(spec) or (several and spec.output_activation == "sigmoid"):
        if names:
            raise InputError(
                f"--classes: {path} holds a network whose outputs are no classes of voxels."
            )
        return ()
    expected = max(2, outputs)
    if names is None:
        published = _published_names(path, expected)
        if published is None and known and len(known.classes) == expected:
            return known.classes
        plain = ("background", *(f"class {value}" for value in range(1, expected)))
        names = published or plain
    if len(names) != expected:
        raise InputError(
            f"--classes names {len(names)} classes, but {path} tells {expected} apart."
        )
    return tuple(LabelClass(value, name) for value, name in enumerate(names))


def _published_names(model_json: Path, outputs: int) -> tuple[str, ...] | None:
    """Class names in the colormap.json that brainchop keeps beside a model.json, if they fit."""
    try:
        labels = json.loads((model_json.parent / "colormap.json").read_text())["labels"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    fits = isinstance(labels, list) and len(labels) == outputs
    return tuple(map(str, labels)) if fits else None


def _summary(
    conversion: Conversion, spec: ModelSpec, known: KnownModel | None, by: str, config: Convert
) -> list[str]:
    total = sum(value.size for value in conversion.parameters.values())
    lines = [
        f"{spec.family}: {len(conversion.parameters)} tensors, {total:,} values, none left over"
    ]
    if conversion.canonical.moved:
        lines.append("channels-first in the file, channels-last here and in what is exported")
    if known:
        lines.append(known_line(known, by))
    if gives_image(spec):
        lines.append("no classes: it gives an image, which 'voxtune predict' writes")
    elif not spec.classes:
        lines.append(
            "no classes: the outputs are not classes of voxels that exclude each other, so "
            "'voxtune predict' cannot use it as it is"
        )
    if not labels_voxels(spec):
        return lines
    one_class = spec.arguments["outputs"] == 1
    settings = ["orientation", "spacing", "intensity", "block", *(["threshold"] * one_class)]
    assumed = [f"--{name}" for name in settings if getattr(config, name) is None]
    lines.append(contract_line(spec.contract, one_class))
    if not known:
        lines.append(
            f"assumed, since a Keras file does not say it: {', '.join(assumed) or 'nothing'}"
        )
    return lines


def known_line(known: KnownModel, by: str) -> str:
    """Which published network a file is taken for."""
    how = "the very file of" if by == "hash" else "of the structure of"
    return f"{how} {known.name}; cite {known.citation}"


def contract_line(contract: Contract, one_class: bool) -> str:
    """A preprocessing contract in a line."""
    voxels = contract.spacing_mm and " x ".join(f"{size:g}" for size in contract.spacing_mm)
    block = " x ".join(map(str, contract.block))
    threshold = f", threshold {contract.threshold:g}" * one_class
    grid = contract.grid and f"grid of {' x '.join(map(str, contract.grid))} voxels, "
    window = contract.window and " {:g} to {:g}".format(*contract.window)
    cubic = "cubic, " * (contract.interpolation == "cubic")
    return (
        f"contract: {contract.orientation}, {voxels or 'own'} mm, {cubic}{grid or ''}"
        f"{contract.intensity}{window or ''}, blocks of {block} voxels{threshold}"
    )


def _verdict(
    golden: list[Comparison], verification: Verification | None, weights_alone: bool
) -> str:
    """What was proven, the last line of a conversion."""
    proofs = []
    if golden:
        proofs.append(f"{sum(each.met for each in golden)} of {len(golden)} golden arrays met")
    if verification:
        equal = sum(each.met for each in verification.comparisons)
        proofs.append(
            f"{equal} of {len(verification.comparisons)} layers equal to Keras "
            f"({verification.original})"
        )
    failed = not all(each.met for each in golden) or (verification and not verification.met)
    unverified = dict(verification.unverified) if verification else {}
    if verification and weights_alone and not golden:
        unverified["the network itself"] = "weights do not tell it: compare with --golden"
    if failed:
        word = "NOT EQUAL"
    elif verification and not verification.comparisons and not golden:
        word = "not verified"
    elif unverified:
        word = "verified in part"
    elif proofs:
        word = "verified"
    else:
        return "not verified: pass --verify to run the original in Keras beside it, or --golden"
    reasons: dict[str, list[str]] = {}
    for name, reason in unverified.items():
        reasons.setdefault(reason, []).append(name)
    rest = [f"not verified, since {reason}: {_some(names)}" for reason, names in reasons.items()]
    return f"{word}: {'; '.join(proofs + rest)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _tensor_table(tensors: tuple[Tensor, ...]) -> Table:
    table = Table(title="Tensors")
    for name in ("Keras tensor", "shape", "parameter", "done"):
        table.add_column(name, overflow="fold")
    for each in tensors:
        before, after = ("x".join(map(str, shape)) for shape in (each.keras_shape, each.shape))
        shape = before if before == after else f"{before} → {after}"
        table.add_row(each.keras, shape, each.path, each.done)
    return table


def _comparison_table(comparisons: list[Comparison], original: str) -> Table:
    tolerance = comparisons[0].tolerance if comparisons else 0
    table = Table(
        title=f"Largest difference from {original}, of a layer's largest value "
        f"(met up to {tolerance:.0e})"
    )
    table.add_column("layer", overflow="fold")
    table.add_column("computed at", overflow="fold")
    for name in ("difference", "of", "relative", ""):
        table.add_column(name, justify="right")
    for each in comparisons:
        figures = (f"{each.difference:.1e}", f"{each.largest:.3g}", f"{each.relative:.1e}")
        table.add_row(each.name, each.path, *figures, "met" if each.met else "NOT MET")
    return table


def _record(
    source: KerasModel | KerasWeights,
    conversion: Conversion,
    known: KnownModel | None,
    by: str,
    golden: list[Comparison],
    verification: Verification | None,
    verdict: str,
) -> dict[str, Any]:
    def differences(comparisons: Any) -> list[dict[str, Any]]:
        return [{**dataclasses.asdict(each), "relative": each.relative} for each in comparisons]

    record: dict[str, Any] = {
        "file": source.path.name,
        "format": source.format,
        "keras_version": source.keras_version,
        "sha256": source.sha256,
        "tensors": [dataclasses.asdict(each) for each in conversion.tensors],
        "golden": differences(golden),
        "verdict": verdict,
    }
    if known:
        record["published"] = {"name": known.name, "by": by, "citation": known.citation}
    if verification:
        record["keras"] = {
            "original": verification.original,
            "input": {name: list(shape) for name, shape in verification.shapes.items()},
            "layers": differences(verification.comparisons),
            "unverified": dict(verification.unverified),
        }
    return record
