"""The page of throughput: over revisions, against peers and against the device's floor.

What it says comes from the history, which may have been edited: it is shown as text.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from voxtune.benchmarks import readme_table
from voxtune.benchmarks.comparisons import Figure, figures_of, newest
from voxtune.benchmarks.floor_plots import MOST_NETS, against_floors, short_name
from voxtune.benchmarks.history import Entry, Place
from voxtune.benchmarks.measurement import NOISY
from voxtune.benchmarks.results import (
    said_first,
    said_least,
    said_memory,
    said_rate,
    said_seconds,
    said_share,
    said_times,
    said_took,
    said_values,
    unit_of,
)
from voxtune.benchmarks.roofline import Reach, forward_floor, reaches
from voxtune.benchmarks.throughput_plots import (
    MOST_BARS,
    MOST_CASES,
    Drawing,
    against_peers,
    nothing,
    over_revisions,
    save_drawings,
)
from voxtune.engine.formats import NOTHING, rounded
from voxtune.engine.page import (
    Html,
    Section,
    bullets,
    details,
    figure,
    is_page,
    page,
    pairs,
    paragraph,
    table,
)
from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError

_TITLE = "Throughput of voxtune"


def check_place(path: Path) -> None:
    """Makes sure that a page may be written, with its picture and its table.

    Raises:
        InputError: the page is not named as one, or something else is in the place of one of them,
            or its folder is not there.
    """
    if path.suffix.lower() != ".html":
        raise InputError(f"{path} must end in .html; name the page so.")
    ours = _is_ours(path)
    picture, table = _beside(path)
    for each, may in ((path, ours), (picture, ours), (table, _is_table(table))):
        if each.exists() and not (may and each.is_file()):
            raise InputError(
                f"{each} exists and is no page of a benchmark, nor its picture or table, so it is "
                "left alone; give another name with --page."
            )
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}.")


def _is_ours(path: Path) -> bool:
    if not is_page(path):
        return False
    with path.open("rb") as stream:  # studies and runs have pages too
        return f"<title>{_TITLE}</title>".encode() in stream.read(4096)


def _beside(path: Path) -> tuple[Path, Path]:
    """The picture and the table of a page."""
    return path.with_suffix(".png"), path.with_suffix(".md")


def _is_table(path: Path) -> bool:
    try:
        return path.is_file() and readme_table.is_ours(path)
    except OSError:
        return False


def write(entries: Sequence[Entry], path: Path) -> None:
    """Writes the page, and beside it its picture (.png) and a table for a README (.md).

    What is there is replaced.

    Args:
        entries: the history, in its order.
        path: .html.

    Raises:
        InputError: something else is in the way, or it cannot be written.
    """
    check_place(path)
    figures = figures_of(entries)
    last = newest(figures)
    reached = reaches(each.entry for each in last)
    drawn = {
        "peers": against_peers(last),
        "floors": against_floors(reached),
        "revisions": over_revisions(figures),
    }
    there = {name: each for name, each in drawn.items() if each is not None}
    sections = [
        Section("Against peers", [*_figure(there, "peers"), *_peer_tables(last)]),
        Section("Against the floor", [*_figure(there, "floors"), *_floor_tables(reached)]),
        Section("Over revisions", [*_figure(there, "revisions"), *_revision_tables(figures)]),
        *(Section(f"Suite {suite}", own) for suite, own in _suite_tables(last).items()),
        Section("Without figures, or stopped", _problems(last)),
        Section("How it was measured", [_conventions(figures), *_places(entries)]),
    ]
    text = page(_TITLE, _lead(figures), sections)
    picture, table = _beside(path)
    # Renamed from the last to the first, once all are written. By the page `check_place` knows the
    # others as ours, wherever this is killed.
    with (
        written_beside(picture) as new_picture,
        written_beside(table) as new_table,
        written_beside(path) as new_page,
    ):
        save_drawings([*there.values()] or [nothing()], new_picture)
        new_table.write_text(readme_table.markdown(entries), encoding="utf-8")
        new_page.write_text(text, encoding="utf-8")


def _lead(figures: Sequence[Figure]) -> list[str]:
    if not figures:
        return ["Nothing has been measured yet."]
    place = figures[-1].entry.place
    return [
        f"Last measured on {place.date} at revision {place.revision}, on {place.machine}.",
        "Ratios to other programs are the result: programs ran in turn on the same machine. "
        "Absolute times depend on what else the machine did.",
    ]


def _figure(drawn: Mapping[str, Drawing], name: str) -> list[Html]:
    """A drawing within the page; none where there is nothing to draw."""
    if name not in drawn:
        return []
    alt, caption = _CAPTIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawing.svg"
        save_drawings([drawn[name]], path)
        return [figure(path, alt, caption)]


_CAPTIONS = {
    "revisions": (
        "Ratios to peers, share of the measured peak and blocks a second over revisions.",
        "Each point is the median of the turns of one revision, with their quartiles. A line ends "
        f"where a peer's version does. At most {MOST_CASES} cases of a machine are drawn, those "
        "that were measured most often; the tables have all.",
    ),
    "peers": (
        "Bars of how many times as fast voxtune is as each peer.",
        "The newest ratio of each case, on a logarithmic axis: median and quartiles over turns; "
        "hatched where voxtune is slower. Peers that were stopped have no bar. At most "
        f"{MOST_BARS} of a machine are drawn; the tables have all.",
    ),
    "floors": (
        "Layers of each network under the roof of the device, and the floor of each.",
        "Floors are of the operations as counted. Left: what the device's measured rates of "
        "products (flat) and of copies (slope) allow. Right: the layers of a training step. At "
        f"most {MOST_NETS} steps of a machine are drawn; the tables have all.",
    ),
}


def _peer_tables(figures: Sequence[Figure]) -> list[Html]:
    """A row for each peer in each case, a table for each machine."""
    header = ("Case", "Peer", "voxtune is faster", "voxtune", "Peer's time", "Version", "Date")
    tables = []
    for machine, own in _by_machine(each for each in figures if each.own is not None).items():
        rows = [
            (
                f"{each.measured.suite}: {each.measured.case}",
                each.measured.program,
                _ratio(each),
                NOTHING if each.own is None else _said_took(each.own),
                _took(each),
                each.measured.version,
                each.entry.place.date,
            )
            for each in own
        ]
        caption = f"Median (quartiles) on {machine}; how many times as fast voxtune is"
        tables.append(table(caption, header, rows, words=(0, 1, 5, 6)))
    return tables


def _floor_tables(reached: Sequence[Reach]) -> list[Html]:
    """Steps beside their floors, and the layers of each network."""
    if not reached:
        return []
    rows = [
        (
            each.entry.measurement.case,
            each.entry.place.machine,
            f"{rounded(each.product / 1e9)} GFLOP/s",
            f"{rounded(each.copy / 1e9)} GB/s",
            said_seconds(forward_floor(each.layers, each.product, each.copy)),
            said_seconds(each.floor),
            _said_took(each.entry),
            said_times(each.times),
        )
        for each in reached
    ]
    header = ("Case", "Machine", "Products", "Copies", "Forward", "Step", "Measured", "Of floor")
    caption = "Floors of a forward pass and of a training step, and the step as measured"
    text = (
        "The floor of a layer is the longer of two times: its FLOPs at the device's measured rate "
        "of matrix products, and its bytes (what goes in, what comes out and the kernel, once "
        "each) at the measured rate of copies. Of a training step it counts forward once and "
        "backward twice: once for the kernel's gradient, once for that of what goes in, which is "
        "not computed of the image. Activations, pooling, joins and the optimiser count nothing. "
        "That is of the operations as counted: what voxtune computes with fewer, as it does some "
        "layers on CPUs, may be faster."
    )
    return [
        table(caption, header, rows, words=(0, 1)),
        paragraph(text),
        *map(_layers, reached),
    ]


def _layers(reach: Reach) -> Html:
    """The layers of a network."""
    header = ("Layer", "GFLOP", "MB", "FLOPs a byte", "Passes", "A pass", "Of the step", "Bound by")
    rows = [
        (
            short_name(each),
            rounded(each.flops / 1e9),
            rounded(each.bytes / 1e6),
            rounded(each.intensity),
            str(each.passes),
            said_seconds(reach.pass_floor(each)),
            f"{100 * each.passes * reach.pass_floor(each) / reach.floor:.1f} %",
            "copies" if reach.is_copied(each) else "products",
        )
        for each in reach.layers
    ]
    name = f"{reach.entry.measurement.case}, {reach.entry.place.machine}"
    caption = f"Layers of {name}: of the forward pass, and floors by the operations as counted"
    return details(f"Layers of {name}", table(caption, header, rows, words=(0, 7)))


def _revision_tables(figures: Sequence[Figure]) -> list[Html]:
    """A table for each case, folded."""
    header = ("Revision", "Date", "Program", "Time", "Per second", "Of peak", "Times as fast")
    cases: dict[tuple[str, str, str], list[Figure]] = {}
    for each in figures:
        cases.setdefault(each.case, []).append(each)
    found = []
    for (machine, suite, case), own in cases.items():
        rows = [
            (
                each.entry.place.revision,
                each.entry.place.date,
                f"{each.measured.program} {each.measured.version}".strip(),
                _took(each),
                _rate(each),
                _share(each),
                _ratio(each),
            )
            for each in own
        ]
        name = f"{suite}: {case}, {machine}"
        found.append(details(name, table(name, header, rows, words=(0, 1, 2))))
    return found


def _suite_tables(figures: Sequence[Figure]) -> dict[str, list[Html]]:
    """Suite → a table for each machine, of everything that there is."""
    found: dict[str, list[Html]] = {}
    for suite in dict.fromkeys(each.measured.suite for each in figures):
        chosen = [
            each for each in figures if each.measured.suite == suite and not each.measured.problem
        ]
        for machine, own in _by_machine(chosen).items():
            columns = {name: [cell(each) for each in own] for name, cell in _COLUMNS.items()}
            columns = {name: cells for name, cells in columns.items() if set(cells) - _EMPTY}
            words = [place for place, name in enumerate(columns) if name in _WORDS]
            rows = zip(*columns.values(), strict=True)
            caption = f"{suite} on {machine}: the newest of each case"
            found.setdefault(suite, []).append(table(caption, [*columns], rows, words))
    return found


def _problems(figures: Sequence[Figure]) -> list[Html]:
    """What could not be measured, or not to its end, and why."""
    texts = [
        f"{each.measured.suite}: {each.measured.case}, {each.entry.place.machine}: "
        f"{each.measured.program}: {each.measured.problem}"
        for each in figures
        if each.measured.problem
    ]
    return [bullets(texts)] if texts else []


# What must agree before peers are timed, by suite.
_AGREEMENT = {
    "train": "In train, a peer is timed if it has voxtune's losses of the same batch from the same "
    "weights, before a step and after it.",
    "predict": "In predict, a peer is timed if it gives voxtune's probabilities of a small cube "
    "from the same weights, and nearly all of its labels of the scan. One that had no room beside "
    "voxtune was timed alone, and has no ratio. One that takes over five times voxtune's fastest "
    "turn (a second at least) is stopped; 'over' is then a lower bound from the turns until then.",
    "data": "In data, batches of MONAI are checked for their shape and type alone, and stay in the "
    "host's memory, where voxtune's and the loop's lie on the device in the end. The loop with "
    "nibabel is not checked: it draws blocks anywhere, all others a third round labelled voxels. "
    "On a CPU all programs that only cut blocks keep memory that they freed, which runs of voxtune "
    "do not.",
}


def _conventions(figures: Sequence[Figure]) -> Html:
    """How figures came about, of the suites that there are."""
    suites = {each.measured.suite for each in figures}
    return bullets(
        (
            "Each program runs in a process of its own, and programs of a case take turns; the "
            "first turn, which compiles, and those that warm up do not count. Each turn waits for "
            "its result.",
            "Shown are medians of turns with their quartiles; a figure whose quartiles are more "
            f"than {100 * NOISY:.0f} % of the median apart is marked noisy.",
            "A ratio is a peer's time over voxtune's in the same turn: above 1, voxtune is faster.",
            *(text for suite, text in _AGREEMENT.items() if suite in suites),
            "FLOPs are those of convolutions and matrix products; a multiplication and an addition "
            "are two, those on zeros of a padding count, and what is computed again to save memory "
            "does not.",
            "The peak is what the device reaches in a product of square matrices of the same data "
            "type, measured in each turn.",
        )
    )


def _places(entries: Sequence[Entry]) -> list[Html]:
    """Each machine as it was last: rates, versions, flags."""
    last: dict[str, Place] = {each.place.machine: each.place for each in entries}
    return [pairs(_place(each), machine) for machine, each in last.items()]


def _place(place: Place) -> dict[str, str]:
    found = {"Revision": place.revision, "Date": place.date}
    for dtype, rate in place.products.items():
        found[f"Products of {dtype}"] = f"{rounded(rate / 1e9)} GFLOP/s"
    if place.copy is not None:
        found["Copies"] = f"{rounded(place.copy / 1e9)} GB/s"
    found["Versions"] = ", ".join(f"{name} {version}" for name, version in place.versions.items())
    found["Flags"] = ", ".join(f"{name}={value}" for name, value in place.flags.items()) or "none"
    return found


def _by_machine(figures: Iterable[Figure]) -> dict[str, list[Figure]]:
    found: dict[str, list[Figure]] = {}
    for each in figures:
        found.setdefault(each.entry.place.machine, []).append(each)
    return found


# Cells


def _said_took(entry: Entry) -> str:
    took = entry.measurement.took
    return NOTHING if took is None else said_took(took)


def _took(each: Figure) -> str:
    if each.least_ratio is not None:
        return "stopped"
    return "not measured" if each.measured.problem else _said_took(each.entry)


def _rate(each: Figure) -> str:
    said = said_rate(each.measured)
    return f"{said} {unit_of(each.measured)}" if said else NOTHING


def _share(each: Figure) -> str:
    share = each.measured.peak_share
    return NOTHING if share is None else said_share(share)


def _ratio(each: Figure) -> str:
    if each.least_ratio is not None:
        return f"{said_least(each.least_ratio)} times"
    return NOTHING if each.ratio is None else said_times(each.ratio)


def _amount(rate: float | None, unit: float) -> str:
    return NOTHING if rate is None else rounded(rate / unit)


_COLUMNS: Mapping[str, Callable[[Figure], str]] = {
    "Case": lambda each: each.measured.case,
    "Program": lambda each: each.measured.program,
    "Time": _took,
    "First turn": lambda each: said_first(each.measured),
    "Per second": _rate,
    "Voxels/s": lambda each: _amount(each.measured.rate(each.measured.work.voxels), 1),
    "GFLOP/s": lambda each: _amount(each.measured.rate(each.measured.work.flops), 1e9),
    "Of peak": _share,
    "Memory": lambda each: said_memory(each.measured),
    "Also": lambda each: said_values(each.measured),
}
_WORDS = ("Case", "Program", "Also")
_EMPTY = {"", NOTHING}  # a column of these alone is left out
