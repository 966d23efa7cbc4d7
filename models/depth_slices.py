"""3x3x3 convolutions as loops over depth slices: the lowering for CPUs.

XLA's own 3D convolution reaches 20-25 GFLOP/s on two CPU cores where a matrix product reaches 120.
So the shifted voxels of one depth slice are gathered to the rows of a matrix, and one product with
the kernel does the work: 60-115 GFLOP/s for the result and both gradients, whatever the dilation. A
result that needs no gradient takes half of the products where that pays: 1.1 to 1.5 times as fast
with 16 to 64 channels, see `voxtune.models.winograd`.
The loop keeps the program small (the U-Net's step compiles in 9 s) and the rows in cache. The batch
stays inside the slice, so that a batch that is sharded over devices stays where it is; a sharded
depth would be gathered.

Sums are kept in float32 where the arrays are bfloat16.

Measured and left out (21 channels, 2x40x56x40, and the U-Net's layers): 27C rows at once, all
products kept until a sum at the end, a ring of them, blocks of rows that fit in the L2 cache,
channels first, channels padded to 24, all within noise or slower; one product of 3C by 9O without
a loop, twice as slow; F(2,3) of Winograd in three dimensions, whose products on 21 channels alone
took as long as all of this.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from voxtune.models.winograd import pays, slice_products

Pair = tuple[Array, Array]


def wide_type(*arrays: Array) -> jnp.dtype:
    """The type in which products of these arrays are summed."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _pad_plane(x: Array, dilation: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))


def _taken(planes: Array, places: Array) -> Array:
    """Voxels of some planes by number: `[B, P, H, W, C]`, `[H', W', ...]` → `[B, H', W', ...C]`."""
    batch, channels = planes.shape[0], planes.shape[-1]
    voxels = planes.reshape(batch, -1, channels)
    found = voxels.at[:, places.ravel()].get(mode="promise_in_bounds")
    return found.reshape(batch, *places.shape[:2], -1)


def _steps(count: int, step: int, axis: int) -> Array:
    """0, `step`, ... along one of five axes: height, width and the taps of three axes."""
    row = step * jnp.arange(count, dtype=jnp.int32)
    return jnp.expand_dims(row, [each for each in range(5) if each != axis])


