"""Tissue for the simulated images, organ by organ: what lies where, how strongly it echoes, how much it damps.

Each function of `SCENES` paints a `Canvas` from back to front and returns the `Scene`: the exact outlines behind the
mask, and the measures. Numbers drawn from `anatomy` belong to the patient, those drawn from `c.rng` to the one image
(or clip). Layouts follow textbook anatomy; every number is ours. Here are the organs just under the skin, which a
linear probe sees; `ingest.phantom_deep` has the others.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from ingest.phantom_deep import fetal_head, gallbladder, heart, kidney, lung
from ingest.phantom_shapes import (
    Band,
    Blob,
    Body,
    Canvas,
    Cut,
    Float,
    Layer,
    Scene,
    Shape,
    edge_shadow,
    everywhere,
    fat_layer,
    lumps,
    muscle,
    skin_layer,
    wavy,
)


def breast(c: Canvas, body: Body, label: str | None, phase: float) -> Scene:
    """Skin, fat with Cooper's ligaments, glandular tissue, fat, pectoral muscle; a mass unless the label is normal."""
    anatomy, at = body.rng(), c.at
    depth = float(body.depth_mm)
    gland_y = 3.5 + 6.0 * body.fat + c.rng.uniform(-0.8, 0.8)
    muscle_y = depth * anatomy.uniform(0.6, 0.75) + c.rng.uniform(-1, 1)
    tilt = c.rng.uniform(-0.2, 0.2)
    gland = Layer(gland_y, 0.3 * tilt, wavy(anatomy, 1.6, 28))(at)
    retro = Layer(muscle_y - 3.5, tilt, wavy(anatomy, 1.0, 35))(at)
    chest = Layer(muscle_y, tilt, wavy(anatomy, 0.8, 45))(at)
    fat_layer(c, everywhere(c), -9, body.coarseness)
    warp = 1.2 * c.noise(8, 6)
    ducts = c.noise(4 + 4 * body.coarseness, 1.3 + 0.8 * body.coarseness, tilt, warp)
    lobes = c.noise(10, 6)
    c.fill(gland + 1.5 * lobes, 3 + (2 + 2.5 * anatomy.random()) * ducts + 2.5 * lobes, 0.04, 1.6)
    c.strands(gland, c.noise(7, 0.8, tilt, warp), 7)
    c.net(gland, ducts, 6, 0.15)
    fat_layer(c, retro, -9, body.coarseness)
    muscle(c, chest, -9, 1.3 * tilt)
    c.surface(chest, 9, 0.25)
    _ribs(c, anatomy, muscle_y + 6)
    c.loss_db_mm += np.float32(c.rng.uniform(0.0, 0.35))
    c.loss_db_mm += np.float32(0.25) * np.clip(c.noise(7, 60), 0, 2)  # some columns get less through than others
    scene = Scene()
    if label is not None and label != "normal":
        scene = _mass(c, anatomy, label, gland_y, muscle_y)
    skin_layer(c)
    return scene


def _ribs(c: Canvas, anatomy: np.random.Generator, y: float) -> None:
    """Perhaps a rib below the muscle: a bright front and darkness behind it."""
    if anatomy.random() < 0.4:
        rib = Blob(anatomy.uniform(-14, 14), y + 3.5, 7, 3.0, 0, ((3, 0.05, 1.0),))(c.at)
        c.fill(rib, -10, 1.0, 1.5)
        c.surface(rib, 9, 0.3, 5)


