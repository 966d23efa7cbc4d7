"""Published networks: what tells their files, and what their makers did to a scan."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from voxtune.converters.to_flax import Conversion
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass

_MM = (1.0, 1.0, 1.0)
_BLOCK = (128, 128, 128)
NOBRAINER = Contract("RAS", _MM, "zscore", _BLOCK, 0.3)
BRAINCHOP = Contract("LIA", _MM, "minmax", _BLOCK)
SYNTHSEG = Contract("RAS", _MM, "percentile", _BLOCK)


@dataclass(frozen=True)
class KnownModel:
    """A published network.

    Attributes:
        name: what it is called.
        digest: sha256 (64 digits) or md5 (32) of the published file; for TF.js sha256 of
            model.json followed by the shards. "" where it is not known.
        fits: whether a converted network has the structure.
        contract: what its makers did to a scan.
        classes: what its outputs mean; none for a network that computes an image.
        citation: paper, or the repository where there is none.
        source: where to get it.
    """

    name: str
    digest: str
    fits: Callable[[Conversion], bool]
    contract: Contract
    classes: tuple[LabelClass, ...]
    citation: str
    source: str


def recognise(path: Path, sha256: str, conversion: Conversion) -> tuple[KnownModel | None, str]:
    """The published network that a file is, or that it has the structure of.

    Args:
        path: the Keras file.
        sha256: of its content, as the reader gives it.
        conversion: the network in it.

    Returns:
        The network and "hash" or "structure"; None and "" where there is none.
    """
    md5 = ""
    if path.is_file() and any(len(each.digest) == 32 for each in KNOWN):
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
    for known in KNOWN:
        if known.digest in (sha256, md5) and known.digest:
            return known, "hash"
    return next(((known, "structure") for known in KNOWN if known.fits(conversion)), (None, ""))


def _classes(*names: str) -> tuple[LabelClass, ...]:
    return tuple(LabelClass(value, name) for value, name in enumerate(names))


def _unet(optimizer: bool) -> Callable[[Conversion], bool]:
    """Nobrainer's U-Net of one class, with or without optimizer state in its file."""
    wanted = {"channels": 1, "outputs": 1, "filters": 16, "depth": 3, "norm": None}

    def fits(conversion: Conversion) -> bool:
        left = any("optimizer" in each.keras or not each.path for each in conversion.tensors)
        same = conversion.family == "unet" and dict(conversion.arguments) == wanted
        return same and conversion.output_activation == "sigmoid" and left == optimizer

    return fits


def _meshnet(filters: int, outputs: int, activation: str) -> Callable[[Conversion], bool]:
    """One of brainchop's MeshNets: nine or eight dilated convolutions, batch norms folded in."""

    def fits(conversion: Conversion) -> bool:
        found = conversion.arguments
        return conversion.family == "meshnet" and (
            (found["filters"], found["outputs"], found["activation"], found["norm"])
            == (filters, outputs, activation, None)
        )

    return fits


def _synthseg(*outputs: int) -> Callable[[Conversion], bool]:
    """SynthSeg's U-Net: five levels of two convolutions, widths 24 to 384, a norm a level."""

    def fits(conversion: Conversion) -> bool:
        wanted = [{"channels": 1, "outputs": each, "filters": 24, "depth": 4} for each in outputs]
        return conversion.family == "synthseg_unet" and dict(conversion.arguments) in wanted

    return fits


# FreeSurfer's labels in the order of the outputs, which is that of their values.
_FREESURFER = (
    (0, "background"),
    (2, "left cerebral white matter"),
    (3, "left cerebral cortex"),
    (4, "left lateral ventricle"),
    (5, "left inferior lateral ventricle"),
    (7, "left cerebellum white matter"),
    (8, "left cerebellum cortex"),
    (10, "left thalamus"),
    (11, "left caudate"),
    (12, "left putamen"),
    (13, "left pallidum"),
    (14, "3rd ventricle"),
    (15, "4th ventricle"),
    (16, "brain-stem"),
    (17, "left hippocampus"),
    (18, "left amygdala"),
    (24, "CSF"),
    (26, "left accumbens area"),
    (28, "left ventral DC"),
    (41, "right cerebral white matter"),
    (42, "right cerebral cortex"),
    (43, "right lateral ventricle"),
    (44, "right inferior lateral ventricle"),
    (46, "right cerebellum white matter"),
    (47, "right cerebellum cortex"),
    (49, "right thalamus"),
    (50, "right caudate"),
    (51, "right putamen"),
    (52, "right pallidum"),
    (53, "right hippocampus"),
    (54, "right amygdala"),
    (58, "right accumbens area"),
    (60, "right ventral DC"),
)
_WITH_CSF = tuple(LabelClass(value, name) for value, name in _FREESURFER)
_WITHOUT_CSF = tuple(each for each in _WITH_CSF if each.name != "CSF")

