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


RecipeName = Literal["voxtune", "nobrainer"]
AugmentName = Literal["none", "light", "nobrainer", "nnunet", "strong"]
CacheName = Literal["disk", "host", "device"]
LossName = Literal[
    "dice_cross_entropy",
    "cross_entropy",
    "dice",
    "jaccard",
    "generalized_dice",
    "tversky",
    "focal_tversky",
    "focal",
    "elbo",
    "mean_squared_error",
    "mean_absolute_error",
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
    grid: Annotated[Block | None, arg(metavar="INT INT INT")] = field(default=None, kw_only=True)
    """Shape of the grid that scans are cut or padded to, voxels: 256 256 256 for FreeSurfer's; by
    default as large as each scan."""
    interpolation: Literal["linear", "cubic"] | None = field(default=None, kw_only=True)
    """Of images that have to be resampled."""
    intensity: (
        Literal["zscore", "zscore_nonzero", "minmax", "quantile", "percentile", "window", "none"]
        | None
    ) = field(default=None, kw_only=True)
    """Intensity scaling that the network is trained with: zscore_nonzero is for skull-stripped
    scans, window for CT."""
    window: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH")] = field(
        default=None, kw_only=True
    )
    """Lowest and highest value of the scaling 'window', in the scans' units."""
    block: Block | None = field(default=None, kw_only=True)
    """Shape of the blocks that the network is given, voxels."""
    threshold: float | None = field(default=None, kw_only=True)
    """Probability above which a voxel belongs to the class of a one-class network."""
    classes: tuple[str, ...] | None = field(default=None, kw_only=True)
    """Names of the classes, background first."""
    image: bool = field(default=False, kw_only=True)
    """The network gives an image by its one linear output, not classes."""


@dataclass(frozen=True)
class Labelling:
    """What is made of the values in label files, and of voxels that are no numbers."""

    label_map: Annotated[Path | None, arg(metavar="FILE")] = field(default=None, kw_only=True)
    """CSV with columns original,new and, if wanted, name; or FreeSurfer's colour table, which gives
    names alone. Label values become what it says."""
    unlisted: Literal["error", "background"] = field(default="error", kw_only=True)
    """What label values become that the map does not list."""
    keep: Annotated[tuple[int, ...], arg(metavar="INT...")] = field(default=(), kw_only=True)
    """Label values to keep, after the map; all others become background."""
    binarise: bool = field(default=False, kw_only=True)
    """After all that, every label value but 0 becomes 1."""
    label_interpolation: Literal["nearest", "linear"] = field(default="nearest", kw_only=True)
    """How labels are resampled: to the nearest, or each class linearly and the largest wins."""
    nonfinite: Annotated[float | None, arg(metavar="FLOAT")] = field(default=None, kw_only=True)
    """Value that voxels which are NaN or infinite get; without it such scans are refused."""


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