def _mass(c: Canvas, anatomy: np.random.Generator, label: str, top: float, bottom: float) -> Scene:
    """A benign mass is smooth, oval, wider than tall, and bright behind; a malignant one is spiculated, dark behind."""
    x, y = anatomy.uniform(-9, 9) + c.rng.uniform(-2, 2), anatomy.uniform(top + 3.5, max(bottom - 4, top + 5))
    size = anatomy.uniform(2.6, 6.5) * c.rng.uniform(0.92, 1.08)
    if label == "benign":
        cyst = anatomy.random() < 0.4
        flat = anatomy.uniform(0.55, 0.85)
        mass = Blob(x, y, size * 1.15, size * flat, anatomy.uniform(-0.25, 0.25), lumps(anatomy, (2, 3), 0.06))
        piece = c.near(mass)
        level = mass(piece.at)
        echo = anatomy.uniform(-19, -13) + 1.2 * piece.noise(2.5, 1.6)
        piece.fill(level, -38 if cyst else echo, -1.3 if cyst else -0.6, 0.9)
        piece.surface(level, 8 if cyst else 4, 0.2, 4)
        edge_shadow(piece, level, 0.9)
        return Scene(((1, mass),), measured=(1,))
    tall = anatomy.uniform(0.8, 1.3)
    waves = lumps(anatomy, (2, 3, 5), 0.12) + lumps(anatomy, (7, 10, 13), 0.14)
    mass = Blob(x, max(y, size * tall + 2.5), size, size * tall, anatomy.uniform(-0.3, 0.3), waves)
    piece = c.near(mass, slack=6)
    level = mass(piece.at)
    rough = piece.noise(1.8, 1.5)
    piece.fill(mass.grown(1.8)(piece.at) + 1.2 * rough, 4 + 2 * rough, edge=3.0)
    echo = anatomy.uniform(-19, -13) + 2.5 * piece.noise(2.6, 1.8)
    piece.fill(level + 0.4 * rough, echo, anatomy.uniform(0.8, 1.9), 1.6)
    if anatomy.random() < 0.4:  # microcalcifications
        piece.coherent += np.where((piece.noise(0.7, 0.6) > 2.5) & (level < -0.6), np.float32(4), np.float32(0))
    return Scene(((1, mass),), measured=(1,))


def thyroid(c: Canvas, body: Body, label: str | None, phase: float) -> Scene:
    """One lobe across: skin, strap muscles, lobe beside the trachea, carotid and jugular, long muscle of the neck."""
    anatomy, at = body.rng(), c.at
    side = 1.0 if anatomy.random() < 0.5 else -1.0  # 1: the trachea lies to the left
    shift = c.rng.uniform(-1.5, 1.5)
    fat_layer(c, everywhere(c), -6, body.coarseness)
    strap_y = 2.8 + 3.5 * body.fat
    strap = Layer(strap_y, 0.05 * side, wavy(anatomy, 0.7, 30))(at)
    muscle(c, strap, -11, 0.05 * side, 6)
    c.surface(strap, 7, 0.2)
    grown = 2 * body.size
    lobe_y = strap_y + 9 + grown
    waves = lumps(anatomy, (2, 3, 4), 0.07)
    lobe = Blob(-2 * side + shift, lobe_y, 9.5 + grown, 5.5 + grown, 0.3 * side, waves)
    muscle(c, Layer(lobe_y + 6.5 + grown, 0.05 * side, wavy(anatomy, 1.0, 26))(at), -9, 0.05 * side)
    c.surface(Layer(lobe_y + 13 + grown, 0.05 * side, wavy(anatomy, 0.8, 30))(at), 10, 0.35)  # front of the spine
    c.loss_db_mm += np.clip((at.y - np.float32(lobe_y + 13 + grown)) * np.float32(0.3), 0, 0.9)
    piece = c.near(lobe)
    level = lobe(piece.at)
    grain = piece.noise(2, 1.3)
    piece.fill(level - 0.5, 1, edge=1.2)
    piece.fill(level + 0.4 * grain, 0.5 + 1.6 * grain + 1.6 * piece.noise(6, 4), 0.03, 1.6)
    piece.surface(level, 3, 0.2, 4)
    regions: list[tuple[int, Shape]] = [(1, lobe)]
    if label == "nodule":
        regions.append((2, _nodule(c, anatomy, lobe)))
    carotid = Blob((12 + body.size) * side + shift, lobe_y + 1, anatomy.uniform(3.0, 3.8), anatomy.uniform(2.9, 3.5))
    jugular = Blob(
        carotid.x + 2.5 * side, carotid.y - 6.5, anatomy.uniform(4, 5.5), anatomy.uniform(1.2, 2.4), 0.3 * side
    )
    for vessel, wall in ((jugular, 2.0), (carotid, 8.0)):
        piece = c.near(vessel)
        inner = vessel(piece.at)
        piece.fill(vessel.grown(0.7)(piece.at), -1, edge=0.9)
        piece.fill(inner, -32 - 6 * piece.patches, -0.4, 1.0)
        piece.surface(inner, wall, 0.2, 4)
    regions.append((3, carotid))
    _trachea(c, -20 * side + shift, lobe_y - 2)
    c.loss_db_mm += np.float32(c.rng.uniform(0, 0.2))
    skin_layer(c)
    return Scene(tuple(regions), measured=(1, 3))


