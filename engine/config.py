"""What the commands take: frozen dataclasses, saved with what they made. No JAX here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

Block = tuple[int, int, int]
FamilyName = Literal[
    "unet",
    "meshnet",
    "highresnet",
    "vnet",
    "unetr",
    "bayesian_meshnet",
    "synthseg_unet",
    "resenc_unet",
]


@dataclass(frozen=True)
class Source:
    """A Keras file, and what it does not say itself."""

    keras_file: Annotated[Positional[Path], arg(metavar="KERAS_FILE")]
    """Any Keras file: .h5, .hdf5, .keras, .weights.h5, the folder of a TF.js layers model, a
    SavedModel or a TensorFlow checkpoint."""
    model: FamilyName | None = field(default=None, kw_only=True)
    """Which network a file of weights alone belongs to."""
    arguments: tuple[str, ...] = field(default=(), kw_only=True)
    """Of that network, as NAME=VALUE: dilations=1,2,4,8,4,2,1 activation=elu for example."""
    lambdas: Annotated[tuple[str, ...], arg(name="lambda", metavar="LAYER=ACTIVATION")] = field(
        default=(), kw_only=True
    )
    """What stands for Lambda layers, whose code is never run: an activation, or identity; several
    after one --lambda."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of a scan, as far as it differs from what is usual for it."""

    orientation: str | None = field(default=None, kw_only=True)
    """Directions of the three axes that the network is trained with, RAS or LIA for example."""
    spacing: tuple[float, float, float] | Literal["own"] | None = field(default=None, kw_only=True)
    """Voxel size that the network is trained with, mm; 'own' leaves each scan its own."""
    intensity: Literal["zscore", "minmax", "quantile", "percentile", "none"] | None = field(
        default=None, kw_only=True
    )
    """Intensity scaling that the network is trained with."""
    block: Block | None = field(default=None, kw_only=True)
    """Shape of the blocks that the network is given, voxels."""
    threshold: float | None = field(default=None, kw_only=True)
    """Probability above which a voxel belongs to the class of a one-class network."""
    classes: tuple[str, ...] | None = field(default=None, kw_only=True)
    """Names of the classes, background first."""


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
class Finetune:
    """Fine-tune a converted network on labelled scans."""

    model_dir: Annotated[Positional[Path], arg(metavar="MODEL_DIR")]
    """Model directory to start from."""
    subjects: Annotated[Positional[Path], arg(metavar="SUBJECTS.csv")]
    """CSV with columns subject, image, label and, if wanted, split (train, validation, test)."""
    run_dir: Annotated[Positional[Path], arg(metavar="RUN_DIR")]
    """Folder to make; its subfolder 'model' is the new model directory."""
    steps: int = 300
    """Training steps."""
    batch: int | None = None
    """Blocks a step, over all devices; by default 2, or one for each device if that is more."""
    block: Block | None = None
    """Shape of a block in the network's orientation, voxels; by default the model's."""
    trunk_lr: float = 1e-3
    """Peak learning rate of all but the last layer."""
    head_lr: float = 3e-3
    """Peak learning rate of the last layer."""
    weight_decay: float = 1e-2
    """Decoupled decay of kernels; biases and norms have none."""
    warmup: int | None = None
    """Steps over which the learning rate rises, before a cosine brings it down to zero; by default
    20, or half of the steps if that is less."""
    labels: tuple[str, ...] | None = None
    """Classes as VALUE=NAME, such as 0=background 1=lesion; by default the values found."""
    head: Literal["new", "keep"] = "new"
    """Start with a new last layer, or keep the model's (the classes must be the model's)."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start the trunk from the model's weights, or from random ones for comparison."""
    flip: Literal["none", "left-right", "all"] = "left-right"
    """Axes along which blocks are flipped at random; 'none' where classes have a side."""
    foreground: float = 0.5
    """Share of blocks centred on a labelled voxel; the rest lie anywhere."""
    train_subjects: int | None = None
    """Train on the first so many subjects of the split alone."""
    hold_out: float = 0.2
    """Share of subjects kept for validation where the table has no split."""
    validate_every: int = 100
    """Steps between two validations, each with a checkpoint."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; bfloat16 is faster on GPUs and TPUs and takes half the memory.
    Parameters, statistics and the loss are float32 all the same."""
    remat: bool = False
    """Compute each level of the network again in the backward pass instead of keeping it: less
    memory for a third more work."""
    devices: int | None = None
    """How many devices to use; by default all."""
    seed: int = 0
    """Of the new head, the order of blocks and the augmentation."""
    overwrite: bool = False
    """Replace a run that is there."""

    @property
    def warmup_steps(self) -> int:
        """`warmup`, or its default."""
        return min(20, self.steps // 2) if self.warmup is None else self.warmup


@dataclass(frozen=True)
class Predict:
    """Segment scans; each result lies on its scan's own grid."""

    model_dir: Annotated[Positional[Path], arg(metavar="MODEL_DIR")]
    """Model directory."""
    scans: Annotated[Positional[tuple[Path, ...]], arg(metavar="SCAN...")]
    """Scans (.nii, .nii.gz, .mgz), or one subjects table."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="OUT_DIR")]
    """Folder for the label volumes."""
    split: Literal["train", "validation", "test"] | None = None
    """Of a subjects table, this split alone."""
    overlap: float = 0.25
    """Least overlap of neighbouring blocks, as a share of a block's edge."""
    overwrite: bool = False
    """Replace results that are there."""


@dataclass(frozen=True)
class Evaluate:
    """Compare predicted with true labels: Dice and volume by class and subject."""

    predictions_dir: Annotated[Positional[Path], arg(metavar="PREDICTIONS_DIR")]
    """Folder that 'voxtune predict' wrote."""
    subjects: Annotated[Positional[Path], arg(metavar="SUBJECTS.csv")]
    """The subjects table with the true labels."""
    output: Annotated[Path | None, arg(aliases=("-o",), metavar="FILE.csv")] = None
    """CSV file to write."""
    split: Literal["train", "validation", "test"] | None = None
    """Of the subjects table, this split alone."""
    overwrite: bool = False
    """Replace the CSV file if it is there."""


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
    """Run the whole journey on phantoms: convert, fine-tune, predict, evaluate, draw."""

    out_dir: Annotated[Positional[Path], arg(metavar="OUT_DIR")]
    """Folder to make."""
    overwrite: bool = False
    """Replace a demonstration that is there."""


Command = (
    Inspect | Convert | Create | Export | Finetune | Predict | Evaluate | Picture | Phantom | Demo
)
