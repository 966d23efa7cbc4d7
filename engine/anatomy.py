"""What a drawn head looks like: its tissues, their shapes, and how they are painted into a volume.

A head is a cartoon, built from signed distances in millimetres: scalp, skull, fluid, a folded
cortical ribbon, ventricles, deep nuclei, cerebellum, face and neck. Layers are painted from the
outside in, each with an edge as soft as a voxel is wide, which is what partial volume looks like.

Volumes are RAS: axis 0 runs left to right, axis 1 posterior to anterior, axis 2 inferior to
superior. Signed distances are negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

Array = np.ndarray
Triple = tuple[float, float, float]


class Tissue(IntEnum):
    """Codes of a tissue map."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    MARROW = 5
    EYE = 6
    MUCOSA = 7
    DURA = 8
    SINUS = 9
    FLUID = 10  # between brain and dura
    SULCUS = 11  # fluid inside the brain's hull
    GREY = 12
    WHITE = 13
    NUCLEUS = 14
    VENTRICLE = 15
    FALX = 16  # falx and tentorium
    OEDEMA = 17
    LESION = 18


# What brain extraction keeps. Sulcal fluid and falx stay in, as in hand-drawn brain masks.
BRAIN = (
    Tissue.SULCUS,
    Tissue.GREY,
    Tissue.WHITE,
    Tissue.NUCLEUS,
    Tissue.VENTRICLE,
    Tissue.FALX,
    Tissue.OEDEMA,
)

# The brain's centre lies above the volume's: face and neck need the room below.
BRAIN_CENTRE_MM = np.array([0.0, 0.0, 13.0])
GREY_MM = 3.2
SKULL_MM = 7.0


def _ellipsoid(points: Array, centre: Triple, radii: Triple) -> Array:
    """Approximate signed distance in mm to an ellipsoid; points [3, ...], centre and radii mm."""
    q = (points - _column(centre)) / _column(radii)
    k0 = np.sqrt((q**2).sum(axis=0))
    k1 = np.sqrt(((q / _column(radii)) ** 2).sum(axis=0))
    return k0 * (k0 - 1) / np.maximum(k1, 1e-6)


def _mirrored(points: Array) -> Array:
    """Folds left onto right, so that one shape stands for a pair."""
    return np.concatenate([np.abs(points[:1]), points[1:]])


def _union(a: Array, b: Array, blend_mm: float) -> Array:
    """Smooth minimum: the union of two shapes with a fillet about `blend_mm` wide."""
    h = np.clip(0.5 + 0.5 * (b - a) / blend_mm, 0, 1)
    return b + (a - b) * h - blend_mm * h * (1 - h)


def _column(values: Triple | Array) -> Array:
    return np.asarray(values, np.float32).reshape(3, 1, 1, 1)


def smooth_noise(
    rng: np.random.Generator, points: Array, scale_mm: float, lattice: int = 64
) -> Array:
    """Smooth noise of unit variance at points [3, ...] mm, correlated over about `scale_mm`."""
    return _sample(_noise_lattice(rng, lattice), points, scale_mm)


def _noise_lattice(rng: np.random.Generator, size: int) -> Array:
    """Periodic smooth noise [size, size, size], correlation length two cells, unit variance."""
    white = rng.standard_normal((size, size, size), dtype=np.float32)
    smooth = gaussian_filter(white, 2.0, mode="wrap", truncate=3.0)
    return smooth / smooth.std()


def _sample(lattice: Array, points: Array, scale_mm: float) -> Array:
    cells = points * (2.0 / scale_mm) + lattice.shape[0] / 2
    return map_coordinates(lattice, cells, order=1, mode="grid-wrap", output=np.float32)


