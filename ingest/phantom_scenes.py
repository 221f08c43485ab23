"""Tissue for the simulated images, organ by organ: what lies where, how strongly it echoes, how much it damps.

Each function of `SCENES` paints a `Canvas` from back to front and returns the `Scene`: the exact outlines behind the
mask, and the measures. Numbers drawn from `anatomy` belong to the patient, those drawn from `c.rng` to the one image
(or clip). Layouts follow textbook anatomy; every number is ours.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from ingest.phantom_shapes import (
    Arc,
    Band,
    Blob,
    Body,
    Canvas,
    Common,
    Cut,
    Float,
    Layer,
    Ray,
    Scene,
    Shape,
    lumps,
    wavy,
)

# --- tissues that several organs share ---------------------------------------------------------------------------


def everywhere(c: Canvas) -> Float:
    """The level of a region without an outline."""
    return np.full_like(c.at.x, -10)


def fat_layer(c: Canvas, level: Float, echo: float, coarseness: float) -> None:
    """Fat: dark lobules in a net of bright septa."""
    net = c.noise(11 + 6 * coarseness, 2.4 + 1.6 * coarseness)
    c.fill(level, echo + 1.5 * net, edge=0.8)
    c.net(level, net, 13)
    c.strands(level, c.noise(6, 0.8), 4)


def muscle(c: Canvas, level: Float, echo: float, tilt: float = 0.0, db: float = 8.0) -> None:
    """Muscle: dark, with bright nearly parallel strands of perimysium at `tilt` mm of depth per mm."""
    unit = float(c.at.r[-1, 0]) / 40
    bundles = c.noise(13 * unit, 1.5 * unit, tilt)
    c.fill(level, echo + 2 * bundles, edge=0.5)
    c.strands(level, c.noise(9 * unit, 0.75 * unit, tilt), db)
    c.net(level, bundles, db)


def vessels(c: Canvas, rng: np.random.Generator, box: tuple[float, float, float, float], n: int, within: Shape) -> None:
    """Cut vessels: echo-free tubes and rounds, those of the portal tree with bright walls; box is x0, x1, y0, y1."""
    for index in range(n):
        a = rng.uniform(1.0, 3.0)
        waves = ((1, 0.2, rng.uniform(0, 6.3)), (3, 0.12, rng.uniform(0, 6.3)))
        x, y, length = rng.uniform(*box[:2]), rng.uniform(*box[2:]), a * rng.choice([1.2, 3.0, 7.0])
        tube = Blob(x, y, length, a, rng.uniform(-0.9, 0.9), waves)
        piece = c.near(tube)
        level = np.maximum(tube(piece.at), within(piece.at))
        if index % 2 == 0:
            piece.fill(level - 1.0, 4, edge=2.5)
        piece.fill(level, -20, edge=2.5)


# --- organs ------------------------------------------------------------------------------------------------------


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
    _skin(c)
    return scene


def _skin(c: Canvas) -> None:
    """Two bright lines with a band between them, under the ringing face of the probe."""
    skin = Layer(1.5, 0, wavy(c.rng, 0.15, 30))(c.at)
    c.fill(-skin, 4 + 2 * c.noise(12, 0.5), edge=0.4)
    c.surface(skin, 8, 0.15, 1)
    c.face(11)


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
        _edge_shadow(piece, level, 0.9)
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


def _edge_shadow(c: Canvas, level: Float, strength: float) -> None:
    """Refraction at the flanks of a smooth round thing casts two thin shadows."""
    across = np.abs(cv2.Sobel(level, cv2.CV_32F, 1, 0, scale=1 / 8) / c.at.pitch)
    c.loss_db_mm += np.float32(strength) * np.exp(-((level - 0.2) ** 2) * 4) * np.clip(across - 0.7, 0, 0.5)


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
    _skin(c)
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


def fetal_head(c: Canvas, body: Body, label: str | None, phase: float) -> Scene:
    """The standard plane for the head circumference: skull, midline, cavum, choroid plexus, thalami; fluid around."""
    anatomy, at = body.rng(), c.at
    depth = float(body.depth_mm)
    half = depth * (0.27 + 0.08 * body.size) * c.rng.uniform(0.98, 1.02)
    tilt = anatomy.uniform(-0.4, 0.4) + c.rng.uniform(-0.15, 0.15)
    x, y = depth * c.rng.uniform(-0.05, 0.05), depth * c.rng.uniform(0.5, 0.55)
    head = Blob(x, y, half * 1.25, half, tilt)
    womb = c.noise(18, 5)
    c.fill(everywhere(c), -9 + 2.5 * womb, 0.03)  # placenta and wall of the womb
    c.strands(everywhere(c), c.noise(24, 2.2, warp=2 * womb), 4)
    far = depth * anatomy.uniform(-0.16, 0.16)
    sac = Blob(
        x + far, y + 0.05 * depth, half * 1.7, half * anatomy.uniform(1.0, 1.2), tilt, lumps(anatomy, (2, 3), 0.1)
    )
    c.fill(sac(at) + 3 * womb, -30, -0.05, 9)
    level = head(at)
    c.fill(head.grown(half * 0.05)(at), -9, edge=2)
    c.fill(level, -19 + 2 * c.noise(12, 3) + 2 * c.noise(4, 2.5), 0.03, 2)
    _brain(c, head, anatomy)
    bone = Blob(head.x, head.y, head.a - 1.5, head.b - 1.5, tilt)(at)
    c.fill(np.abs(bone) - np.float32(1.2), 0, 0.5, 2.4)
    c.surface(bone, 25, 1.0, 4)
    flank = np.abs(at.x - np.float32(x)) * np.float32(1 / (half * 1.2))  # slanting bone lets little through
    c.loss_db_mm += np.where(level < 0, np.float32(0.1), np.float32(0.02)) * np.clip(flank, 0, 1.1) ** 4 * 3
    c.loss_db_mm += np.float32(c.rng.uniform(0, 0.06))
    c.face(12)
    circumference = round(head.perimeter(), 2)
    targets = {"head_circumference_mm": circumference, "biparietal_mm": round(2 * head.b, 2)}
    return Scene(((1, head),), circumference, targets)


def _brain(c: Canvas, head: Blob, anatomy: np.random.Generator) -> None:
    """Midline echo, broken by the cavum; thalami; a choroid plexus in the far ventricle; sulci near the skull."""
    cos, sin = float(np.cos(head.angle)), float(np.sin(head.angle))

    def part(along: float, across: float, a: float, b: float, turn: float = 0.0) -> Float:
        p, q = along * head.a, across * head.b
        x, y = head.x + p * cos - q * sin, head.y + p * sin + q * cos
        return Blob(x, y, a * head.a, b * head.b, head.angle + turn)(c.at)

    flip = 1.0 if anatomy.random() < 0.5 else -1.0
    folds = c.noise(13, 3.5, sin / cos)
    c.strands(part(0, 0, 0.92, 0.9), folds, 3.5)
    for side in (-1.0, 1.0):
        c.fill(part(0.06 * flip, 0.18 * side, 0.18, 0.14, 0.2 * side), -23, edge=4)  # thalamus
        wall = part(-0.2 * flip, 0.42 * side, 0.45, 0.02, 0.1 * side)
        c.echo_db += 12 * np.clip(0.5 - wall / 3, 0, 1) * np.minimum(c.patches, 1.5)
    c.fill(part(-0.5 * flip, 0.36, 0.30, 0.15, 0.25 * flip), -32, edge=2)
    c.fill(part(-0.45 * flip, 0.34, 0.22, 0.10, 0.25 * flip) + 1.5 * folds, -2, edge=4)
    midline = part(0, 0, 0.8, 0.008) + folds * np.float32(0.5)
    c.echo_db += 22 * np.clip(0.5 - midline / 3, 0, 1) * np.minimum(c.patches, 1.6)
    cavum = part(0.5 * flip, 0, 0.11, 0.075)
    c.fill(np.abs(cavum) - np.float32(0.5), 0, edge=2)
    c.fill(cavum + 1, -32, edge=1.5)


def heart(c: Canvas, body: Body, label: str | None, phase: float) -> Scene:
    """Four chambers from the apex: left ventricle on the right of the screen. Phase 0 is end-diastole, 0.4 end-systole,
    1 the next end-diastole."""
    anatomy, at = body.rng(), c.at
    unit = body.depth_mm / 155.0 * (0.92 + 0.16 * body.size)
    angle = phase / 0.4 if phase <= 0.4 else 1 + (phase - 0.4) / 0.6
    squeeze = float(np.sin(np.pi / 2 * angle) ** 2)
    strength = anatomy.uniform(0.15, 0.32)
    width, length = 1 - strength * squeeze, 1 - 0.35 * strength * squeeze
    x, lean = c.rng.uniform(-3, 3), anatomy.uniform(-0.12, 0.06)
    valve_y, wall = 88 * unit * (1 - 0.06 * squeeze), (9.5 + 2.5 * squeeze) * unit
    above = Cut(Layer(-400), (Layer(valve_y, -0.05),))
    long, wide = 62 * unit * length, 21 * unit * width
    ventricle = Common(Blob(13 * unit + x, valve_y, wide, long, lean, lumps(anatomy, (3, 4), 0.03)), above)
    outer = Common(
        Blob(13 * unit + x, valve_y, wide + wall, long + wall * 0.9, lean, lumps(anatomy, (3,), 0.02)), above
    )
    narrow = 0.6 + 0.4 * width
    right = Common(Blob(-21 * unit + x, valve_y, 17 * unit * narrow, 44 * unit * length, lean - 0.12), above)
    right_wall = Common(
        Blob(-21 * unit + x, valve_y, 17 * unit * narrow + 5, 44 * unit * length + 5, lean - 0.12), above
    )
    fill = 1 + 0.2 * squeeze  # the atria fill while the ventricles empty
    left_atrium = Blob(
        15 * unit + x, valve_y + 23 * unit, 18 * unit, 19 * unit * fill, 0.1, lumps(anatomy, (2, 3), 0.05)
    )
    right_atrium = Blob(
        -22 * unit + x, valve_y + 22 * unit, 17 * unit, 18 * unit * fill, -0.1, lumps(anatomy, (2, 3), 0.05)
    )
    rough = c.noise(9, 7)
    c.fill(everywhere(c), -23 + 4 * c.noise(30, 12) + 2 * rough, 0.02)  # lung and fat around
    c.strands(everywhere(c), c.noise(25, 4), 5)
    sac = Blob(-2 * unit + x, valve_y + 4 * unit, 46 * unit, 66 * unit, lean * 0.5, lumps(anatomy, (3, 4), 0.04))(at)
    c.fill(sac + rough, -12 + 2 * rough, 0.0, 10)
    c.surface(sac + rough, 8, 1.2, 3)
    fibres = c.noise(5, 3)
    for muscle_level in (right_wall(at), outer(at)):
        c.fill(muscle_level + 0.8 * rough, -5 + 2.5 * fibres + 1.5 * rough, 0.01, 4)
    for shape in (right, right_atrium, left_atrium, ventricle):
        c.fill(shape(at) + 0.8 * rough, -33 + 3 * rough, 0.0, 5)
    _valves(c, unit, x, valve_y, 0.0 if phase <= 0.4 else float(np.sin(np.pi * (phase - 0.4) / 0.6)))
    c.echo_db -= np.float32(c.rng.uniform(4, 10)) * at.u**2  # the edges of a phased array's sector see less
    c.echo_db += np.float32(c.rng.uniform(2, 6)) * c.noise(30, 80)  # windows between ribs
    c.face(14)
    atrium = Cut(left_atrium, (above,))
    return Scene(((2, Cut(outer, (ventricle,))), (1, ventricle), (3, atrium)), measured=(1,))


def _valves(c: Canvas, unit: float, x: float, y: float, opening: float) -> None:
    """Mitral and tricuspid leaflets, hinged at the rings; opening from 0 (closed) to 1."""
    for hinge, reach in ((-4.0, 18.0), (31.0, -17.0), (-7.0, -13.0), (-36.0, 14.0)):
        angle = 0.2 - 1.2 * opening
        dx, dy = float(np.sign(reach) * np.cos(angle)), float(np.sin(angle))
        half = abs(reach) * unit / 2
        left = x + hinge * unit
        for thing, echo, edge in (
            (Blob(left + dx * half, y - 2 + dy * half, half, 0.8, float(np.arctan2(dy, dx))), 3, 2.0),
            (Blob(left, y, 3.0 * unit, 2.4 * unit), 2, 4.0),
        ):
            piece = c.near(thing)
            piece.fill(thing(piece.at), echo, edge=edge)


def lung(c: Canvas, body: Body, label: str | None, phase: float) -> Scene:
    """Chest wall between two ribs, the pleura, and below it nothing but echoes of the wall: A-lines, or B-lines."""
    anatomy, at = body.rng(), c.at
    depth = float(body.depth_mm)
    pleura_r = depth * (0.17 + 0.10 * body.fat) * c.rng.uniform(0.97, 1.03)
    pleura = Arc(pleura_r, anatomy.uniform(-3, 3))
    muscle(c, everywhere(c), -6, anatomy.uniform(-0.15, 0.15), 14)
    level = pleura(at)
    streaks = c.noise(5, 0.9)
    beams = c.noise(4, 90)  # what lies below the pleura is made of whole beams, not of places
    fade = (at.r - np.float32(pleura_r)) * np.float32(20 / depth)
    c.fill(level, -7 - fade + 2 * streaks + 2 * beams - 5 * at.u**2, 0.0, 2)
    lines: list[tuple[int, Shape]] = [(1, Band(pleura, 0.9))]
    c.surface(level, 12, 0.8, 1)
    if label == "b_lines":
        lines += [(2, ray) for ray in _b_lines(c, anatomy, pleura)]
    else:
        for k in range(2, 5):  # the pleura seen again at twice, three times its depth
            again = Arc(pleura_r * k, pleura.bend * k)(at)
            c.echo_db += np.float32(13 - 1.5 * k) * np.exp(-(again**2) * np.float32(0.8)) * np.minimum(c.patches, 1.4)
    for side in (-1.0, 1.0):
        x = side * anatomy.uniform(0.55, 0.85)
        front = Arc(pleura_r * 0.62, 3)(at)
        shade = Ray(x, anatomy.uniform(0.14, 0.26))(at) + 4 * c.noise(12, 40)
        rib = np.maximum(shade, front)
        c.fill(rib, -20, 0.45, 16)
        c.echo_db += 18 * np.exp(-(front**2) * np.float32(0.7)) * np.clip(-shade / 8, 0, 1) * np.minimum(c.patches, 1.3)
    c.face(10)
    return Scene(tuple(lines))


def _b_lines(c: Canvas, anatomy: np.random.Generator, pleura: Arc) -> list[Shape]:
    """Bright rays from the pleura to the bottom of the picture that wipe out the A-lines."""
    rays: list[Shape] = []
    for _ in range(int(anatomy.integers(1, 5))):
        ray = Common(Ray(float(c.rng.uniform(-0.42, 0.42)), float(anatomy.uniform(0.03, 0.09))), pleura)
        c.fill(ray(c.at), c.rng.uniform(-7, -1) + 2.5 * c.noise(12, 1.2), 0.0, 5)
        rays.append(ray)
    return rays


def gallbladder(c: Canvas, body: Body, label: str | None, phase: float) -> Scene:
    """Liver with vessels, a pear of bile below it, enhancement behind; stones lie on its floor and cast shadows."""
    anatomy, at = body.rng(), c.at
    depth = float(body.depth_mm)
    wall_y = 9 + 9 * body.fat
    _liver(c, body, anatomy, wall_y, depth * 0.75)
    edge = Layer(depth * 0.82, anatomy.uniform(-0.35, -0.1), wavy(anatomy, 4, 150))(at)
    c.fill(edge, -9 + 3 * c.noise(18, 8), 0.08, 4)
    c.surface(edge, 10, 0.9, 2)  # diaphragm
    a, b = anatomy.uniform(24, 34), anatomy.uniform(10, 14)
    x, y = anatomy.uniform(-10, 12) + c.rng.uniform(-4, 4), depth * anatomy.uniform(0.42, 0.52)
    bag = Blob(x, y, a, b, anatomy.uniform(-0.5, 0.5), ((1, 0.16, 0.2), (3, 0.04, 1.0)))
    bowel = Blob(bag.x + 26, bag.y + 20, 19, 13, 0.2, lumps(anatomy, (2, 3, 5), 0.12))
    piece = c.near(bowel, slack=6)
    loop = bowel(piece.at)
    piece.fill(loop + 2 * piece.noise(8, 6), 1 + 4 * piece.noise(5, 3), 0.3, 5)
    piece.surface(loop + 3, 8, 1.0, 3)
    piece = c.near(bag)
    level = bag(piece.at)
    piece.fill(bag.grown(1.3)(piece.at), 3, edge=2.5)
    echoes = np.clip((np.float32(y - 0.4 * b) - piece.at.y) / np.float32(b), 0, 1)  # reverberation in its upper part
    piece.fill(level, -38 + 9 * echoes, -0.22, 1.8)
    piece.surface(level, 5, 0.6, 3)
    _edge_shadow(piece, level, 0.5)
    regions: list[tuple[int, Shape]] = [(1, bag)]
    if label == "stones":
        regions += [(2, stone) for stone in _stones(c, anatomy, bag)]
    c.loss_db_mm += np.float32(c.rng.uniform(0, 0.08))
    c.face(12)
    return Scene(tuple(regions), measured=(1,))


def _stones(c: Canvas, anatomy: np.random.Generator, bag: Blob) -> list[Shape]:
    """One to three stones where gravity puts them."""
    stones: list[Shape] = []
    for _ in range(int(anatomy.integers(1, 4))):
        size, along = anatomy.uniform(2.5, 5.5), anatomy.uniform(-0.4, 0.5) * bag.a
        x = bag.x + along * np.cos(bag.angle)
        floor = bag.y + along * np.sin(bag.angle) + bag.b * (1 - (along / bag.a) ** 2) ** 0.5
        pebble = Blob(float(x), float(floor - size * 0.75), size * 1.15, size * 0.8, 0, lumps(anatomy, (3, 4), 0.05))
        stone = Common(pebble, bag)
        piece = c.near(pebble)
        level = stone(piece.at)
        piece.fill(level, 4, 4.0, 1.5)
        piece.surface(level, 15, 0.9, 3)
        stones.append(stone)
    return stones


def _liver(c: Canvas, body: Body, anatomy: np.random.Generator, y: float, bottom: float) -> None:
    """Skin, fat and muscle down to depth y, then liver with vessels as far as `bottom`."""
    at = c.at
    layers = c.noise(35, 2.5)
    c.fill(everywhere(c), -4 + 3 * layers, 0.0)
    c.net(everywhere(c), layers, 7)
    muscle(c, Band(Layer(y * 0.75, 0, wavy(anatomy, 1, 70)), y * 0.2)(at), -10, db=7)
    edge = Layer(y, 0, wavy(anatomy, 1, 70))
    liver = edge(at)
    c.fill(liver, 1.2 * c.noise(3, 2) + 1.2 * c.noise(22, 14) + np.float32(c.rng.uniform(-2, 1)), 0.03, 2)
    c.surface(liver, 6, 0.6)
    vessels(c, anatomy, (-50, 50, y + 8, bottom), 5, edge)


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
    _skin(c)
    return Scene(((1, belly),), targets={"pennation_deg": round(degrees, 2)}, measured=(1,))


def _fascicles(c: Canvas, level: Float, tilt: float, db: float) -> None:
    """Long thin bright strands, broken along their length."""
    broken = np.clip(0.8 + 0.4 * c.noise(6, 3), 0.2, 1.5)
    for long, thin in ((18, 0.75), (11, 0.6), (8, 0.5)):
        c.strands(level, c.noise(long, thin, tilt, 0.2 * broken) * broken, db)


def kidney(c: Canvas, body: Body, label: str | None, phase: float) -> Scene:
    """Lengthwise beside the liver: capsule, dark cortex, darker pyramids around a bright sinus, dilated if diseased."""
    anatomy, at = body.rng(), c.at
    depth = float(body.depth_mm)
    wall_y = 8 + 8 * body.fat
    _liver(c, body, anatomy, wall_y, depth * 0.4)
    x, y = c.rng.uniform(-6, 6), depth * anatomy.uniform(0.5, 0.56)
    waves = ((2, 0.04, 0.0), (3, 0.03, anatomy.uniform(0, 6.3)))
    organ = Blob(x, y, 46 + 8 * body.size, 20 + 4 * body.size, anatomy.uniform(-0.3, 0.3), waves)
    behind = Layer(y + 4, anatomy.uniform(-0.1, 0.2), wavy(anatomy, 4, 80))(at)
    c.fill(behind + 2 * c.noise(15, 9), -7 + 3 * c.noise(15, 4), 0.06, 6)
    muscle(c, Layer(depth * 0.78, 0.05, wavy(anatomy, 3, 90))(at), -9)
    piece = c.near(organ, slack=8)
    fat = organ.grown(2.5)(piece.at) + 1.5 * piece.noise(12, 9)
    piece.fill(fat, 3 + 2 * piece.noise(6, 3), edge=4)
    level = organ(piece.at)
    piece.fill(level, -7 + 1.5 * piece.noise(3, 2), 0.0, 2.5)
    piece.surface(level, 6, 0.7, 2)
    sinus = Blob(x, y, organ.a * 0.52, organ.b * 0.42, organ.angle, lumps(anatomy, (3, 5, 7), 0.14))
    pyramids = _pyramids(c, anatomy, organ)
    piece = c.near(sinus, slack=8)
    piece.fill(sinus(piece.at) + 1.5 * piece.noise(5, 3), 5 + 4 * piece.noise(5, 2.5), 0.1, 5)
    if label == "hydronephrosis":
        pelvis = Blob(x, y + 1, organ.a * 0.36, organ.b * 0.27, organ.angle, lumps(anatomy, (3, 4, 5), 0.2))
        piece.fill(pelvis(piece.at), -38, -0.25, 2.5)
    c.loss_db_mm += np.float32(c.rng.uniform(0, 0.1))
    c.face(12)
    medulla = tuple((2, pyramid) for pyramid in pyramids)
    targets = {"length_mm": round(2 * organ.a, 1)}
    return Scene(((1, organ), *medulla, (3, sinus)), targets=targets, measured=(1, 2, 3))


def _pyramids(c: Canvas, anatomy: np.random.Generator, organ: Blob) -> list[Shape]:
    """Pyramids of the medulla in a ring between cortex and sinus."""
    found: list[Shape] = []
    cos, sin = np.cos(organ.angle), np.sin(organ.angle)
    for index in range(8):
        phi = 2 * np.pi * (index + anatomy.uniform(-0.25, 0.25)) / 8
        p, q = 0.66 * organ.a * np.cos(phi), 0.64 * organ.b * np.sin(phi)
        x, y = organ.x + p * cos - q * sin, organ.y + p * sin + q * cos
        a, b = organ.b * anatomy.uniform(0.16, 0.24), organ.b * anatomy.uniform(0.2, 0.28)
        pyramid = Blob(float(x), float(y), float(a), float(b), float(phi + organ.angle), ((3, 0.12, 0.0),))
        piece = c.near(pyramid)
        piece.fill(pyramid(piece.at), -14, edge=3.5)
        found.append(pyramid)
    return found


SCENES: Mapping[str, Callable[[Canvas, Body, str | None, float], Scene]] = MappingProxyType(
    {
        scene.__name__: scene
        for scene in (breast, thyroid, fetal_head, heart, lung, gallbladder, skeletal_muscle, kidney)
    }
)
