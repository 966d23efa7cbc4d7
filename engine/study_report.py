"""The page of a study: the answer in words, then pictures, tables, and how it was done.

What was measured comes from findings and outcomes; how, from the study's design and from what each
run directory says of itself.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from voxtune.engine.arms import Design, design_options
from voxtune.engine.command_line import study_command, without_folders
from voxtune.engine.config import Study
from voxtune.engine.findings import SETTLED, Cell, Comparison, Findings
from voxtune.engine.formats import MINUS, NOTHING, counted, interval, number, p_value, signed
from voxtune.engine.outcomes import Outcome
from voxtune.engine.page import (
    Html,
    Section,
    bullets,
    code,
    figure,
    page,
    paragraph,
    subheading,
    table,
    write_page,
)
from voxtune.engine.sentences import answer, basis
from voxtune.engine.statistics import FAILURE
from voxtune.engine.study_methods import methods

if TYPE_CHECKING:  # it runs networks, and this does not
    from voxtune.engine.forgetting import Forgetting

_NONE: Mapping[Any, Any] = MappingProxyType({})


def write_report(
    path: Path,
    study: Study,
    design: Design,
    findings: Findings,
    outcomes: Sequence[Outcome],
    documents: Mapping[str, Mapping[str, Any]],
    *,
    figures: Mapping[str, Path] = _NONE,
    tuned: Mapping[tuple[str, int], Mapping[float, float]] = _NONE,
    forgetting: Sequence["Forgetting"] = (),
    inputs: Mapping[str, str] = _NONE,
) -> None:
    """Writes it. An existing file is replaced.

    Args:
        path: where to.
        study: its options.
        design: of the study.
        findings: what it shows.
        outcomes: of all networks of the comparison.
        documents: name of a run → what its config.json says, see
            `voxtune.engine.saved_config.read_config`.
        figures: "violins", "learning_curve", "courses", "cases" → .svg or .png; each may be
            missing.
        tuned: arm and size → factor of its learning rates → validation Dice with it.
        forgetting: of the task before, where that was measured.
        inputs: what was read → its digest.

    Raises:
        InputError: a figure cannot be read, or the page not be written.
    """
    designed = design_options(study.design)
    drawn = _Figures(figures, findings)
    sections = [
        Section("Dice", [*drawn("violins"), *_cells(findings.cells)]),
        Section(f"{design.arms[0].name} against the others", _comparisons(findings.comparisons)),
        Section("Data efficiency", [*drawn("learning_curve"), *_worths(findings)]),
        Section("Training curves", [*drawn("courses"), *_courses(findings), *_reaches(findings)]),
        Section("Forgetting", _forgetting(forgetting)),
        Section("Worst and median case", drawn("cases")),
        Section(
            "How it was done",
            [
                subheading("Command"),
                code(study_command(study, designed)),
                *methods(study, design, outcomes, documents, tuned, inputs),
            ],
        ),
    ]
    arms = [each.name for each in design.arms]
    found = answer(arms, findings.comparisons)
    resting = basis(findings.comparisons)
    others = [each for each in findings.sentences if each not in (*found, resting)]
    words = [Section("In words", [bullets(others)])] if others else []
    lead = [*found, f"{_about(study, design, findings)} {resting}".rstrip()]
    write_page(path, page(_title(study, design), lead, [*words, *sections]))


def _title(study: Study, design: Design) -> str:
    """Transfer is the question where arms start otherwise."""
    starts = {each.options.get("init", study.init) for each in design.arms}
    return "Did transfer help?" if len(starts) > 1 else "Arms compared"


def _about(study: Study, design: Design, findings: Findings) -> str:
    """What was compared, on what."""
    subjects = max((each.subjects for each in findings.cells), default=0)
    arms = ", ".join(each.name for each in design.arms)
    model, data = (without_folders(str(each)) for each in (study.model, study.data))
    unseen = "was trained on or chosen by" if study.split == "test" else "was trained on"
    return (
        f"Compared are networks of {len(design.arms)} arms, {arms}, trained on "
        f"{_listed(design.sizes)} scans with {counted(len(design.seeds), 'seed')} each; the model "
        f"is {model}, the data are {data}. Results are of {counted(subjects, 'subject')} of the "
        f"split {study.split}, which no network {unseen}."
    )


class _Figures:
    """The figures that are there, with words for who does not see them."""

    def __init__(self, figures: Mapping[str, Path], findings: Findings) -> None:
        self._figures, self._findings = figures, findings

    def __call__(self, name: str) -> list[Html]:
        path = self._figures.get(name)
        if path is None:
            return []
        return [figure(path, self._alt(name), _CAPTIONS[name])]

    def _alt(self, name: str) -> str:
        cells, courses = self._findings.cells, self._findings.courses
        each: Iterable[str]
        match name:
            case "violins":
                what, each = "Violin plots of Dice.", map(_median_of, cells)
            case "learning_curve":
                what, each = "Mean Dice over the number of scans.", map(_mean_of, cells)
            case "courses":
                what = "Validation Dice over training steps."
                each = (
                    f"{course.arm}, {counted(course.size, 'scan')}: {number(course.dice[-1])} "
                    f"after step {course.steps[-1]}"
                    for course in courses
                    if course.steps
                )
            case _:
                return f"Scans with outlines of true and predicted labels. {_CAPTIONS[name]}"
        return f"{what} {'; '.join(each)}."


def _median_of(cell: Cell) -> str:
    return (
        f"{cell.arm}, {counted(cell.size, 'scan')}: median {number(cell.median)}, quartiles "
        f"{interval(cell.lower_quartile, cell.upper_quartile)}, worst {number(cell.worst)}"
    )


def _mean_of(cell: Cell) -> str:
    return (
        f"{cell.arm}, {counted(cell.size, 'scan')}: {number(cell.mean)} "
        f"({interval(cell.low, cell.high)})"
    )


_CAPTIONS = {
    "violins": "Dice by arm, a panel for each number of scans. Each dot is a subject, the mean of "
    "its seeds. The line is the median; of five subjects and more there is a violin, with "
    "dashed lines at the quartiles. Below: mean ± standard deviation over subjects.",
    "learning_curve": "Mean Dice over the number of scans trained on, with 95 % intervals over "
    "subjects, where there are four or more. Small marks, if there are several seeds, are these.",
    "courses": "Validation Dice while the networks were trained: for each arm the mean of its "
    "seeds, and the seeds as thin lines if there are several.",
    "cases": "The worst and the median subject of the first arm, by the first seed with the "
    "fewest scans, with the outlines of the true labels and of the first two arms' results.",
}


def _cells(cells: Sequence[Cell]) -> list[Html]:
    dice = (
        (
            each.arm,
            str(each.size),
            number(each.mean),
            interval(each.low, each.high),
            number(each.sd),
            number(each.median),
            interval(each.lower_quartile, each.upper_quartile),
            number(each.seeds_sd),
            str(each.subjects),
            str(each.seeds),
        )
        for each in cells
    )
    worst = (
        (
            each.arm,
            each.worst_subject,
            str(each.size),
            number(each.worst),
            str(each.failures),
            str(each.failures_any),
            number(each.hd95_mm, 2),
            str(each.hd95_left_out),
        )
        for each in cells
    )
    header = (
        *("Arm", "Scans", "Mean", "95 % interval", "SD", "Median", "Quartiles"),
        *("SD of seeds", "Subjects", "Seeds"),
    )
    left = (
        *("Arm", "Worst subject", "Scans", "Dice", f"Below {FAILURE:g}", "In single seeds"),
        *("Mean HD95, mm", "Without HD95"),
    )
    return [
        table("Dice of subjects, each averaged over its seeds", header, dice),
        table(
            "Worst cases, by the mean of seeds but for what one network alone did; and distances "
            "of surfaces",
            left,
            worst,
            words=(0, 1),
        ),
    ]


def _comparisons(comparisons: Sequence[Comparison]) -> list[Html]:
    if not comparisons:
        return []
    rows = (
        (
            f"{each.arm} {MINUS} {each.other}",
            str(each.size),
            signed(each.difference),
            interval(each.low, each.high),
            p_value(each.p),
            p_value(each.p_holm),
            f"{each.ahead} of {each.subjects}",
            str(each.left_out),
            f"{each.seeds_ahead} of {each.seeds}",
        )
        for each in comparisons
    )
    spread = (
        (
            f"{each.arm} / {each.other}",
            str(each.size),
            number(each.sd_ratio, 2),
            interval(each.sd_ratio_low, each.sd_ratio_high, 2),
            p_value(each.sd_p),
            p_value(each.sd_p_holm),
        )
        for each in comparisons
    )
    header = (
        *("Arms", "Scans", "Mean difference", "95 % interval", "p", "p after Holm"),
        *("Subjects better", "Left out", "Seeds better"),
    )
    return [
        table(
            "Differences of Dice, of the same subjects; left out are those with a Dice in one arm "
            "alone; p is of Wilcoxon's signed-rank test",
            header,
            rows,
        ),
        table(
            "Spread: ratio of the standard deviations over subjects, below 1 where the first arm "
            "varies less; p is of a bootstrap, Holm-corrected by itself",
            ("Arms", "Scans", "SD ratio", "95 % interval", "p", "p after Holm"),
            spread,
        ),
    ]


def _worths(findings: Findings) -> list[Html]:
    if not findings.worths:
        return []
    sizes: dict[str, list[int]] = {}
    for cell in findings.cells:
        sizes.setdefault(cell.arm, []).append(cell.size)
    rows = (
        (
            each.arm,
            each.other,
            str(each.size),
            _scans(each.scans, sizes[each.other]),
            " to ".join(
                dict.fromkeys(_scans(end, sizes[each.other]) for end in (each.low, each.high))
            ),
        )
        for each in findings.worths
    )
    header = ("Arm", "Other arm", "Scans", "The other needs", "95 % percentile interval")
    return [
        table(
            "Scans that another arm needs for the same Dice, as far as its numbers of scans tell",
            header,
            rows,
            words=(0, 1),
        )
    ]


def _scans(count: float, sizes: Sequence[int]) -> str:
    """How many an arm needs that was trained with these."""
    if count > max(sizes):
        return f"more than {max(sizes)}"
    return f"at most {min(sizes)}" if count <= min(sizes) else number(count, 1)


def _courses(findings: Findings) -> list[Html]:
    rows = [
        (
            each.arm,
            NOTHING if math.isnan(each.gain) else "yes" if each.settled else "no",
            str(each.size),
            number(each.dice[-1]),
            signed(each.gain),
            str(each.steps[-1]),
        )
        for each in findings.courses
        if each.steps
    ]
    header = ("Arm", "Settled", "Scans", "Validation Dice", "Gain in the last quarter", "Steps")
    shown = table(
        f"Where training ended, mean of seeds; settled: validation Dice gained less than "
        f"{SETTLED:g} in the last quarter of the steps, interpolated between validations; "
        f"{NOTHING}: it was validated too rarely to tell. Arms whose seeds were last validated at "
        "different steps are not here",
        header,
        rows,
        words=(0, 1),
    )
    return [subheading("Plateau"), shown] if rows else []


def _reaches(findings: Findings) -> list[Html]:
    rows = [
        (
            each.arm,
            each.other,
            str(each.size),
            number(each.target),
            "never" if math.isnan(each.steps) else number(each.steps, 0),
            str(each.of),
        )
        for each in findings.reaches
        if each.of and not math.isnan(each.target)
    ]
    if not rows:
        return []
    header = ("Arm", "Other arm", "Scans", "The other's final Dice", "Reached at step", "Of")
    caption = "Steps until an arm has another's final validation Dice"
    return [subheading("Steps to reach"), table(caption, header, rows, words=(0, 1))]


def _forgetting(found: Sequence["Forgetting"]) -> list[Html]:
    if not found:
        return []
    rows = (
        (
            each.arm,
            each.name,
            str(each.size),
            number(each.before),
            number(each.after),
            signed(each.difference),
            interval(each.low, each.high),
            str(each.subjects),
            str(each.seeds),
        )
        for each in found
    )
    header = (
        *("Arm", "Class", "Scans", "Before", "After", "Difference", "95 % interval"),
        "Subjects",
        "Seeds",
    )
    return [
        paragraph(
            "How well the networks still do what their model was pretrained for: the model's own "
            "last layer on what became of the rest, before and after."
        ),
        table("Dice of the task before", header, rows, words=(0, 1)),
    ]


def _listed(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
