"""The table for a README: which cases it has, and that it is a table whatever names there are."""

from collections.abc import Callable
from pathlib import Path

from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.readme_table import is_ours, markdown

Make = Callable[..., Entry]


def test_training_and_computing_beside_peers(entry: Make) -> None:
    """Not what was measured without peers, nor reading and writing."""
    old = {"date": "2026-01-01", "revision": "a1b2c3d4e5"}
    found = [
        entry(seconds=(2.0,) * 3, **old),
        entry("Keras-JAX", seconds=(6.0,) * 3, version="jax 0.9", **old),
        entry(),
        entry("PyTorch", seconds=(1.0, 1.6, 1.6)),
        entry("MONAI", seconds=(), problem="no <b>memory</b>", version=""),
        entry(case="alone"),
        entry("PyTorch", case="net, not beside voxtune"),
    ]
    for part in ("compute", "end to end"):
        about = {"suite": "predict", "case": part, "settings": {"part": part}}
        found += [entry(**about), entry("Keras-JAX", version="jax 0.9", **about)]
    found += [entry(suite="data"), entry("a loop", suite="data")]
    assert markdown(found).splitlines()[2:] == [
        "|  | voxtune | of the measured peak | Keras-JAX | PyTorch | MONAI |",
        "| --- | --- | --- | --- | --- | --- |",
        "| train: net, 16³, batch 1, float32 | 1.00 s (1.00 to 1.00) | 20.0 % (20.0 to 20.0) "
        "| 3.00 (3.00 to 3.00) | 1.60 (1.30 to 1.60, noisy) | not measured |",
        "| predict: compute | 1.00 s (1.00 to 1.00) | 20.0 % (20.0 to 20.0) "
        "| 1.00 (1.00 to 1.00) | \N{EN DASH} | \N{EN DASH} |",
        "",
        "Medians of turns and their quartiles, on 1 x cpu, 2 cores, 2026-01-01 to 2026-01-31. "
        "Below a peer is how many times as fast voxtune is. voxtune at 0123456, a1b2c3d; "
        "jax 0.10.2, jax 0.9, PyTorch 1.0.",
        "",
        "Not measured, or stopped:",
        "",
        "- MONAI, train: net, 16³, batch 1, float32: no \\<b\\>memory\\</b\\>",
    ]


def test_of_a_peer_that_was_stopped_the_bound_is_shown(entry: Make) -> None:
    stopped = {"seconds": (), "values": {"least_ratio": 5.39}, "problem": "stopped after 10 s"}
    _, _, row, *_, note = markdown([entry(), entry("Keras", **stopped)]).splitlines()[2:]
    assert row.endswith("| over 5.3 |")
    assert note == "- Keras, train: net, 16³, batch 1, float32: stopped after 10 s"


def test_without_peers_all_cases(entry: Make) -> None:
    found = [
        entry(),
        entry(suite="scaling", seconds=(), floors=(), values={"all_reduce": 2}),
        entry(suite="data", seconds=(), floors=(), problem="out of memory"),
    ]
    header, _, train, scaling, data, *_ = markdown(found).splitlines()[2:]
    assert header == "|  | voxtune | of the measured peak |"
    assert train.startswith("| train: net, ")
    assert scaling.endswith("| all reduce 2 | \N{EN DASH} |")
    assert data.endswith("| not measured | \N{EN DASH} |")


def test_a_table_for_each_machine(entry: Make) -> None:
    text = markdown([entry(), entry(machine="8 x H200"), entry("PyTorch", machine="8 x H200")])
    assert text.count("|  | voxtune |") == 2
    assert "on 8 x H200, 2026-01-31." in text


def test_names_are_shown_as_they_are(entry: Make) -> None:
    text = markdown([entry(case="a|b\n<script>[c](d) `e` *f*")])
    name = r"train: a\|b \<script\>\[c\](d) \`e\` \*f\*"
    assert f"| {name} | 1.00 s" in text


def test_a_file_that_was_made_here_is_known(tmp_path: Path) -> None:
    path = tmp_path / "index.md"
    path.write_text(markdown([]))
    assert "Nothing has been measured yet." in path.read_text()
    assert is_ours(path)
    path.write_text("# Mine\n")
    assert not is_ours(path)
