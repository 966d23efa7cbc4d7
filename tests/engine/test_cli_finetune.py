"""What `finetune` cannot train on ends in one line, status 2 and nothing written."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            lambda folder, scans: scans.save(folder / "a_label.nii", scans.label[:7]),
            ["a_label.nii has shape (7, 8, 8)", "a.nii has (8, 8, 8)"],
        ),
        (
            lambda folder, scans: scans.save(folder / "a_label.nii", scans.label, scans.oblique),
            ["[1 0 0 0; 0 1 0 0; 0 0 1 2.5]", "[1 0 0 0; 0 1 0 0; 0 0 1 0]"],
        ),
        (
            lambda folder, scans: scans.save(folder / "b_label.nii", 0.5 * scans.label),
            ["b_label.nii", "not whole numbers (0.5)"],
        ),
        (
            lambda folder, scans: scans.save(folder / "b_label.nii", 3 * scans.label),
            ["b_label.nii", "no class (3)", "0, 1"],
        ),
        (
            lambda folder, scans: scans.save(
                folder / "a.nii", np.where(scans.label, np.nan, scans.image)
            ),
            ["a.nii", "NaN"],
        ),
        (
            lambda folder, scans: scans.save(folder / "a.nii", np.ones(scans.image.shape, "f4")),
            ["a.nii", "same value (1)"],
        ),
        (lambda folder, _: os.truncate(folder / "a.nii", 1200), ["a.nii", "cut short"]),
        (lambda folder, _: (folder / "b.nii").write_bytes(b"?"), ["b.nii", "is no NIfTI"]),
        (lambda folder, _: (folder / "b.nii").unlink(), ["b.nii", "is not a file"]),
        (
            lambda folder, scans: scans.save(
                folder / "a_label.nii", np.arange(512, dtype=np.int16).reshape(scans.image.shape)
            ),
            ["512 classes", "subjects.csv", "--labels"],
        ),
    ],
    ids=[
        "shape",
        "affine",
        "fractions",
        "unknown label",
        "NaN",
        "constant",
        "cut",
        "junk",
        "missing",
        "too many classes",
    ],
)
def test_scans_and_labels_that_cannot_be_trained_on(
    refused: Callable[..., str],
    model_dir: Path,
    table: Path,
    write: Callable[[Path, Any], object],
    words: Sequence[str],
    scans: Any,
    finetune: Callable[..., list[str]],
):
    write(table.parent, scans)
    sentence = refused(*finetune(model_dir, table))
    assert all(word in sentence for word in words), sentence


def test_label_values_that_were_not_named_are_listed(
    refused: Callable[..., str],
    model_dir: Path,
    table: Path,
    scans: Any,
    finetune: Callable[..., list[str]],
):
    values = scans.label.copy()
    values.flat[:3] = (1, 4, 9)
    scans.save(table.parent / "a_label.nii", values)
    sentence = refused(*finetune(model_dir, table, "--labels", "1=lesion", "4=oedema"))
    assert "a_label.nii" in sentence
    assert "(9)" in sentence
    assert "0, 1, 4" in sentence


HEADER = "subject,image,label,split\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        (HEADER, "no subjects"),
        ("subject,image,split\na,a.nii,train\n", "label"),
        (f"{HEADER}a,a.nii,a_label.nii,train\na,b.nii,b_label.nii,train\n", "subject a twice"),
        (f"{HEADER}a,a.nii,a_label.nii,train\na,a.nii,a_label.nii,test\n", "a in two splits"),
        (f"{HEADER}a,a.nii,a_label.nii,train\nb,a.nii,a_label.nii,test\n", "in two splits"),
        (f"{HEADER}a,a.nii,a_label.nii,practice\n", "split 'practice'"),
        (f"{HEADER}a,a.nii,a_label.nii,test\n", "no subject to train on"),
        (f"{HEADER}../a,a.nii,a_label.nii,train\n", "cannot be a file name"),
    ],
)
def test_a_table_that_cannot_be_used(
    refused: Callable[..., str],
    model_dir: Path,
    table: Path,
    content: str,
    words: str,
    finetune: Callable[..., list[str]],
):
    table.write_text(content)
    sentence = refused(*finetune(model_dir, table))
    assert str(table) in sentence
    assert words in sentence


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0"],
        ["--steps", "-5"],
        ["--batch", "0"],
        ["--batch", "3", "--mesh", "data=2"],
        ["--trunk-lr", "-1"],
        ["--head-lr", "-0.001"],
        ["--head-lr", "nan"],
        ["--trunk-lr", "inf"],
        ["--weight-decay", "-0.1"],
        ["--warmup", "-1"],
        ["--warmup", "1"],
        ["--warmup", "400", "--steps", "300"],
        ["--hold-out", "2"],
        ["--foreground", "-0.5"],
        ["--foreground", "nan"],
        ["--validate-every", "0"],
        ["--log-every", "0"],
        ["--train-subjects", "0"],
        ["--mesh", "data=0"],
        ["--mesh", "data=999"],
        ["--seed", "-1"],
        ["--seed", "99999999999999999999"],
        ["--block", "0", "8", "8"],
        ["--block", "8", "-8", "8"],
        ["--labels", "lesion"],
        ["--labels", "1="],
        ["--labels", "one=lesion"],
        ["--labels", "1=lesion", "1=oedema"],
        ["--labels", "1=lesion", "2=lesion"],
        ["--head", "keep", "--labels", "1=lesion", "2=oedema"],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense(
    refused: Callable[..., str],
    model_dir: Path,
    table: Path,
    options: list[str],
    finetune: Callable[..., list[str]],
):
    sentence = refused(*finetune(model_dir, table, *options))
    assert options[0] in sentence or options[0].strip("-") in sentence


def test_a_block_is_a_multiple_of_what_the_network_needs(
    refused: Callable[..., str], models: Path, table: Path, finetune: Callable[..., list[str]]
):
    sentence = refused(*finetune(models / "unet", table, "--block", "8", "7", "8"))
    assert "--block 8 7 8" in sentence
    assert "multiple of 2" in sentence


def test_a_batch_that_the_devices_cannot_share_comes_with_advice(
    refused: Callable[..., str], model_dir: Path, table: Path, finetune: Callable[..., list[str]]
):
    sentence = refused(*finetune(model_dir, table, "--batch", "3", "--mesh", "data=2"))
    assert "--batch 4" in sentence


def test_a_run_that_is_there_is_not_touched(
    refused: Callable[..., str], model_dir: Path, table: Path, finetune: Callable[..., list[str]]
):
    (table.parent / "run").mkdir()
    (table.parent / "run" / "config.json").write_text("{}")
    assert "was not written by voxtune" in refused(*finetune(model_dir, table))
    os.truncate(table.parent / "b.nii", 1200)  # and a refused run does not take the old one with it
    refused(*finetune(model_dir, table, "--overwrite"))


def test_a_training_split_without_a_labelled_voxel(
    refused: Callable[..., str],
    model_dir: Path,
    table: Path,
    scans: Any,
    finetune: Callable[..., list[str]],
):
    for path in table.parent.glob("*_label.nii"):
        scans.save(path, np.zeros_like(scans.label))
    assert "no voxel of any class but background" in refused(*finetune(model_dir, table))
    sentence = refused(*finetune(model_dir, table, "--labels", "1=lesion"))
    assert "no voxel of 1 lesion" in sentence
