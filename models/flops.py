"""Floating-point operations of a computation, counted from what JAX traced."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from voxtune.models.lowering import plain_lowerings


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations in the convolutions and matrix products of a function, without running it.

    A multiplication and an addition count as two, and those on zeros of a padding count too.
    Convolutions are traced as XLA's own, whatever this machine would run. What a loop does counts
    as often as it runs; other operations (activations, norms) are left out, being few.

    Args:
        function: anything that JAX can trace.
        arguments: arrays, or `jax.ShapeDtypeStruct` in their place.

    Raises:
        ValueError: a loop does not say how often it runs.
    """
    with plain_lowerings():
        return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(of_equation(each) for each in jaxpr.eqns)


def of_equation(equation: JaxprEqn) -> int:
    """Of one operation of a computation, as `flops` counts; errors likewise."""
    name = equation.primitive.name
    result: Any = equation.outvars[0].aval if equation.outvars else None
    given: list[Any] = [each.aval for each in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = given[0].shape
        return 2 * result.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = given[1].shape
        filters = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * result.size * math.prod(kernel) // filters
    inner = sum(map(_of_jaxpr, inside(equation)))
    if name == "while" and inner:
        raise ValueError("it holds a loop that does not say how often it runs")
    return inner * equation.params["length"] if name == "scan" else inner


def inside(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The computations that an operation is made of; of a choice, the first."""
    for name, value in equation.params.items():
        each = value[0] if name == "branches" else value
        if isinstance(each, ClosedJaxpr):
            yield each.jaxpr
        elif isinstance(each, Jaxpr):
            yield each
