"""What the commands take: frozen dataclasses, saved with what they made. No JAX here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, Suppress, arg

from voxtune.engine.options import (
    Block,
    FamilyName,
    Labelling,
    MapName,
    Preprocessing,
    RecipeName,
    Relabelling,
    Segmenting,
    Source,
    Training,
)


@dataclass(frozen=True)
class Inspect(Source):
    """Show what a Keras file holds and what convert would do with it; nothing is written."""


@dataclass(frozen=True)
class Convert(Source, Preprocessing):
    """Convert a Keras file to a model directory, every tensor accounted for."""

    model_dir: Annotated[Positional[Path], arg(metavar="MODEL_DIR")]
    """Folder to make."""
    verify: bool = False
    """Run the original in Keras beside it and compare every layer (needs keras); exit
    status 1 above 1e-5."""
    golden: Annotated[Path | None, arg(metavar="FILE.npz")] = None
    """.npz with 'x', 'y' and layers' results to compare with; exit status 1 above 1e-4."""
    overwrite: bool = False
    """Replace a model directory that is there."""


@dataclass(frozen=True)
class Create(Preprocessing):
    """Make a model directory of a named architecture with fresh weights, to train from nothing."""

    model: Positional[FamilyName]
    """The architecture."""
    model_dir: Annotated[Positional[Path], arg(metavar="MODEL_DIR")]
    """Folder to make."""
    arguments: tuple[str, ...] = ()
    """Of the architecture, as NAME=VALUE: outputs=3 filters=24 for example."""
    seed: int = 0
    """Of the fresh weights."""
    overwrite: bool = False
    """Replace a model directory that is there."""


@dataclass(frozen=True)
class Export:
    """Write a network as a Keras 3 file, and load it again to prove that it computes the same."""

    model_dir: Annotated[Positional[Path], arg(metavar="MODEL_DIR")]
    """Model directory."""
    keras_file: Annotated[Positional[Path], arg(metavar="FILE.keras")]
    """File to write: .keras, or .h5 for older programs."""
    overwrite: bool = False
    """Replace the file if it is there."""


@dataclass(frozen=True)
class Prepare(Labelling):
    """Conform and scale labelled scans into a store, which fine-tuning reads a block at a time."""

    subjects: Annotated[Positional[Path], arg(metavar="SUBJECTS.csv")]
    """The subjects table. Without image columns it is of label maps alone, for --synthetic."""
    store: Annotated[Positional[Path], arg(metavar="STORE")]
    """Folder to make. One whose making was stopped is gone on with."""
    model: Annotated[Path | None, arg(metavar="MODEL_DIR")] = None
    """Model directory whose contract scans are prepared for; by default RAS, 1 mm, z-score."""
    orientation: str | None = None
    """Directions of the three axes, RAS or LIA for example."""
    spacing: tuple[float, float, float] | Literal["own"] | None = None
    """Voxel size, mm; 'own' leaves each scan its own."""
    grid: Annotated[Block | None, arg(metavar="INT INT INT")] = None
    """Shape that all scans are cut or padded to, voxels; by default as large as each is."""
    interpolation: Literal["linear", "cubic"] | None = None
    """Of images that have to be resampled."""
    intensity: (
        Literal["zscore", "zscore_nonzero", "minmax", "quantile", "percentile", "window", "none"]
        | None
    ) = None
    """Intensity scaling."""
    window: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH")] = None
    """Lowest and highest value of the scaling 'window', in the scans' units."""
    target: bool = False
    """What the table calls label is an image to be learned, not classes."""
    format: Literal["npy", "zarr"] = "npy"
    """npy is fastest on a disk; zarr is for object stores (gs://, s3://, http://)."""
    workers: Annotated[int | None, arg(metavar="INT")] = None
    """Processes; by default as many as there are cores."""
    shard: Annotated[str, arg(metavar="I/N")] = "1/1"
    """Prepare every Nth subject from the Ith on alone: so N jobs share the work."""
    overwrite: bool = False
    """Replace a store that is there."""


@dataclass(frozen=True)
class Summary:
    """Show what a store holds: shapes, spacings, classes, and a block shape that suits it."""

    store: Annotated[Positional[str], arg(metavar="STORE")]
    """What 'voxtune prepare' made: a folder, or the address of one in an object store."""
    output: Annotated[Path | None, arg(aliases=("-o",), metavar="FILE.png")] = None
    """PNG file to write."""
    overwrite: bool = False
    """Replace the PNG file if it is there."""


