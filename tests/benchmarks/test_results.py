"""Results in words and tables."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.measurement import Work
from voxtune.benchmarks.results import (
    MOST_VALUES,
    line,
    said_number,
    said_seconds,
    said_value,
    said_values,
    tables,
)

Make = Callable[..., Entry]


def printed(found: list[Entry]) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=300, markup=False)
    for table in tables(found):
        console.print(table)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.5, "1.50"),
        (0.0123, "0.0123"),
        (413.2, "413"),
        (999.7, "1,000"),
        (0, "0"),
        (2e4, "20,000"),
    ],
)
def test_numbers_have_three_digits(value: float, said: str) -> None:
    assert said_number(value) == said


def test_short_times_are_milliseconds() -> None:
    assert [said_seconds(each) for each in (0.0503, 0.9999, 12.3)] == [
        "50.3 ms",
        "1,000 ms",
        "12.3 s",
    ]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("data_wait", 0.0132, "data wait 1.3 %"),
        ("agreement", 0.99987, "agreement 99.99 %"),
        ("share_of_step", 0.5, "share of step 50.0 %"),
        ("trace_seconds", 0.25, "trace 250 ms"),
        ("rate_on_same_cores", 0.875, "rate on same cores 87.5 %"),
        ("predicted_efficiency_256_ndr", 0.781, "predicted efficiency 256 ndr 78.1 %"),
        ("gradient_bytes", 2**21, "gradient 2 MiB"),
        ("predicted_halo_bytes_256", 2**21, "predicted halo 256: 2 MiB"),
        ("all_reduces", 1, "all reduces 1"),
    ],
)
def test_names_of_values_tell_their_units(name: str, value: float, said: str) -> None:
    assert said_value(name, value) == said


def test_a_peer_that_was_stopped_is_slower_than_a_bound(entry: Make) -> None:
    stopped = {"seconds": (), "values": {"least_ratio": 5.39}, "problem": "stopped after 10 s"}
    both = [entry(), entry("Keras", **stopped)]
    said = "Keras was stopped after 10 s: voxtune is over 5.3 times as fast"
    assert line(both).endswith(said)
    (row,) = (each for each in printed(both).splitlines() if "stopped" in each)
    assert row.split()[-2:] == ["over", "5.3"]


def test_a_line_tells_all_of_the_newest(entry: Make) -> None:
    own = entry(seconds=(0.40, 0.50, 0.51), values={"data_wait": 0.013, "loss": 1.2})
    peer = entry("PyTorch", seconds=(0.8, 1.0, 1.02), floors=(), first=None, memory=None)
    assert line([own]) == (
        "train: net, 16³, batch 1, float32: voxtune 500 ms (450 to 505, noisy), 2.00 blocks/s, "
        "40.0 % (39.6 to 45.0, noisy) of the measured peak, 256 MiB, first turn 3.00 s, "
        "data wait 1.3 %"
    )
    assert line([own, peer]) == (
        "train: net, 16³, batch 1, float32: PyTorch 1.00 s (0.900 to 1.01, noisy), 1.00 blocks/s, "
        "voxtune is 2.00 times (2.00 to 2.00) as fast"
    )


def test_a_line_tells_why_there_are_no_figures(entry: Make) -> None:
    found = [entry(), entry("MONAI", seconds=(), problem="out of memory")]
    assert line(found).endswith("MONAI is not measured: out of memory")


def test_noisy_ratios_are_marked(entry: Make) -> None:
    found = [entry(), entry("PyTorch", seconds=(2.0, 3.0, 4.0))]
    assert line(found).endswith("voxtune is 3.00 times (2.50 to 3.50, noisy) as fast")
    assert "3.00 (2.50 to 3.50*)" in printed(found)


def test_lines_and_tables_have_the_values_that_tell_most(entry: Make) -> None:
    names = ("loss", "looped", "all_reduce", "count_all_reduces", "agreement_b", "data_wait_b")
    values = {**dict.fromkeys(names, 0.5), "rate_on_same_cores": 0.5, "gradient_all_reduces": 1.0}
    found = entry(values=values)
    few = "rate on same cores 50.0 %, gradient all reduces 1, looped 0.5, all reduce 0.5"
    assert line([found]).endswith(few)
    assert len(few.split(", ")) == MOST_VALUES
    assert said_values(found.measurement).count(", ") == len(values) - 2


def test_one_turn_has_no_spread(entry: Make) -> None:
    assert "voxtune 1.00 s (one turn), 1.00 blocks/s" in line([entry(seconds=(1.0,))])


def test_of_a_suite_without_times_other_figures_are_told(entry: Make) -> None:
    found = entry(suite="scaling", seconds=(), floors=(), values={"all_reduces": 1})
    assert "all reduces 1" in line([found])
    assert "all reduces 1" in printed([found])


def test_scans_are_no_blocks(entry: Make) -> None:
    found = entry(suite="predict", work=Work(2, 0, 0), floors=(), seconds=(4.0,))
    assert "0.500 scans/s" in line([found])


def test_a_table_for_each_suite_and_machine(entry: Make) -> None:
    found = [entry(), entry(suite="data"), entry(machine="8 x H200"), entry(suite="data")]
    assert len(tables(found)) == 3


def test_tables_are_narrow_and_tell_all_programs(entry: Make) -> None:
    """However long names, problems and numbers are."""
    long = "a case with an extremely long name, " * 6
    names = ["voxtune", "PyTorch compiled by somebody", "MONAI"]
    found = [entry(names[0], case=long, seconds=(1.0, 2.0, 3.0), values={"data_wait": 0.5})]
    found.append(entry(names[1], case=long, seconds=(12.1, 24.2, 36.0), values={"x_y" * 9: 1e5}))
    found.append(entry(names[2], case=long, seconds=(), problem="out of memory, " * 9))
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 120
    assert "2.00 s (50 %)*" in text
    assert "12.1 (12.1 to 12.1)" in text
    assert "data wait" in text
    assert "memory" in text  # broken where the line ends


def test_of_what_was_measured_again_the_last_counts(entry: Make) -> None:
    text = printed([entry(seconds=(1.0,)), entry(seconds=(7.0,))])
    assert "7.00 s" in text
    assert "1.00 s (" not in text