@dataclass(frozen=True)
class Head:
    """One head's geometry."""

    points: Array  # float32 [3, D, H, W] mm, in the standard head, the brain's centre at the origin
    cavity: Array  # float32 [D, H, W] mm, signed distance to the inner skull
    ventricle_scale: float
    gap_mm: float  # fluid between brain and inner skull
    sulcus_mm: float  # half the width of a sulcus

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Array) -> Head:
        """Turns, sizes and bends the standard head; grid: [3, D, H, W] mm."""
        turn = Rotation.from_euler("xyz", rng.normal(0, [4.0, 2.5, 4.0]), degrees=True)
        size = rng.uniform(0.92, 0.99) * rng.uniform(0.97, 1.03, 3)
        moved = grid - _column(BRAIN_CENTRE_MM + rng.normal(0, 1.0, 3))
        turned = np.einsum("ij,jdhw->idhw", turn.inv().as_matrix(), moved) / _column(size)
        bend = np.stack([smooth_noise(rng, grid, 45.0, 16) for _ in range(3)])
        points = (turned + 1.8 * bend).astype(np.float32)
        gap_mm = rng.uniform(2.0, 4.0)
        return cls(
            points=points,
            cavity=_hull(points) - gap_mm,
            ventricle_scale=rng.uniform(0.75, 1.35),
            gap_mm=gap_mm,
            sulcus_mm=rng.uniform(0.7, 1.3),
        )


def _hull(points: Array) -> Array:
    """Cerebrum, cerebellum and brain stem wrapped together, mm."""
    return _union(_union(_cerebrum(points), _cerebellum(points), 8.0), _stem(points), 6.0)


def _cerebrum(points: Array) -> Array:
    x, y, z = points
    # Flatter below than above, and narrower in front than behind.
    squashed = np.stack([x * (1 + 0.0016 * y), y, np.where(z < 0, z * 1.7, z)])
    dome = _ellipsoid(squashed, (0, 0, 0), (64, 80, 62))
    temporal = _ellipsoid(_mirrored(points), (41, 8, -24), (21, 36, 19))
    return _union(dome, temporal, 10.0)


def _cerebellum(points: Array) -> Array:
    return _ellipsoid(_mirrored(points), (17, -46, -38), (33, 28, 22))


def _stem(points: Array) -> Array:
    """Midbrain, pons and medulla; ends at the foramen magnum."""
    x, y, z = points
    tilt = y + 16 - 0.18 * (z + 20)
    radius = 12 + 4 * np.exp(-(((z + 30) / 9) ** 2)) + 0.06 * np.minimum(z + 30, 20)
    tube = np.sqrt(x**2 + tilt**2) - radius
    return np.maximum(tube, np.maximum(-68 - z, z + 5))


def _ventricles(points: Array, scale: float) -> Array:
    paired = _mirrored(points)
    body = _ellipsoid(paired, (9, 4, 11), (5 * scale, 27, 7 * scale))
    front = _ellipsoid(paired, (11, 24, 8), (4.5 * scale, 10, 8 * scale))
    back = _ellipsoid(paired, (20, -30, 4), (6 * scale, 18, 7 * scale))
    lateral = _union(_union(body, front, 4.0), back, 6.0)
    third = _ellipsoid(points, (0, -4, -6), (2.2 * scale, 13, 8))
    fourth = _ellipsoid(points, (0, -31, -40), (7, 4.5, 8))
    return np.minimum(np.minimum(lateral, third), fourth)


def _nuclei(points: Array) -> Array:
    paired = _mirrored(points)
    thalamus = _ellipsoid(paired, (11, -12, 0), (8, 14, 8))
    caudate = _ellipsoid(paired, (16, 18, 7), (5, 13, 8))
    putamen = _ellipsoid(paired, (27, 4, -1), (5.5, 17, 9))
    return np.minimum(np.minimum(thalamus, caudate), putamen)


def _outside_callosum(points: Array) -> Array:
    """How far the falx's inner edge is, mm: negative where the hemispheres are joined."""
    return _ellipsoid(points, (0, 0, 0), (300, 44, 22))


def _depth_below_pia(points: Array, sulcus_mm: float, rng: np.random.Generator) -> Array:
    """Distance in mm from the nearest pial surface, sulci included; positive in tissue.

    Sulci are the zero level of smooth noise that hardly varies along the radius: sheets that
    wind over the surface and go straight down, as sulci do. How deep also varies smoothly.
    """
    hull = np.maximum(_cerebrum(points), 2.0 - _cerebellum(points))
    radius = np.sqrt(((points / _column((64, 80, 56))) ** 2).sum(axis=0))
    surface = points * ((0.8 + 0.2 * radius) / np.maximum(radius, 0.25))
    scale_mm = 4.4
    lattice = _noise_lattice(rng, 64)
    slope = np.sqrt(sum(g**2 for g in np.gradient(lattice))) * (2.0 / scale_mm)
    away = np.abs(_sample(lattice, surface, scale_mm))
    away = away / np.maximum(_sample(slope, surface, scale_mm), 0.15)
    reach = np.clip(14 + 6 * smooth_noise(rng, surface, 16.0, 32), 4, 24)
    folds = np.hypot(away, np.maximum(-hull - reach, 0))

    x, y, z = points
    midline = np.hypot(x, np.maximum(-_outside_callosum(points), 0))
    sylvian = np.hypot(z + 8 - 0.25 * y, np.maximum(30 - np.abs(x), 0))
    sylvian = np.hypot(sylvian, np.maximum(np.abs(y - 6) - 34, 0)) - 0.6
    clefts = np.minimum(np.minimum(folds, midline - 0.5), sylvian)
    return np.minimum(-hull, clefts - sulcus_mm)