@dataclass(frozen=True)
class Finetune(Training):
    """Fine-tune a converted network on labelled scans."""

    model_dir: Annotated[Positional[Path], arg(metavar="MODEL_DIR")]
    """Model directory to start from."""
    subjects: Annotated[Positional[str], arg(metavar="DATA")]
    """A store that 'voxtune prepare' made (a folder, or an address such as gs://bucket/store), or a
    CSV with columns subject, image, label and, if wanted, split (train, validation, test), whose
    scans are then prepared in memory. Columns image_t1, image_flair, ... in the place of image are
    channels, in that order."""
    run_dir: Annotated[Positional[Path], arg(metavar="RUN_DIR")]
    """Folder to make; its subfolder 'model' is the new model directory."""
    recipe: RecipeName = "voxtune"
    """Whose defaults the other options have: voxtune's, or those of Nobrainer's guide to transfer
    learning. See --recipe NAME --help."""
    dry_run: bool = False
    """Show what would happen to each parameter, and what a step would cost; nothing else is
    written than the picture of --examples."""
    examples: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """Of a dry run: PNG file to write, of blocks as the network would see them."""
    overwrite: bool = False
    """Replace a run that is there."""


@dataclass(frozen=True)
class Resume(Training):
    """Go on with a run that was stopped, from its newest checkpoint, to the same bits. Options but
    --distributed have the values of the run; where it runs and what is logged may be others."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN_DIR")]
    """Folder of the run."""
    allow_change: bool = False
    """Go on although what is trained, or how, is not the same any more."""


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """What a study compares, and on what."""

    model: Annotated[Path, arg(metavar="MODEL_DIR")]
    """Pretrained model directory."""
    data: Annotated[str, arg(metavar="DATA")]
    """Subjects table or store, with the splits train, validation and test."""
    out: Annotated[Path, arg(metavar="STUDY_DIR")]
    """Folder for runs, predictions, scores, figures and report.html."""
    design: Annotated[Path | None, arg(metavar="FILE.toml")] = None
    """The design of the study: under [study] options of this command, under [arms.NAME] those of
    'voxtune finetune' that one arm has otherwise. See the README."""
    sizes: Annotated[str, arg(metavar="N,N,...")] = "4,8,16,32"
    """Numbers of scans to train on. Those of a size are among those of the next."""
    seeds: int = 5
    """Seeds, from --seed on: of new weights, augmentation, the order of blocks, and of which scans
    are trained on."""
    tune: Annotated[str | None, arg(metavar="FACTOR,FACTOR,...")] = None
    """Factors of an arm's learning rates, 0.3,1,3 for example: for each arm and size, the one with
    the best validation Dice in the first seed is taken."""
    split: Literal["validation", "test"] = "test"
    """Split that results are measured on. It has no part in training, nor in --tune."""
    source: Annotated[Path | None, arg(metavar="SUBJECTS.csv")] = None
    """Subjects table of the task that the model was pretrained for, with labels of its classes: how
    well it is still done with the old last layer on the new network."""
    shard: Annotated[str, arg(metavar="I/N")] = "1/1"
    """Do the runs of every Nth size and seed from the Ith on alone: so N jobs share the work, and
    the last of them to end compares. Without it a job does all that is left, but what another is
    at."""


@dataclass(frozen=True, kw_only=True)
class Study(Training, Comparing):
    """Did transfer help? Train one network from pretrained and from random weights, over numbers of
    scans and seeds, and compare them. What an earlier call did is not done again."""

    seed: int = 0
    """The first of --seeds."""
    # The study settles these for each run.
    train_subjects: Suppress[int | None] = None
    subject_seed: Suppress[int | None] = None
    hold_out: Suppress[float] = Training.hold_out
    fold: Suppress[str | None] = None
    distributed: Suppress[str | None] = None
    profile: Suppress[str | None] = None


@dataclass(frozen=True)
class Report:
    """Draw one self-contained HTML page of a run: curves, rules, configuration, versions."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN_DIR")]
    """Folder of a run, finished or not."""
    output: Annotated[Path | None, arg(aliases=("-o",), metavar="FILE.html")] = None
    """File to write, by default RUN_DIR/report.html, which is replaced if it is such a page."""
    overwrite: bool = False
    """Replace the page of --output if it is there."""


@dataclass(frozen=True)
class Doctor:
    """Show devices, versions, memory and measured speed, and what is misconfigured."""


