"""The design of a study: what a file and a command line say, and the run of each network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voxtune.engine import cli
from voxtune.engine.arms import Design, design_options
from voxtune.engine.config import Study
from voxtune.models.errors import InputError

PLACES: dict[str, Any] = {"model": Path("m"), "data": "d.csv", "out": Path("o")}


@pytest.fixture
def design(tmp_path: Path) -> Callable[..., Path]:
    """Writes a design file."""

    def write(text: str) -> Path:
        path = tmp_path / "design.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """What a command line of a study, without its places, becomes."""
    given: list[Study] = []
    monkeypatch.setattr(cli, "run", lambda command, _: given.append(command) or 0)

    def parse(*options: str) -> Study:
        places = ["--model", "m", "--data", "d.csv", "--out", "o"]
        assert cli.main(["study", *places, *options]) == 0
        return given.pop()

    return parse


def arms_of(path: Path, **options: Any) -> dict[str, Any]:
    study = Study(**{**PLACES, **design_options(path), "design": path, **options})
    return {arm.name: arm for arm in Design.of(study).arms}


def test_without_a_design_pretrained_is_compared_with_random() -> None:
    found = Design.of(Study(**PLACES, sizes="16, 4,4", seeds=2, seed=7, tune="3,0.3"))
    assert [(arm.name, dict(arm.options)) for arm in found.arms] == [
        ("pretrained", {}),
        ("random", {"init": "random"}),
    ]
    assert (found.sizes, list(found.seeds), found.factors) == ((4, 16), [7, 8], (0.3, 3.0))


def test_each_run_has_its_size_seed_and_learning_rates() -> None:
    study = Study(**PLACES, sizes="4", seeds=2, seed=7, trunk_lr=2.0, steps=9)
    found = Design.of(study).trials(study, {("random", 4): 0.5})
    assert [each.name for each in found] == [
        *("pretrained_n4_seed7", "random_n4_seed7_x0.5"),
        *("pretrained_n4_seed8", "random_n4_seed8_x0.5"),
    ]
    last = found[-1].config
    assert (last.train_subjects, last.seed, last.subject_seed, last.steps) == (4, 8, 8, 9)
    assert (last.trunk_lr, last.head_lr) == (1.0, 0.5 * study.head_lr)
    assert (last.model_dir, last.subjects, last.init) == (Path("m"), "d.csv", "random")


def test_rates_are_round() -> None:
    study = Study(**PLACES, sizes="4", seeds=1, trunk_lr=3e-3)
    (first, _) = Design.of(study).trials(study, {("pretrained", 4): 3.0})
    assert (first.config.trunk_lr, first.config.head_lr) == (0.009, 0.009)


def test_learning_rates_are_tried_with_the_first_seed() -> None:
    study = Study(**PLACES, sizes="4,8", seeds=3, seed=2, tune="1,3")
    names = [each.name for each in Design.of(study).tuning(study)]
    assert len(names) == len(set(names)) == 8
    assert {"pretrained_n4_seed2", "random_n8_seed2_x3"} < set(names)
    once = Study(**PLACES, sizes="4,8", seeds=3)
    assert Design.of(once).tuning(once) == []


def test_the_command_line_goes_before_the_design(
    design: Callable[..., Path], parsed: Callable[..., Study]
) -> None:
    path = design('[study]\nsizes = [2, 6]\ntune = [0.3, 1]\nsteps = 7\nlabels = ["1=a"]\n')
    for option in (["--design", str(path)], [f"--design={path}"]):
        found = parsed(*option, "--steps", "9")
        assert (found.sizes, found.tune, found.steps, found.labels) == ("2,6", "0.3,1", 9, ("1=a",))
    assert parsed("--design", str(path), "--sizes", "5", "--labels", "1=b").sizes == "5"
    assert parsed().steps == Study(**PLACES).steps


def test_paths_start_from_the_design(design: Callable[..., Path]) -> None:
    path = design(
        '[study]\nlabel_map = "map.csv"\n[arms.a]\nmodel = "../other"\nrules = "r.txt"\n'
        '[arms.b]\ninit_from = "x/y"\n'
    )
    folder = path.parent
    assert design_options(path)["label_map"] == folder / "map.csv"
    found = arms_of(path)
    assert found["a"].options == {"model_dir": folder / "../other", "rules": folder / "r.txt"}
    assert found["b"].options["init_from"] == folder / "x/y"
    study = Study(**PLACES, design=path, sizes="4", seeds=1)
    runs = {each.arm: each.config for each in Design.of(study).trials(study, {})}
    assert (runs["a"].model_dir, runs["b"].model_dir) == (folder / "../other", Path("m"))


def test_a_recipe_is_the_default_of_its_arm(design: Callable[..., Path]) -> None:
    path = design('[arms.a]\n[arms.b]\nrecipe = "nobrainer"\nloss = "dice"\nsizes = [4]\n')
    found = arms_of(path, sizes="4,8")["b"]
    chosen = {name: found.options[name] for name in ("recipe", "optimizer", "loss")}
    assert chosen == {"recipe": "nobrainer", "optimizer": "adam", "loss": "dice"}
    assert found.sizes == (4,)


TWO = "[arms.a]\n[arms.b]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[arms.a]\n", "at least two"),
        ("arms = 3", "at least two"),
        ("[arm.a]\n[arm.b]", "'arm'"),
        ("[arms]\na = 1\nb = 2", "[arms.a]"),
        ('[arms."a/b"]\n[arms.b]', "file name"),
        ("[arms.A]\n[arms.a]", "capital letters"),
        ("[arms.a]\n[arms.b]\nsteps = 3", "all arms have in common"),
        ("[arms.a]\n[arms.b]\nvalidate_every = 3", "all arms have in common"),
        ("[arms.a]\n[arms.b]\noverwrite = true", "not for arms"),
        ('[arms.a]\n[arms.b]\nrun_dir = "x"', "not for arms"),
        ('[arms.a]\n[arms.b]\nfreeze = "x"', "no option"),
        ('[arms.a]\n[arms.b]\ntrunk_lr = "x"', "trunk_lr = 'x'"),
        ('[arms.a]\n[arms.b]\nrecipe = "x"', "recipe = 'x'"),
        ("[arms.a]\n[arms.b]\nsizes = 5", "5 scans"),
        ('[arms.a]\n[arms.b]\nsizes = ["x"]', "sizes of [arms.b]"),
        ("[arms.a]\n[arms.b]\npatience = 3", "all arms have in common"),
        ("[arms.a]\n[arms.b]\n", "[arms.a] and [arms.b] are the same"),
        ('[arms.a]\n[arms.b]\ninit = "pretrained"\n', "are the same"),
        ("[arms.a]\n[arms.b]\ntrunk_lr = 1" + 400 * "0", "trunk_lr = 1000"),
        ("[arms.a]\n[arms.b]\nsizes = 1" + 400 * "0", "sizes of [arms.b]"),
        ('[arms.a]\n[arms.b]\nmodel = "a\\u0000b"', "model_dir = 'a\\x00b'"),
        ("[arms.a]\n[arms.b]\nlabels" + 2000 * ".a" + " = 1", "labels"),
        ("a = 1" + 5000 * "0", "no TOML"),
        ("[arms.a", "no TOML"),
        ("a = " + 9999 * "[", "no TOML"),
    ],
)
def test_a_design_that_makes_no_sense(design: Callable[..., Path], text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        arms_of(design(text))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("out = 'x'", "--out"),
        ("shard = '1/2'", "--shard"),
        ("sizes = true", "sizes = True"),
        ("sizes = ['a']", "sizes = ['a']"),
        ("steps = 1.5", "steps = 1.5"),
        ("recipe = 'nobrainer'", "'recipe'"),
    ],
)
def test_options_of_a_design_that_make_no_sense(
    design: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    text: str,
    words: str,
) -> None:
    path = design(f"[study]\n{text}\n{TWO}")
    assert cli.main(["study", "--design", str(path), "--model", "m"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": "4,x"}, "--sizes 4,x"),
        ({"sizes": "0"}, "--sizes 0"),
        ({"sizes": ""}, "--sizes"),
        ({"tune": "1,-1"}, "--tune 1,-1"),
        ({"tune": "1,inf"}, "--tune 1,inf"),
        ({"tune": "1,1.00000001"}, "all but the same"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": 10**9}, "--seeds 1000000000"),
        ({"sizes": "1" + 400 * "0"}, "--sizes 1000"),
        ({"train_subjects": 3}, "--train-subjects"),
        ({"fold": "1/2"}, "--fold"),
        ({"distributed": "auto"}, "--distributed"),
        ({"hold_out": 0.1}, "--hold-out"),
    ],
)
def test_options_of_a_study_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        Design.of(Study(**{**PLACES, **options}))
    assert words in str(error.value)


def test_a_design_far_too_large(design: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="larger"):
        arms_of(design("#" * 2**21))
