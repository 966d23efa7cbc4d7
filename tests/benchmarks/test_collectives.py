"""Collectives of compiled programs: read from a text, and those of voxtune's own steps."""

import math
from typing import Any

import jax
import pytest

from voxtune.benchmarks.collectives import Collective, Sent, collectives, counted
from voxtune.benchmarks.nets import Net
from voxtune.benchmarks.own_step import OwnStep
from voxtune.models.lowering import plain_lowerings

TEXT = """HloModule jit_step, entry_computation_layout={(f32[2]{0})->f32[2]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (x: f32[4]) -> f32[4] {
  ROOT %gathered = f32[8]{0} all-gather(%x), channel_id=1, dimensions={0}
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %call = f32[4]{0} call(%x), to_apply=%inner
  %cond = f32[4]{0} conditional(%p, %x, %x), true_computation=%yes, false_computation=%no.1
  %case = f32[4]{0} conditional(%n, %x, %x), branch_computations={%low, %high}, metadata={}
}

ENTRY %main.1_spmd (p: f32[2]) -> f32[2] {
  %all-reduce.2 = (f32[3,3,3,2,4]{4,3,2,1,0}, f32[4]{0}, /*index=2*/bf16[]) all-reduce(%a, %b)
  %ar = s32[2]{0} all-reduce(%n), to_apply=%add
  %start = (f32[2,8]{1,0}, f32[2,8]{1,0}, u32[], u32[]) collective-permute-start(%x)
  %done = f32[2,8]{1,0:T(8,128)} collective-permute-done(%start)
  %no = f32[2]{0} add(%p, %p), metadata={op_name="all-reduce(x)"}
  ROOT %while = (s32[], f32[4]) while(%init), condition=%cond, body=%body
}
"""
KERNELS = {3 * 3 * 3 * 2 * 4}


def test_a_program_is_read() -> None:
    gathered, gradients, counts, halo = collectives(TEXT)
    kernel = Sent("f32", (3, 3, 3, 2, 4), 864)
    assert gradients == Collective(
        "all-reduce", (kernel, Sent("f32", (4,), 16), Sent("bf16", (), 2)), False
    )
    assert counts.arrays == (Sent("s32", (2,), 8),)
    assert halo == Collective("collective-permute", (Sent("f32", (2, 8), 64),), False)
    assert (gathered.kind, gathered.bytes, gathered.looped) == ("all-gather", 32, True)


def test_kinds_are_counted() -> None:
    values = counted(collectives(TEXT), KERNELS)
    assert {name: value for name, value in values.items() if value} == {
        "all_reduce": 2,
        "all_reduce_bytes": 882 + 8,
        "all_gather": 1,
        "all_gather_bytes": 32,
        "collective_permute": 1,
        "collective_permute_bytes": 64,
        "gradient_all_reduces": 1,
        "count_all_reduces": 1,
        "looped": 1,
    }


@pytest.mark.parametrize("branch", ["yes", "no.1", "low", "high"])
def test_branches_in_loops_are_in_them(branch: str) -> None:
    begins = f"%{branch} (x: f32[4]) -> f32[4] {{\n  %r = f32[4]{{0}} all-reduce(%x)\n}}\n"
    assert [each.looped for each in collectives(begins + TEXT) if each.kind == "all-reduce"] == [
        *(True, False, False)
    ]


@pytest.mark.parametrize(
    ("shape", "dtype", "is_gradient"),
    [
        ((24, 9), "f32", True),
        ((216,), "f32", False),
        ((216, 1), "s32", False),
        ((4, 1), "f32", False),
    ],
)
def test_moments_and_counts_are_no_gradients(
    shape: tuple[int, ...], dtype: str, is_gradient: bool
) -> None:
    found = Collective("all-reduce", (Sent(dtype, shape, 4),), False)
    assert found.sums_a(KERNELS) is is_gradient


UNET = Net("U-Net", "unet", {"outputs": 2, "filters": 2, "depth": 1})
MESHNET = Net("MeshNet", "meshnet", {"outputs": 2, "filters": 3, "dilations": (1, 2), "norm": None})


def of_step(net: Net, shape: tuple[int, ...], **options: Any) -> tuple[dict[str, float], int]:
    """What a step's devices send each other, and bytes of all parameters."""
    made = OwnStep.of(net, shape, **options)
    leaves = jax.tree.leaves(made.state.params)
    kernels = {each.size for each in leaves if each.ndim > 1}
    values = counted(collectives(made.lower().compile().as_text()), kernels)
    return values, sum(each.nbytes for each in leaves)


def assert_one_sum(values: dict[str, float], parameters: int, loss: int = 64) -> None:
    """Gradients and the parts of the loss in one operation, counts of voxels in another."""
    assert values["gradient_all_reduces"] == values["count_all_reduces"] == 1
    assert values["all_reduce"] == 2
    assert parameters < values["all_reduce_bytes"] <= parameters + loss
    assert not any(values[each] for each in ("all_gather", "all_to_all", "looped"))


@pytest.mark.parametrize(("net", "how"), [(UNET, "jit"), (MESHNET, "pmap")])
def test_gradients_are_summed_once(net: Net, how: str) -> None:
    with plain_lowerings():
        values, parameters = of_step(net, (8, 4, 4, 4), mesh="data=8", map=how)
    assert_one_sum(values, parameters)
    assert not values["collective_permute"]


# Floats of a folded decoder's kernel, less those of the bias and the kernels that it is made of.
FOLDED = 9 * 4**3 * 4 - 8 * (1 + 2**3 * 8 + 3**3 * 4)


@pytest.mark.parametrize(("net", "edge", "folded"), [(MESHNET, 4, 0), (UNET, 8, FOLDED)])
def test_loops_over_depth_slices_sum_nothing_over_devices(net: Net, edge: int, folded: int) -> None:
    """The lowering for CPUs: kernels' gradients are put together after the loops."""
    values, parameters = of_step(net, (4, edge, edge, edge), mesh="data=4")
    assert_one_sum(values, parameters + 4 * folded)


def test_depth_is_split_with_halos_alone() -> None:
    """Six convolutions' planes, there and back; sums go over `spatial`, then over `data`."""
    values, parameters = of_step(MESHNET, (2, 8, 4, 4), mesh="data=2,spatial=2")
    assert values["collective_permute"] > 0
    assert 1 <= values["gradient_all_reduces"] <= 3
    assert values["all_reduce_bytes"] < 2 * parameters + 256
    assert not any(values[each] for each in ("all_gather", "all_to_all", "looped"))


def test_one_device_sends_nothing() -> None:
    with plain_lowerings():
        values, _ = of_step(MESHNET, (1, 4, 4, 4), mesh="data=1")
    assert not any(values.values())
    assert math.isclose(sum(values.values()), 0)