@dataclass(frozen=True)
class Predict(Segmenting):
    """Segment scans, or make an image of each; results lie on the scans' own grids. What an
    earlier call of the same kind left is not done again."""

    model_dir: Annotated[Positional[Path], arg(metavar="MODEL_DIR")]
    """Model directory."""
    scans: Annotated[Positional[tuple[Path, ...]], arg(metavar="SCAN...")]
    """Scans (.nii, .nii.gz, .mgz), folders of scans, or one subjects table, which several channels
    want."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="OUT_DIR")]
    """Folder for the label volumes, or images; subfolders are those of the scans."""
    split: Literal["train", "validation", "test"] | None = None
    """Of a subjects table, this split alone."""
    threshold: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Probability above which a voxel belongs to the class of a model of one class beside
    background; by default the model's. See 'voxtune threshold'."""
    largest: Literal["none", "class", "all"] = "none"
    """Keep the largest connected part of each class, or of all classes together."""
    fill_holes: bool = False
    """Give background that a class encloses to that class."""
    grid: Literal["scan", "conformed"] = "scan"
    """Write results on the scan's own grid, or on the one that the model works on."""
    maps: Annotated[tuple[MapName, ...], arg(metavar="NAME...")] = ()
    """Beside the labels, write maps: probabilities (a volume for each class, all in memory at
    once), entropy, variance (over --samples, --flip and --ensemble)."""
    picture: bool = False
    """Beside each result, a PNG of three planes with its outlines."""
    html: bool = False
    """Write index.html, a page to look through all scans and their labels, which works offline."""
    overwrite: bool = False
    """Do what is there again."""


@dataclass(frozen=True)
class Threshold(Segmenting, Relabelling):
    """Find the threshold of a model of one class beside background: the best mean Dice on labelled
    scans that it was not trained on."""

    model_dir: Annotated[Positional[Path], arg(metavar="MODEL_DIR")]
    """Model directory."""
    subjects: Annotated[Positional[Path], arg(metavar="SUBJECTS.csv")]
    """The subjects table with the true labels."""
    split: Literal["train", "validation", "test"] | None = "validation"
    """Of the subjects table, this split alone, where it has splits."""
    save: bool = False
    """Write it into the model's contract, which predict then uses."""


@dataclass(frozen=True)
class Evaluate(Relabelling):
    """Compare predicted with true labels: overlap, volumes, surfaces and lesions by class and
    subject."""

    predictions_dir: Annotated[Positional[Path], arg(metavar="PREDICTIONS_DIR")]
    """Folder that 'voxtune predict' wrote."""
    labels: Annotated[Positional[Path], arg(metavar="SUBJECTS.csv|LABELS_DIR")]
    """The subjects table with the true labels, or a folder of label files called as the
    predictions are."""
    output: Annotated[Path | None, arg(aliases=("-o",), metavar="FILE.csv|.json")] = None
    """File to write: .csv has a row for each subject and class, .json the summary too."""
    plot: Annotated[Path | None, arg(metavar="FILE.png|.svg")] = None
    """Picture to write: violins of Dice and of HD95 by class, with a dot for each subject."""
    split: Literal["train", "validation", "test"] | None = None
    """Of the subjects table, this split alone."""
    tolerance: float = 1.0
    """Of the surface Dice, mm."""
    ignore_label: Annotated[int | None, arg(metavar="INT")] = None
    """True label value of voxels that count for nothing."""
    label_map: Annotated[Path | None, arg(metavar="FILE")] = field(default=None, kw_only=True)
    """CSV with columns original,new and, if wanted, name; or FreeSurfer's colour table, which gives
    names alone. True label values become what it says, those of predictions stay."""
    keep: Annotated[tuple[int, ...], arg(metavar="INT...")] = field(default=(), kw_only=True)
    """Label values to keep, of true labels after the map and of predictions; all others become
    background."""
    binarise: bool = field(default=False, kw_only=True)
    """After all that, every label value but 0 becomes 1, in true labels and in predictions."""
    overwrite: bool = False
    """Replace files that are there."""