@dataclass(frozen=True)
class Canvas:
    """What is painted, in place."""

    image: Array  # float32 [D, H, W], scanner units
    tissue: Array  # uint8 [D, H, W], codes of `Tissue`
    spacing_mm: float  # edge of the cubic voxels
    levels: dict[Tissue, float]  # brightness of each tissue, scanner units

    @classmethod
    def blank(
        cls, shape: tuple[int, int, int], spacing_mm: float, levels: dict[Tissue, float]
    ) -> Canvas:
        """Air everywhere; `shape` voxels of `spacing_mm`, `levels` in scanner units."""
        image = np.full(shape, levels[Tissue.AIR], np.float32)
        return cls(image, np.full(shape, Tissue.AIR, np.uint8), spacing_mm, levels)

    def paint(self, tissue: Tissue, distance: Array, texture: Array | float = 0.0) -> None:
        """Covers where `distance` (mm) is negative; `texture` varies the brightness by a part."""
        cover = np.clip(0.5 - distance / self.spacing_mm, 0, 1)
        self.image[...] += cover * (self.levels[tissue] * (1 + texture) - self.image)
        self.tissue[distance < 0] = tissue


def paint_head(canvas: Canvas, head: Head, lesion: Lesion | None, rng: np.random.Generator) -> None:
    """Paints a head into a blank canvas, from the outside in, and the lesion, if any, last."""
    _paint_outside(canvas, head, rng)
    _paint_brain(canvas, head, lesion, rng)
    if lesion is not None:
        _paint_lesion(canvas, head, lesion)