_TRAINED_MODELS = "github.com/neuronets/trained-models (datalad get -s osf-storage FILE)"
_BRAINCHOP = "github.com/neuroneural/brainchop, public/models"
_MASOUD = "Masoud et al. 2023, doi 10.21105/joss.05098"
_BILLOT = "Billot et al. 2023, doi 10.1016/j.media.2023.102789"
_IGLESIAS = "Iglesias et al. 2021, doi 10.1016/j.neuroimage.2021.118206"
_TISSUE = _classes("background", "white matter", "grey matter")
_EIGHTEEN = (
    "background",
    "cerebral white matter",
    "cerebral cortex",
    "lateral ventricle",
    "inferior lateral ventricle",
    "cerebellum white matter",
    "cerebellum cortex",
    "thalamus",
    "caudate",
    "putamen",
    "pallidum",
    "3rd ventricle",
    "4th ventricle",
    "brain-stem",
    "hippocampus",
    "amygdala",
    "accumbens area",
    "ventral DC",
)

KNOWN: tuple[KnownModel, ...] = (
    KnownModel(
        "brainy 0.1.0, brain extraction (Nobrainer)",
        "17d946f977134b70cb48ce3960d634517d9e0c6f09ca40fb7de5b86faeb94eb9",
        _unet(optimizer=False),
        NOBRAINER,
        _classes("background", "brain"),
        "Nobrainer, github.com/neuronets/nobrainer",
        f"{_TRAINED_MODELS}: brain-extraction-unet-128iso-model.h5",
    ),
    KnownModel(
        "ams 0.1.0, meningioma (Nobrainer)",
        "1c76ac1d0c99458d6c0302908a555d390cbf6d34be468e7ac604311f1b4eb9d4",
        _unet(optimizer=True),
        NOBRAINER,
        _classes("background", "meningioma"),
        "Boaro et al. 2022, doi 10.1038/s41598-022-19356-5",
        f"{_TRAINED_MODELS}: meningioma_T1wc_128iso_v1.h5",
    ),
    KnownModel(
        "SynthSeg 1.0",
        "5a563a6f527f2f2d534424885f65da33",
        _synthseg(32),
        SYNTHSEG,
        _WITHOUT_CSF,
        _BILLOT,
        "github.com/BBillot/SynthSeg: SynthSeg.h5",
    ),
    KnownModel(
        "SynthSeg 2.0",
        "",
        _synthseg(33),
        SYNTHSEG,
        _WITH_CSF,
        _BILLOT,
        "github.com/BBillot/SynthSeg: synthseg_2.0.h5",
    ),
    KnownModel(
        "SynthSR",
        "21857e965d9d71a32dc0c35ba5c593d2",
        _synthseg(1),
        Contract("RAS", _MM, "minmax", _BLOCK),
        (),
        _IGLESIAS,
        "github.com/BBillot/SynthSR: SynthSR_v10_210712.h5",
    ),
    KnownModel(
        "brainchop model5_gw_ae, tissues",
        "15608b29485de516202170186bec4e7e461b91c293854d82cd6929db710d170f",
        _meshnet(5, 3, "relu"),
        BRAINCHOP,
        _TISSUE,
        _MASOUD,
        f"{_BRAINCHOP}/model5_gw_ae",
    ),
    KnownModel(
        "brainchop model11_gw_ae, tissues",
        "b5a95305b716996a99b55ec72480bf9f871d33d021385c8f890d3ce378f65356",
        _meshnet(11, 3, "relu"),
        BRAINCHOP,
        _TISSUE,
        _MASOUD,
        f"{_BRAINCHOP}/model11_gw_ae",
    ),
    KnownModel(
        "brainchop model20chan3cls, tissues",
        "d9e5d9525e7553abb6cd0856d0cd5f1d0095db6359e587998239a0590e97c574",
        _meshnet(20, 3, "elu"),
        Contract("LIA", _MM, "quantile", _BLOCK),
        _TISSUE,
        _MASOUD,
        f"{_BRAINCHOP}/model20chan3cls",
    ),
    KnownModel(
        "brainchop model18cls, 18 structures",
        "488d257489e9d8ee3225d8aecdf5ceb2c3b38953088121ed74bf8e4541f4cba9",
        _meshnet(21, 18, "elu"),
        BRAINCHOP,
        _classes(*_EIGHTEEN),
        _MASOUD,
        f"{_BRAINCHOP}/model18cls",
    ),
)


def published_table() -> str:
    """The published networks, as the README's table."""
    rows = ["| network | where to get it | contract | cite |", "|---|---|---|---|"]
    for known in KNOWN:
        contract = known.contract
        words = f"{contract.orientation}, {contract.intensity}"
        if len(known.classes) == 2:
            words += f", above {contract.threshold:g}"
        rows.append(f"| {known.name} | {known.source} | {words} | {known.citation} |")
    return "\n".join(rows)