def _nodule(c: Canvas, anatomy: np.random.Generator, lobe: Blob) -> Shape:
    """A round nodule in the lobe, darker than it, with a dark halo or a solid texture."""
    size = anatomy.uniform(2.0, 4.2)
    x, y = lobe.x + anatomy.uniform(-3, 3), lobe.y + anatomy.uniform(-1.5, 1.5)
    nodule = Blob(float(x), float(y), size * 1.15, size, 0, lumps(anatomy, (2, 3), 0.06))
    piece = c.near(nodule)
    piece.fill(nodule.grown(0.4)(piece.at), -9, edge=1.2)
    piece.fill(nodule(piece.at), anatomy.choice([-9.0, -6.0, -22.0]) + 2 * piece.noise(1.8, 1.5), -0.2, 1.2)
    return nodule


def _trachea(c: Canvas, x: float, y: float) -> None:
    """Cartilage, a bright front of air, then echoes of echoes."""
    ring = Blob(x, y + 9, 10, 9)
    piece = c.near(ring)
    air = ring(piece.at) + np.float32(1.5)
    piece.fill(air - 1.5, -12, 0.0, 2)
    piece.fill(air, -14 + 2 * piece.noise(5, 0.8), 0.7, 1.2)
    for k in range(3):
        piece.surface(air + np.float32(2.1 * k), 11 - 7 * k, 0.3, 9)


def skeletal_muscle(c: Canvas, body: Body, label: str | None, phase: float) -> Scene:
    """Fascicles at their pennation angle between two bright aponeuroses, under skin and fat."""
    anatomy, at = body.rng(), c.at
    depth = float(body.depth_mm)
    upper_y = 4 + 6 * body.fat + c.rng.uniform(-0.4, 0.4)
    lower_y = upper_y + depth * anatomy.uniform(0.38, 0.52)
    degrees = anatomy.uniform(9, 24) + c.rng.uniform(-2, 2)
    slope = c.rng.uniform(-0.05, 0.05)
    upper, lower = Layer(upper_y, slope, wavy(anatomy, 0.4, 60)), Layer(lower_y, slope, wavy(anatomy, 0.5, 70))
    fat_layer(c, everywhere(c), -6, body.coarseness)
    belly = Cut(upper, (lower,))
    tilt = slope - float(np.tan(np.deg2rad(degrees)))
    c.fill(upper(at), -14 + 2 * c.noise(12, 4), 0.05)
    _fascicles(c, upper(at), tilt, 13 - 4 * body.coarseness)
    under = lower(at)
    c.fill(under, -17 + 2 * c.noise(12, 3), 0.3)
    _fascicles(c, under, -tilt / 2, 8)
    for sheet, thick in ((upper, 0.35), (lower, 0.45)):
        c.fill(Band(sheet, thick)(at) + 0.3 * c.noise(5, 1), 5, edge=0.8)
        c.surface(sheet(at), 12, thick, 1)
    c.loss_db_mm += np.float32(c.rng.uniform(0.0, 0.3))
    skin_layer(c)
    return Scene(((1, belly),), targets={"pennation_deg": round(degrees, 2)}, measured=(1,))


def _fascicles(c: Canvas, level: Float, tilt: float, db: float) -> None:
    """Long thin bright strands, broken along their length."""
    broken = np.clip(0.8 + 0.4 * c.noise(6, 3), 0.2, 1.5)
    for long, thin in ((18, 0.75), (11, 0.6), (8, 0.5)):
        c.strands(level, c.noise(long, thin, tilt, 0.2 * broken) * broken, db)


SCENES: Mapping[str, Callable[[Canvas, Body, str | None, float], Scene]] = MappingProxyType(
    {
        scene.__name__: scene
        for scene in (breast, thyroid, fetal_head, heart, lung, gallbladder, skeletal_muscle, kidney)
    }
)