def _paint_outside(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Skin, fat, muscle, face and neck, skull, dura."""
    points, cavity = head.points, head.cavity
    _, y, z = points
    paired = _mirrored(points)
    texture = 0.10 * smooth_noise(rng, points, 9.0)
    neck = np.maximum(np.hypot(points[0], y + 22) - 52, z + 30)
    face = _union(
        _ellipsoid(points, (0, 42, -62), (54, 44, 62)),
        _ellipsoid(points, (0, 88, -52), (11, 13, 18)),
        12.0,
    )
    soft = _union(face, neck, 15.0)
    scalp_mm = SKULL_MM + rng.uniform(5.0, 7.0)
    head_surface = _union(cavity - scalp_mm, soft, 12.0)
    canvas.paint(Tissue.SKIN, head_surface, texture)
    canvas.paint(Tissue.FAT, head_surface + 2.2, texture)
    canvas.paint(Tissue.MUSCLE, np.maximum(soft + 7, head_surface + 6), 2 * texture)
    temporalis = np.maximum(head_surface + 3.5, _ellipsoid(paired, (78, 22, -22), (14, 30, 30)))
    canvas.paint(Tissue.MUSCLE, temporalis, texture)
    canvas.paint(Tissue.FAT, _ellipsoid(paired, (31, 58, -34), (19, 24, 16)), texture)
    canvas.paint(Tissue.EYE, _ellipsoid(paired, (32, 68, -34), (12, 12, 12)))
    canvas.paint(Tissue.MUCOSA, _ellipsoid(paired, (8, 60, -58), (12, 26, 20)))
    canvas.paint(Tissue.AIR, _ellipsoid(paired, (9, 60, -58), (5, 26, 17)))
    canvas.paint(Tissue.AIR, _ellipsoid(paired, (30, 62, -66), (12, 16, 13)))
    canvas.paint(Tissue.MUSCLE, _ellipsoid(points, (0, 40, -92), (26, 30, 13)), texture)
    canvas.paint(Tissue.AIR, _ellipsoid(points, (0, 6, -90), (9, 5, 40)))
    canvas.paint(Tissue.BONE, np.maximum(np.hypot(points[0], y + 30) - 15, z + 66))
    canvas.paint(Tissue.MARROW, np.maximum(np.hypot(points[0], y + 22) - 10, z + 78), texture)

    # The skull's base is thicker than its vault, and its marrow is patchy.
    skull_mm = (
        SKULL_MM + 3.0 * np.clip((-z - 25) / 25, 0, 1) + 0.8 * smooth_noise(rng, points, 30.0, 16)
    )
    canvas.paint(Tissue.BONE, cavity - skull_mm)
    diploe = np.abs(cavity - 0.6 * skull_mm) - 0.3 - 0.8 * smooth_noise(rng, points, 20.0, 32)
    canvas.paint(Tissue.MARROW, diploe, 2 * texture)
    canvas.paint(Tissue.AIR, _ellipsoid(points, (0, 83, -8), (14, 3.5, 8)))
    canvas.paint(Tissue.AIR, _ellipsoid(points, (0, 30, -44), (11, 10, 8)))
    canvas.paint(Tissue.DURA, cavity - 0.9)
    canvas.paint(Tissue.FLUID, cavity + 0.7)


def _paint_brain(
    canvas: Canvas, head: Head, lesion: Lesion | None, rng: np.random.Generator
) -> None:
    """Everything inside the dura. A lesion has pushed the brain aside, but never the dura."""
    fixed = head.points
    points = fixed if lesion is None else lesion.undo_push(fixed)
    cavity = head.cavity
    inside = np.maximum(_hull(points), cavity + 1.0)
    canvas.paint(Tissue.SULCUS, inside)
    depth = _depth_below_pia(points, head.sulcus_mm, rng)
    texture = 0.02 * smooth_noise(rng, points, 8.0)
    cerebellum = np.maximum(_cerebellum(points), cavity + 1.0)
    stem = _stem(points)
    canvas.paint(Tissue.GREY, np.maximum(-depth, inside), texture)
    canvas.paint(Tissue.WHITE, np.maximum(GREY_MM - depth, inside), texture)
    folia = 0.12 * np.sin(2.2 * _ellipsoid(points, (0, -30, -36), (40, 28, 26)) / 3.0)
    canvas.paint(Tissue.GREY, cerebellum, folia)
    canvas.paint(Tissue.WHITE, cerebellum + 11, texture)
    canvas.paint(Tissue.WHITE, np.maximum(stem, inside), texture - 0.08)
    canvas.paint(Tissue.NUCLEUS, _nuclei(points), texture)
    canvas.paint(Tissue.VENTRICLE, _ventricles(points, head.ventricle_scale))
    _paint_dura_and_sinuses(canvas, head, points, inside, rng)


def _paint_dura_and_sinuses(
    canvas: Canvas, head: Head, pushed: Array, hull: Array, rng: np.random.Generator
) -> None:
    """Falx, tentorium, sagittal and transverse sinus, cortical veins."""
    cavity = head.cavity
    x, y, z = head.points
    edge = 7.0 - _outside_callosum(head.points)
    above = -z - 14 + 0.2 * y
    falx = np.maximum(np.maximum(np.abs(pushed[0]) - 0.6, edge), np.maximum(cavity, above))
    cerebellum = _cerebellum(head.points)
    notch = 24 - np.hypot(x, y + 14)
    tentorium = np.maximum(np.maximum(np.abs(cerebellum - 1.0) - 0.5, -28 - z), notch)
    sheets = np.minimum(falx, np.maximum(tentorium, cavity))
    canvas.paint(Tissue.DURA, sheets)
    canvas.paint(Tissue.FALX, np.maximum(sheets, hull))  # the part that a brain mask includes

    superior = np.hypot(x, cavity + 1.5) - 3.6
    superior = np.maximum(superior, np.where(y > 0, 12 - z, -16 - z))
    transverse = np.hypot(z + 20, cavity + 1.5) - 3.4
    transverse = np.maximum(transverse, y + 34)
    canvas.paint(Tissue.SINUS, np.minimum(superior, transverse))
    # A vein runs where two noises cross zero together near the surface.
    tubes = np.hypot(smooth_noise(rng, pushed, 14.0), smooth_noise(rng, pushed, 14.0)) * 7.0 - 1.1
    shallow = np.maximum(cavity + 1, -cavity - 7)
    canvas.paint(Tissue.SINUS, np.maximum(np.maximum(tubes, shallow), -z))


@dataclass(frozen=True)
class Lesion:
    """A mass with a broad base on the inner skull."""

    distance: Array  # float32 [D, H, W] mm to the mass, negative inside
    base: Array  # float32 [3] mm, where it is attached
    tail_mm: float  # reach of the thickened dura beyond the mass; 0 for none
    oedema_mm: float  # width of the dark rim in the white matter; 0 for none

    @classmethod
    def draw(cls, rng: np.random.Generator, head: Head) -> Lesion:
        """Places a mass of 14.5 to 23 mm radius, before its lumps, somewhere on the vault."""
        side = rng.choice([-1.0, 1.0])
        azimuth = np.deg2rad(rng.uniform(-75, 75))
        elevation = np.deg2rad(rng.uniform(-5, 62))
        flat = np.cos(elevation)
        outward = np.array(
            [side * flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]
        )
        base = _on_cavity(head, outward)
        radius = rng.uniform(14.5, 23.0)
        centre = base - outward * radius * rng.uniform(0.35, 0.6)
        turn = Rotation.from_quat(rng.standard_normal(4)).as_matrix()
        local = np.einsum("ij,jdhw->idhw", turn, head.points - _column(centre))
        radii = radius * rng.uniform(0.85, 1.15, 3)
        lumps = rng.uniform(0.5, 2.5) * smooth_noise(rng, head.points, 11.0, 32)
        mass = _ellipsoid(local, (0, 0, 0), (radii[0], radii[1], radii[2])) + lumps
        # The mass ends at the dura and, beside the midline, at the falx.
        falx = np.where(_outside_callosum(head.points) > 0, 1.0 - side * head.points[0], -99)
        return cls(
            distance=np.maximum(np.maximum(mass, head.cavity + 0.2), falx).astype(np.float32),
            base=base.astype(np.float32),
            tail_mm=rng.uniform(6.0, 18.0) if rng.random() < 0.6 else 0.0,
            oedema_mm=rng.uniform(3.0, 10.0) if rng.random() < 0.5 else 0.0,
        )

    def undo_push(self, points: Array) -> Array:
        """Where the tissue now at `points` [3, D, H, W] mm was before the mass grew.

        The mass grew from its base and volume is kept: radius cubed less the mass's cubed.
        """
        offset = points - _column(self.base)
        radius = np.sqrt((offset**2).sum(axis=0)) + 1e-3
        mass_radius = np.maximum(radius - np.maximum(self.distance, 0), 0)
        before = np.cbrt(np.maximum(radius**3 - mass_radius**3, 0))
        # Far tissue gives way less than an unbounded medium would: the skull holds it.
        fade = np.exp(-np.maximum(self.distance, 0) / 25.0)
        return points + offset * ((before / radius - 1) * fade)


def _on_cavity(head: Head, outward: Array) -> Array:
    """The point [3] mm on the inner skull in direction `outward` from the brain's centre."""
    steps = np.linspace(20, 100, 801, dtype=np.float32)
    ray = (outward[:, None] * steps).reshape(3, -1, 1, 1)
    crossing = int(np.argmax(_hull(ray).ravel() > head.gap_mm))
    return outward * float(steps[crossing])


def _paint_lesion(canvas: Canvas, head: Head, lesion: Lesion) -> None:
    """Oedema, dural tail, then the mass."""
    if lesion.oedema_mm:
        white = canvas.tissue == Tissue.WHITE
        part = white * np.clip(1.5 - lesion.distance / lesion.oedema_mm, 0, 1)
        canvas.image[...] += part * (canvas.levels[Tissue.OEDEMA] - canvas.image)
        canvas.tissue[part > 0.5] = Tissue.OEDEMA
    if lesion.tail_mm:
        thickness = 2.8 * np.clip(1 - lesion.distance / lesion.tail_mm, 0, 1)
        tail = np.maximum(head.cavity, -head.cavity - thickness)
        canvas.paint(Tissue.DURA, np.where(lesion.distance < lesion.tail_mm, tail, 99.0))
    canvas.paint(Tissue.LESION, lesion.distance)
