"""Options that several commands share: frozen dataclasses that the commands extend. No JAX here."""

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
InitName = Literal["pretrained", "random", "shuffled", "matched"]
MapName = Literal["probabilities", "entropy", "variance"]


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
class Relabelling:
    """What is made of the values in label files."""

    label_map: Annotated[Path | None, arg(metavar="FILE")] = field(default=None, kw_only=True)
    """CSV with columns original,new and, if wanted, name; or FreeSurfer's colour table, which gives
    names alone. Label values become what it says."""
    unlisted: Literal["error", "background"] = field(default="error", kw_only=True)
    """What label values become that the map does not list."""
    keep: Annotated[tuple[int, ...], arg(metavar="INT...")] = field(default=(), kw_only=True)
    """Label values to keep, after the map; all others become background."""
    binarise: bool = field(default=False, kw_only=True)
    """After all that, every label value but 0 becomes 1."""


@dataclass(frozen=True)
class Labelling(Relabelling):
    """What is made of the values in label files, and of voxels that are no numbers."""

    label_interpolation: Literal["nearest", "linear"] = field(default="nearest", kw_only=True)
    """How labels are resampled: to the nearest, or each class linearly and the largest wins."""
    nonfinite: Annotated[float | None, arg(metavar="FLOAT")] = field(default=None, kw_only=True)
    """Value that voxels which are NaN or infinite get; without it such scans are refused."""


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
    init: InitName = "pretrained"
    """Start from the model's weights, or for comparison from random ones; from the model's with
    the values of each tensor shuffled; or from random kernels of the same mean and spread."""
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
    subject_seed: Annotated[int | None, arg(metavar="INT")] = None
    """Put the subjects to train on in another order first, by this seed; by default they stay in
    the table's. With --train-subjects: which are taken."""
    hold_out: float = 0.2
    """Share of subjects kept for validation where the table has no split."""
    fold: Annotated[str | None, arg(metavar="I/K")] = None
    """Share out all subjects but those of the split test among K folds, and keep the Ith for
    validation: K runs, from 1/K to K/K, make an ensemble for 'voxtune predict'."""
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


@dataclass(frozen=True, kw_only=True)
class Segmenting:
    """How networks are run over whole scans."""

    ensemble: Annotated[tuple[Path, ...], arg(metavar="MODEL_DIR...")] = ()
    """Further model directories, of the folds of one training for example; probabilities are
    averaged over all."""
    block: Annotated[Block | Literal["full"] | None, arg(metavar="INT INT INT|full")] = None
    """Shape of the windows, voxels; by default the model's blocks. 'full' is each scan in one pass,
    where the memory suffices."""
    overlap: float = 0.25
    """Least overlap of neighbouring windows, as a share of their edge; nnU-Net's is 0.5."""
    flip: Literal["none", "left-right", "all"] = "none"
    """Average over mirrored passes too: two along the left-right axis, or eight along all. Where
    classes have a side, see --swap."""
    swap: Annotated[tuple[str, ...], arg(metavar="LEFT=RIGHT...")] = ()
    """Label values of structures that have a side, as pairs, which a flip from left to right
    exchanges; 'freesurfer' stands for all pairs of its numbering."""
    samples: int = 0
    """Average over so many draws of random weights, or of dropout; by default nothing is drawn."""
    seed: int = 0
    """Of the draws."""
    mesh: Annotated[str | None, arg(metavar="data=N,spatial=M")] = None
    """Devices: so many predict a window each, or the parts along depth of one."""
    nonfinite: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Value that voxels which are NaN or infinite get; without it such scans are refused."""
