"""What a family takes, and the sentence for what it does not."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from voxtune.models.arguments import check_arguments


class Family:
    def __init__(
        self,
        *,
        outputs: int,
        rate: float = 0.0,
        norm: Literal["batch", "group"] | None = None,
        dilations: Sequence[int] = (1,),
        fold: bool = False,
        rngs: None,
    ) -> None: ...


@pytest.mark.parametrize(
    "arguments",
    [
        {"outputs": 1},
        {"outputs": 3, "rate": 0, "norm": "group", "dilations": [1, 2], "fold": True},
        {"outputs": 3, "rate": 0.5, "norm": None, "dilations": (4,)},
    ],
)
def test_what_it_takes(arguments: dict[str, Any]) -> None:
    check_arguments(Family, arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "'outputs' is missing"),
        ({"outputs": 1, "wings": 2}, "no argument 'wings'; its arguments: outputs, rate, norm"),
        ({"outputs": 0}, "'outputs' is a whole number above zero, not 0"),
        ({"outputs": True}, "not True"),
        ({"outputs": 2.0}, "not 2.0"),
        ({"outputs": 1, "rate": 1.0}, "'rate' is a number from 0 up to 1, not 1.0"),
        ({"outputs": 1, "rate": float("nan")}, "not nan"),
        ({"outputs": 1, "norm": "layer"}, "'norm' is 'batch' or 'group' or none, not 'layer'"),
        ({"outputs": 1, "dilations": 3}, "a list, each a whole number above zero, not 3"),
        ({"outputs": 1, "dilations": []}, "not []"),
        ({"outputs": 1, "dilations": [1, "x"]}, "not [1, 'x']"),
        ({"outputs": 1, "fold": "yes"}, "'fold' is true or false, not 'yes'"),
        ({"outputs": 1, "rngs": 0}, "no argument 'rngs'"),
    ],
)
def test_what_it_does_not_take(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="argument") as error:
        check_arguments(Family, arguments)
    assert says in str(error.value)