def _slice_rows(padded: Array, index: Array, dilation: int) -> Array:
    """The nine shifts of one depth slice: `[B, D, H+2d, W+2d, C]` → `[B, H, W, 9C]`."""
    plane = lax.dynamic_slice_in_dim(padded, index, 1, axis=1)
    (_, _, deep, wide, channels), gap = plane.shape, dilation
    height, width = deep - 2 * gap, wide - 2 * gap
    # By number compiles in half the time and is up to a fifth faster, if a voxel's channels fill
    # vectors; with 21 channels it is a quarter slower.
    if channels % 8 == 0:
        places = _steps(height, wide, 0) + _steps(width, 1, 1)
        return _taken(plane, places + _steps(3, gap * wide, 3) + _steps(3, gap, 4))
    plane = plane[:, 0]
    shifts = [
        plane[:, i * gap : i * gap + height, j * gap : j * gap + width]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(shifts, axis=-1)


def _conv_one_channel(x: Array, kernel: Array, dilation: int) -> Array:
    """27 shifted volumes times their weights, which XLA fuses to one pass.

    0.4 ms where a loop over slices takes 2.1 and XLA's convolution 11 (32³, 16 filters); of the
    gradients the loop's are the faster ones.
    """
    (_, depth, height, width, _), gap = x.shape, dilation
    padded = jnp.pad(_pad_plane(x, gap), ((0, 0), (gap, gap), (0, 0), (0, 0), (0, 0)))
    total = jnp.zeros((), wide_type(x, kernel))
    for i in range(3):
        for j in range(3):
            for k in range(3):
                shifted = padded[
                    :,
                    i * gap : i * gap + depth,
                    j * gap : j * gap + height,
                    k * gap : k * gap + width,
                ]
                total = total + shifted.astype(total.dtype) * kernel[i, j, k, 0]
    return total.astype(jnp.result_type(x, kernel))


def _targets(index: Array, depth: int, dilation: int) -> list[Pair]:
    """The slices that see this one, by each tap, and whether they lie inside the volume.

    One outside is given zeros in the place of another slice: padding the whole result would cost a
    fifth more.
    """
    targets = [index - (tap - 1) * dilation for tap in range(3)]
    inside = [(target >= 0) & (target < depth) for target in targets]
    return [
        (lax.clamp(0, target, depth - 1), within)
        for target, within in zip(targets, inside, strict=True)
    ]


def _add_taps(out: Array, products: Array, index: Array, dilation: int) -> Array:
    """Adds a slice's products `[B, H, W, 3O]` to the slices of `[B, D, H, W, O]` that see it."""
    targets = _targets(index, out.shape[1], dilation)
    parts = jnp.split(products[:, None], 3, axis=-1)
    for part, (target, is_inside) in zip(parts, targets, strict=True):
        there = lax.dynamic_slice_in_dim(out, target, 1, axis=1)
        there = there + jnp.where(is_inside, part, 0)
        out = lax.dynamic_update_slice_in_dim(out, there, target, axis=1)
    return out


def conv_by_fours(x: Array, kernel: Array, dilation: int) -> Array:
    """The convolution, by half of the products: see `voxtune.models.winograd`."""
    products = slice_products(x, kernel, dilation)

    def add_slice(index: Array, out: Array) -> Array:
        return _add_taps(out, products(index), index, dilation)

    start = jnp.zeros((*x.shape[:-1], kernel.shape[-1]), jnp.result_type(x, kernel))
    return lax.fori_loop(0, x.shape[1], add_slice, start)


def _over_slices(
    x: Array, dilation: int, kernel: Array | None = None, other: Array | None = None
) -> dict[str, Array]:
    """Goes over depth slices, gathering the nine in-plane shifts of each once.

    Args:
        x: `[B, D, H, W, C]`.
        dilation: distance of the taps, voxels.
        kernel: `[3, 3, 3, C, O]`, to convolve with. The rows are multiplied with the three depth
            taps side by side, one product `[BHW, 9C] @ [9C, 3O]`; its three parts are added to the
            output slices that they belong to.
        other: `[B, D, H, W, O]`, to correlate with: the gradient by a kernel of a convolution from
            `x` to `other`, one product `[3O, BHW] @ [BHW, 9C]` a slice.

    Returns:
        `convolved` `[B, D, H, W, O]` and `correlated` `[3, 3, 3, C, O]`, as asked for, in at least
        float32.
    """
    batch, depth, height, width, channels = x.shape
    padded, start = _pad_plane(x, dilation), {}
    if kernel is not None:
        filters = kernel.shape[-1]
        taps = kernel.transpose(1, 2, 3, 0, 4).reshape(9 * channels, 3 * filters)
        whole = (batch, depth, height, width, filters)
        start["convolved"] = jnp.zeros(whole, wide_type(x, kernel))
    if other is not None:
        kernel_shape = 3 * other.shape[-1], 9 * channels
        start["correlated"] = jnp.zeros((*examples_apart(x), *kernel_shape), wide_type(x, other))

    def add_slice(index: Array, sofar: dict[str, Array]) -> dict[str, Array]:
        rows, sums = _slice_rows(padded, index, dilation), {}
        if kernel is not None:
            products = jnp.matmul(rows, taps, preferred_element_type=wide_type(x, kernel))
            sums["convolved"] = _add_taps(sofar["convolved"], products, index, dilation)
        if other is not None:
            planes = [
                jnp.where(is_inside, lax.dynamic_index_in_dim(other, target, 1, keepdims=False), 0)
                for target, is_inside in _targets(index, depth, dilation)
            ]
            product = outer(jnp.concatenate(planes, axis=-1), rows)
            sums["correlated"] = sofar["correlated"] + product
        return sums

    found = lax.fori_loop(0, depth, add_slice, start)
    if other is not None:
        total = summed(found["correlated"]).reshape(3, other.shape[-1], 3, 3, channels)
        found["correlated"] = total.transpose(0, 2, 3, 4, 1)
    return found


def _turned(kernel: Array) -> Array:
    """The kernel of the way back: taps in reverse, channels and filters swapped."""
    return kernel[::-1, ::-1, ::-1].swapaxes(-1, -2)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_depth_slices(x: Array, kernel: Array, dilation: int = 1) -> Array:
    """3x3x3 convolution, stride 1, zero padding to the same size.

    Args:
        x: `[B, D, H, W, C]`.
        kernel: `[3, 3, 3, C, O]`.
        dilation: distance of the taps, voxels.

    Returns:
        `[B, D, H, W, O]`.
    """
    if x.shape[-1] == 1:
        return _conv_one_channel(x, kernel, dilation)
    if pays(x, kernel, dilation):
        return conv_by_fours(x, kernel, dilation)
    return _by_rows(x, kernel, dilation)


def _by_rows(x: Array, kernel: Array, dilation: int) -> Array:
    """The convolution, one product a slice."""
    y = _over_slices(x, dilation, kernel=kernel)["convolved"]
    return y.astype(jnp.result_type(x, kernel))


def _forward(x: Array, kernel: Array, dilation: int) -> tuple[Array, Pair]:
    # What trains is left as it was: its step would take longer to compile.
    way = conv_depth_slices if x.shape[-1] == 1 else _by_rows
    return way(x, kernel, dilation), (x, kernel)


def _backward(dilation: int, residuals: Pair, gradient: Array) -> Pair:
    x, kernel = residuals
    if x.shape[-1] == 1:  # the image: its gradient is seldom wanted, and its rows are short
        of_x = conv_depth_slices(gradient, _turned(kernel), dilation)
        of_kernel = _over_slices(x, dilation, other=gradient)["correlated"]
    else:  # both from the rows of the gradient, gathered once
        found = _over_slices(gradient, dilation, kernel=_turned(kernel), other=x)
        of_x, of_kernel = found["convolved"], _turned(found["correlated"])
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


conv_depth_slices.defvjp(_forward, _backward)


def outer(left: Array, rows: Array) -> Array:
    """What a slice adds to the kernel's gradient: `[B, H, W, O]`, `[B, H, W, I]` → `[O, I]`.

    The other way round, `[I, O]`, takes a tenth to a third longer. For each example by itself,
    `[B, O, I]`, where the batch is split over devices: see `examples_apart`.
    """
    sums = "bhwo,bhwi->boi" if examples_apart(rows) else "bhwo,bhwi->oi"
    return jnp.einsum(sums, left, rows, preferred_element_type=wide_type(rows, left))


def examples_apart(x: Array) -> tuple[int, ...]:
    """The batch `(B,)` where the mesh in context (`jax.set_mesh`) splits it over devices, or `()`.

    Examples that lie on several devices are summed after the loop: within, devices would wait for
    each other at every slice.
    """
    mesh = jax.sharding.get_abstract_mesh()
    split = any(size > 1 for axis, size in mesh.shape.items() if axis not in mesh.manual_axes)
    return x.shape[:1] if split else ()


def summed(parts: Array) -> Array:
    """The sum over examples of `[B, O, I]`; `[O, I]` is one."""
    return parts.sum(axis=0) if parts.ndim == 3 else parts


# --- stride 2 --------------------------------------------------------------------------------


def strided_rows(padded: Array, index: Array, size: int) -> Array:
    """The neighbours of every second voxel in a cube: `[B, D, H, W, C]` → `[B, H', W', size³ C]`.

    Args:
        padded: a volume with the zeros beside it.
        index: of the coarse depth slice.
        size: edge of the cube, voxels.
    """
    planes = lax.dynamic_slice_in_dim(padded, 2 * index, size, axis=1)
    _, _, deep, wide, _ = planes.shape
    height, width = ((edge - size) // 2 + 1 for edge in (deep, wide))
    places = _steps(height, 2 * wide, 0) + _steps(width, 2, 1)
    taps = _steps(size, deep * wide, 2) + _steps(size, wide, 3) + _steps(size, 1, 4)
    return _taken(planes, places + taps)


def _pad_one(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))


@jax.custom_vjp
def conv_strided_slices(x: Array, kernel: Array) -> Array:
    """3x3x3 convolution, stride 2, one zero on both sides.

    Args:
        x: `[B, D, H, W, C]`.
        kernel: `[3, 3, 3, C, O]`.

    Returns:
        `[B, ceil(D / 2), ceil(H / 2), ceil(W / 2), O]`.
    """
    taps, padded = kernel.reshape(-1, kernel.shape[-1]), _pad_one(x)
    depth, height, width = ((size + 1) // 2 for size in x.shape[1:4])

    def put_slice(index: Array, out: Array) -> Array:
        return lax.dynamic_update_index_in_dim(out, strided_rows(padded, index, 3) @ taps, index, 1)

    shape = (x.shape[0], depth, height, width, kernel.shape[-1])
    return lax.fori_loop(0, depth, put_slice, jnp.zeros(shape, jnp.result_type(x, kernel)))


def _strided_forward(x: Array, kernel: Array) -> tuple[Array, Pair]:
    return conv_strided_slices(x, kernel), (x, kernel)


def _spread(parts: Array, axis: int, taps: int) -> Array:
    """Adds what the three taps of every second place give to the places: `n`, 3 → `2n + 2`.

    `axis` is that of the places; `taps`, that of their taps, lies behind it.
    """
    first, middle, last = (jnp.take(parts, tap, taps) for tap in range(3))

    def padded(part: Array, before: int) -> Array:
        pads = [(0, 0)] * part.ndim
        pads[axis] = before, 1 - before
        return jnp.pad(part, pads)

    pairs = jnp.stack([padded(first, 0) + padded(last, 1), padded(middle, 0)], axis + 1)
    return pairs.reshape(*pairs.shape[:axis], -1, *pairs.shape[axis + 2 :])


def _strided_backward(residuals: Pair, gradient: Array) -> Pair:
    x, kernel = residuals
    taps, padded, wide = kernel.reshape(-1, kernel.shape[-1]), _pad_one(x), wide_type(x, kernel)
    batch, depth, height, width, _ = gradient.shape
    channels = x.shape[-1]

    def add_slice(index: Array, sofar: Pair) -> Pair:
        spread, total = sofar
        here = lax.dynamic_index_in_dim(gradient, index, 1, keepdims=False)
        parts = jnp.matmul(here, taps.T, preferred_element_type=wide)
        parts = parts.reshape(batch, height, width, 3, 3, 3, channels)
        parts = _spread(_spread(parts, 2, 5), 1, 4)  # [B, 2H'+2, 2W'+2, 3, C]
        planes = lax.dynamic_slice_in_dim(spread, 2 * index, 3, axis=1) + jnp.moveaxis(parts, 3, 1)
        spread = lax.dynamic_update_slice_in_dim(spread, planes, 2 * index, axis=1)
        return spread, total + outer(here, strided_rows(padded, index, 3))

    shape = (batch, 2 * depth + 1, 2 * height + 2, 2 * width + 2, channels)
    start = jnp.zeros(shape, wide), jnp.zeros((*examples_apart(x), *taps.T.shape), wide)
    spread, total = lax.fori_loop(0, depth, add_slice, start)
    kept = spread[:, 1 : 1 + x.shape[1], 1 : 1 + x.shape[2], 1 : 1 + x.shape[3]]
    return kept.astype(x.dtype), summed(total).T.reshape(kernel.shape).astype(kernel.dtype)


conv_strided_slices.defvjp(_strided_forward, _strided_backward)