@dataclass(frozen=True)
class Picture:
    """Draw scans with the contours of true and predicted labels."""

    predictions_dir: Annotated[Positional[Path], arg(metavar="PREDICTIONS_DIR")]
    """Folder that 'voxtune predict' wrote."""
    subjects: Annotated[Positional[Path], arg(metavar="SUBJECTS.csv")]
    """The subjects table."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE.png")]
    """PNG file to write."""
    split: Literal["train", "validation", "test"] | None = None
    """Of the subjects table, this split alone."""
    rows: int = 4
    """Scans to draw, the first of them."""
    overwrite: bool = False
    """Replace the PNG file if it is there."""


SuiteName = Literal["train", "predict", "data", "scaling", "compile", "convert"]


@dataclass(frozen=True)
class Benchmark:
    """Measure throughput, beside other frameworks if wanted, and keep it over time."""

    suites: Annotated[Positional[tuple[SuiteName, ...]], arg(metavar="SUITE...")] = (
        "train",
        "predict",
        "data",
        "scaling",
        "compile",
        "convert",
    )
    """What to measure: a training step, prediction of whole scans, reading of blocks, training on
    several devices, the time to a first step, conversion of Keras files."""
    quick: bool = False
    """Small cases and few turns: all suites in less than five minutes on two CPU cores."""
    peers: bool = False
    """PyTorch, MONAI and Keras take turns with voxtune. The first time, their environments are made
    in the user's cache folder by pip, which takes minutes and gigabytes."""
    networks: tuple[
        Literal[
            "unet",
            "meshnet",
            "bayesian_meshnet",
            "graph",
            "highresnet",
            "resenc_unet",
            "synthseg_unet",
            "unetr",
            "vnet",
        ],
        ...,
    ] = ()
    """With random weights; by default Nobrainer's U-Net and brainchop's MeshNet, and of train all,
    unless it is quick or varied by one of the next five. Those two alone have predict, scaling and
    compile."""
    blocks: Annotated[tuple[int, ...], arg(metavar="INT...")] = ()
    """Edges of blocks, voxels; by default what suits the device. The suite train measures every
    combination of what is given here and in the next four; scaling and data take the first. Of
    data, blocks that are only read have this edge, not those that it trains on or augments."""
    batches: Annotated[tuple[int, ...], arg(metavar="INT...")] = ()
    """Blocks that each device takes a step."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ()
    """What steps compute in."""
    remats: tuple[Literal["no", "yes"], ...] = ()
    """Of train: whether levels are computed again instead of kept, which saves memory."""
    maps: tuple[Literal["jit", "pmap"], ...] = ()
    """How steps are mapped over devices; of train, jit has one device and pmap all."""
    scan: Annotated[int | None, arg(metavar="INT")] = None
    """Of predict: edge of the scan, voxels; by default what suits the device."""
    store: Annotated[Path | None, arg(metavar="STORE")] = None
    """Of data: the store that blocks are read from; by default one of phantoms, made for it."""
    turns: int = 7
    """Of each program in each case, after those that compile and warm up; fewer with --quick."""
    history: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder that the results are added to, a JSON line each in a file for each kind of machine."""
    check: bool = False
    """Compare with the history: exit status 1 where a ratio to a peer, or but on a CPU the share of
    the measured peak, has fallen by more than 10 % beyond the noise."""
    page: Annotated[Path | None, arg(metavar="FILE.html")] = None
    """Page to draw of the history, with a PNG file and a table for a README (.md) beside it; what
    is there is replaced."""


@dataclass(frozen=True)
class Phantom:
    """Make head-like volumes with labels, to try voxtune without a scan."""

    out_dir: Annotated[Positional[Path], arg(metavar="OUT_DIR")]
    """Folder to make; subjects.csv in it is the subjects table."""
    kind: Literal["healthy", "meningioma"] = "meningioma"
    """Healthy T1 (label: brain), or contrast-enhanced T1 with a meningioma-like lesion (lesion)."""
    train: int = 8
    """Volumes of the split train."""
    validation: int = 2
    """Volumes of the split validation."""
    test: int = 4
    """Volumes of the split test."""
    size: int = 64
    """Edge of the volumes, voxels."""
    spacing: float = 3.0
    """Edge of a voxel, mm."""
    seed: int = 0
    """Of the phantoms."""
    overwrite: bool = False
    """Replace phantoms that are there."""


@dataclass(frozen=True)
class Demo:
    """Run the whole journey on phantoms: convert, fine-tune, predict, evaluate, draw, and a small
    study of whether the pretrained start helped."""

    out_dir: Annotated[Positional[Path], arg(metavar="OUT_DIR")]
    """Folder to make."""
    overwrite: bool = False
    """Replace a demonstration that is there."""


Command = (
    Inspect
    | Convert
    | Create
    | Export
    | Prepare
    | Summary
    | Finetune
    | Resume
    | Study
    | Report
    | Doctor
    | Predict
    | Threshold
    | Evaluate
    | Picture
    | Benchmark
    | Phantom
    | Demo
)
