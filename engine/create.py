"""A model directory of a named architecture with fresh weights."""

import dataclasses

from rich.console import Console

from voxtune.converters.weights_only import parse_arguments
from voxtune.engine.config import Create
from voxtune.engine.convert import chosen_contract, classes_of, contract_line
from voxtune.engine.known_models import NOBRAINER
from voxtune.engine.model_dir import DOCUMENT, ModelSpec, check_block, write_model
from voxtune.engine.output import check_free
from voxtune.models.errors import InputError
from voxtune.models.families import abstract, build, complete
from voxtune.models.parameters import by_path, count


def create(config: Create, console: Console) -> None:
    """Makes a network with fresh weights and writes its model directory.

    Raises:
        InputError: an option is not possible, or the model directory exists.
    """
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed} makes no sense; give 0 to {2**32 - 1}.")
    check_free(config.model_dir, config.overwrite)
    given = {"channels": 1, "outputs": 1, **parse_arguments(config.arguments)}
    block = abstract(config.model, given).fixed_block or NOBRAINER.block
    arguments = complete(config.model, given)
    contract = chosen_contract(dataclasses.replace(NOBRAINER, block=block), config)
    check_block(config.model, arguments, contract.block)
    one = "linear" if config.image else "sigmoid"
    activation = one if arguments["outputs"] == 1 else "softmax"
    spec = ModelSpec(config.model, arguments, activation, (), contract)
    # Class names that lie beside another model.json are not those of this network.
    classes = classes_of(spec, config.model_dir / DOCUMENT, None, config.classes, config.image)
    spec = dataclasses.replace(spec, classes=classes)
    network = build(config.model, arguments, config.seed)
    write_model(
        config.model_dir,
        spec,
        by_path(network),
        history={"creation": {"seed": config.seed}},
        overwrite=config.overwrite,
    )
    for line in (
        f"{config.model}: {count(network):,} values, fresh from seed {config.seed}",
        contract_line(contract, arguments["outputs"] == 1),
        f"wrote {config.model_dir}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