@dataclass(frozen=True, kw_only=True)
class Training(Labelling):
    """How a network is trained, and on which devices."""

    steps: int = 300
    """Training steps."""
    batch: Annotated[int | None, arg(metavar="INT")] = None
    """Blocks a step, over all devices; by default 2, or as many as --accumulate and the devices
    ask for."""
    accumulate: int = 1
    """Compute a step's gradient in so many parts, one after the other: less memory."""
    block: Annotated[Block | Literal["full"] | None, arg(metavar="INT INT INT|full")] = None
    """Shape of a block in the network's orientation, voxels; by default the model's. 'full' is
    whole volumes, each padded to the largest."""
    sampling: Literal["random", "grid"] = "random"
    """Blocks lie anywhere, as many on labelled voxels as --foreground says, or side by side as
    Nobrainer cuts them, each once before any comes again."""

    loss: LossName = "dice_cross_entropy"
    """What is minimised; see the README. The last two are for networks that give an image."""
    class_weights: Annotated[tuple[float, ...] | None, arg(metavar="FLOAT...")] = None
    """Weight of each class in cross-entropy and focal loss, background first."""
    label_smoothing: float = 0.0
    """Share of a label that cross-entropy spreads over all classes."""

    optimizer: Literal["adamw", "adam", "sgd", "lion"] = "adamw"
    """adam is Keras's, without decay; sgd has Nesterov momentum 0.99, nnU-Net's."""
    schedule: Literal["cosine", "polynomial", "constant"] = "cosine"
    """How learning rates go after the warm-up: to zero by a cosine or by nnU-Net's polynomial, or
    not at all."""
    warmup: Annotated[int | None, arg(metavar="INT")] = None
    """Steps over which learning rates rise from zero; by default 20, or half of the steps if that
    is less."""
    trunk_lr: float = 1e-3
    """Peak learning rate of all but the last layer."""
    head_lr: float = 3e-3
    """Peak learning rate of the last layer."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each level to the one before it, counted from the head."""
    clip: float = 1.0
    """Largest norm of a step's gradient; 0 for any."""

    weight_decay: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Decoupled decay of kernels; biases and norms have none. By default 0.01, and 0 with adam."""
    l2: float = 0.0
    """Of kernels, times their squares' sum in the loss: what Keras's regularizers.l2 does."""
    anchor: float = 0.0
    """Pull of pretrained kernels to their pretrained values, in the place of decay (L2-SP)."""
    freeze_until: Annotated[str | None, arg(metavar="LEVEL")] = None
    """Freeze all levels before this one; the last level, 'head' (in a graph its layer's name),
    trains the last layer alone. One that is not there is answered with the list."""
    unfreeze_every: Annotated[int | None, arg(metavar="INT")] = None
    """Thaw level by level from the head inwards, the next after so many steps."""
    rule: Annotated[tuple[str, ...], arg(metavar="RULE...")] = ()
    """Rules for parameters by path, before all of the above: "encoder*/* freeze" "*/bias
    learning_rate=2" for example; see the README."""
    rules: Annotated[Path | None, arg(metavar="FILE")] = None
    """Text file with a rule a line, after those of --rule."""

    ema: float = 0.0
    """Validate and keep an exponential average of the weights that keeps this share of itself in
    each step; 0 for none, 0.999 is usual."""
    patience: Annotated[int | None, arg(metavar="INT")] = None
    """Stop after so many validations without a better one, and keep the best one's weights."""
    monitor: Literal["dice", "jaccard", "precision", "recall"] = "dice"
    """What a better validation has more of, as a mean over classes (of networks that give an
    image: a smaller error)."""

    labels: Annotated[tuple[str, ...] | None, arg(metavar="VALUE=NAME...")] = None
    """Classes as VALUE=NAME, such as 0=background 1=lesion; by default the values found."""
    ignore_label: Annotated[int | None, arg(metavar="INT")] = None
    """Label value of voxels that count for nothing: those that nobody labelled."""
    head: Literal["new", "keep", "extend"] = "new"
    """Start with a new last layer, keep the model's (the classes must be the model's), or keep
    its classes and add those that are new."""
    activation: Literal["softmax", "sigmoid"] = "softmax"
    """What follows a new last layer; sigmoid has a single output, for one class and background."""
    new_channels: Literal["copy", "zero"] = "copy"
    """How kernels read channels that the model did not have: by a copy of those for the model's
    own, all divided by the number of copies, or by zeros."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the model's weights, or from random ones for comparison."""
    init_from: Annotated[Path | None, arg(metavar="MODEL_DIR")] = None
    """Model directory whose weights are taken where they fit, in the place of the model's own."""
    rename: Annotated[tuple[str, ...], arg(metavar="OLD=NEW...")] = ()
    """Where the weights of --init-from go: beginnings of their paths and what stands there in
    this network; nothing after = leaves them out."""

    augment: AugmentName = "light"
    """How blocks are changed at random, on the device; see the README."""
    flip: Literal["none", "left-right", "all"] = "left-right"
    """Axes along which blocks are flipped at random; where classes have a side, see --swap."""
    swap: Annotated[tuple[str, ...], arg(metavar="LEFT=RIGHT...")] = ()
    """Label values of structures that have a side, as pairs, which a flip from left to right
    exchanges; 'freesurfer' stands for all pairs of its numbering."""
    synthetic: bool = False
    """Train on images drawn from the label maps alone, of any contrast and resolution, as
    SynthSeg does."""
    foreground: float = 0.5
    """Share of blocks centred on a labelled voxel; the rest lie anywhere. nnU-Net's is 0.33."""
    cache: CacheName | None = None
    """Where blocks are cut from: 'device' keeps all scans in the memory of each device, 'host' in
    that of the machine, 'disk' reads each block from the store; by default disk, or host where a
    CSV was given."""
    workers: int = 0
    """Processes that read blocks from a store; threads of this one do by default."""
    train_subjects: Annotated[int | None, arg(metavar="INT")] = None
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
    seed: int = 0
    """Of the new head, the order of blocks and the augmentation."""

    mesh: Annotated[str | None, arg(metavar="data=N[,spatial=M]")] = None
    """Devices: N that the batch is split over, times M that the depth of each block is split over;
    by default all that there are, on data."""
    map: Literal["jit", "pmap"] = "jit"
    """How the step is mapped over devices: one program over all of them, or one for each, with
    means of gradients and batch moments taken between them."""
    shard_optimizer: bool = False
    """Split the optimizer's state over the devices of data instead of keeping it on each
    (ZeRO-1): less memory, the same steps."""
    distributed: Annotated[str | None, arg(metavar="auto|slurm|k8s|tpu|HOST:PORT,RANK,SIZE")] = None
    """This is one of several processes, each with its own devices: how they find each other. See
    engine/SCALING.md."""
    deterministic: bool = False
    """Choose GPU operations that give the same bits in each run; slower. CPUs and TPUs do so
    anyway."""
    checkpoints: int = 2
    """Newest checkpoints that are kept, beside the best."""
    profile: Annotated[str | None, arg(metavar="FIRST:LAST")] = None
    """Steps to trace, 10:15 for example, into RUN_DIR/profile, for XProf or Perfetto."""
    tensorboard: bool = False
    """Write what metrics.jsonl gets to RUN_DIR/tensorboard too (needs tensorboard)."""

    @property
    def warmup_steps(self) -> int:
        """`warmup`, or its default."""
        return min(20, self.steps // 2) if self.warmup is None else self.warmup

    @property
    def decay(self) -> float:
        """`weight_decay`, or its default."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.0 if self.optimizer == "adam" else 1e-2


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


@dataclass(frozen=True)
class Doctor:
    """Show devices, versions, memory and measured speed, and what is misconfigured."""


@dataclass(frozen=True)
class Predict:
    """Segment scans, or make an image of each; results lie on the scans' own grids."""

    model_dir: Annotated[Positional[Path], arg(metavar="MODEL_DIR")]
    """Model directory."""
    scans: Annotated[Positional[tuple[Path, ...]], arg(metavar="SCAN...")]
    """Scans (.nii, .nii.gz, .mgz), or one subjects table, which several channels want."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="OUT_DIR")]
    """Folder for the label volumes, or images."""
    split: Literal["train", "validation", "test"] | None = None
    """Of a subjects table, this split alone."""
    overlap: float = 0.25
    """Least overlap of neighbouring blocks, as a share of a block's edge."""
    nonfinite: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Value that voxels which are NaN or infinite get; without it such scans are refused."""
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
    Inspect
    | Convert
    | Create
    | Export
    | Prepare
    | Summary
    | Finetune
    | Resume
    | Doctor
    | Predict
    | Evaluate
    | Picture
    | Phantom
    | Demo
)
