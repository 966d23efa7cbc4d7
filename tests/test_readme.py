"""The README's tables are the code's."""

from pathlib import Path

from voxtune.engine.known_models import published_table
from voxtune.models.catalog import families_table
from voxtune.models.kinds import KINDS, supported_table

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_table_of_layers_is_that_of_the_code() -> None:
    assert supported_table() in README
    assert f"({len(KINDS)} kinds;" in README


def test_the_table_of_architectures_is_that_of_the_code() -> None:
    assert families_table() in README


def test_the_table_of_published_networks_is_that_of_the_code() -> None:
    assert published_table() in README
