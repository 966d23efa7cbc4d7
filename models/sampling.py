"""Several draws of a network that is random, as mean, variance and entropy.

`voxtune predict --samples` does the same window by window; what it gives is compared with this.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.extend.core import Var
from jax.scipy.special import entr

from voxtune.models.families import Network


@dataclass(frozen=True)
class Sampled:
    """What draws of class probabilities have in common; K classes, two for a single logit.

    Attributes:
        mean: `[B, D, H, W, K]`.
        variance: of the draws around their mean, divided by their number, `[B, D, H, W, K]`.
        entropy: of the mean, `-Σ_k mean_k log mean_k`, nats, `[B, D, H, W]`: the predictive
            entropy, 0 where the draws are sure and agree, log K where nothing is known.
    """

    mean: Array
    variance: Array
    entropy: Array


def sampled(network: Network, x: Array, rngs: nnx.Rngs, *, samples: int) -> Sampled:
    """Mean, variance and entropy of the class probabilities over several draws.

    Works for every network that draws where it is given `rngs`: random weights and dropout (Gal
    and Ghahramani 2016). Batch normalisation keeps to its running statistics. Draws are run one
    after the other and summed up as they come (Welford 1962, doi 10.1080/00401706.1962.10490022),
    so memory is that of one of them; call it outside of `jax.jit`, or the program holds each.

    Args:
        network: emits logits, of classes that exclude each other or of one class.
        x: `[B, D, H, W, C]`.
        rngs: source of the draws.
        samples: number of draws.

    Raises:
        ValueError: no draw is asked for.
    """
    if samples < 1:
        raise ValueError(f"{samples} draws are none: ask for one at least")
    graph, state = nnx.split(network)
    outputs = jax.eval_shape(network, x).shape
    mean = squares = jnp.zeros((*outputs[:-1], max(outputs[-1], 2)))
    for count in range(1, samples + 1):
        mean, squares = _joined(graph, state, x, rngs.dropout(), count, mean, squares)
    return Sampled(mean, squares / samples, entr(mean).sum(-1))


def is_random(network: Network, shape: tuple[int, ...]) -> bool:
    """Whether what a network gives depends on a source of randomness, where it has one.

    Nothing is computed: the network may have shapes in the place of arrays.

    Args:
        network: as in `sampled`.
        shape: of a block that it takes, `[D, H, W, C]`.
    """
    graph, state = nnx.split(network)

    def draw(state: nnx.State, x: Array, key: Array) -> Array:
        return nnx.merge(graph, state)(x, rngs=nnx.Rngs(dropout=key))

    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    program = jax.make_jaxpr(draw)(state, image, jax.random.key(0)).jaxpr
    reached = {program.invars[-1]}  # what depends on the key
    for equation in program.eqns:
        if any(isinstance(each, Var) and each in reached for each in equation.invars):
            reached.update(equation.outvars)
    return any(isinstance(each, Var) and each in reached for each in program.outvars)


@partial(jax.jit, static_argnums=0)
def _joined(
    graph: nnx.GraphDef[Network],
    state: nnx.State,
    x: Array,
    key: Array,
    count: int,
    mean: Array,
    squares: Array,
) -> tuple[Array, Array]:
    """Mean and sum of squared distances from it, with one draw more: the `count`-th."""
    network = nnx.merge(graph, state)
    logits = network(x, rngs=nnx.Rngs(dropout=key)).astype(jnp.float32)
    if logits.shape[-1] == 1:  # softmax([0, z]) is (1 - sigmoid(z), sigmoid(z))
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    new = jax.nn.softmax(logits, axis=-1)
    mean, before = mean + (new - mean) / count, mean
    return mean, squares + (new - mean) * (new - before)
