"""Organs that a curved or phased probe looks at through the wall of the body: see `ingest.phantom_scenes`."""

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
    edge_shadow,
    everywhere,
    lumps,
    muscle,
    vessels,
    wavy,
)


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
    tissue = -5 + 2.5 * fibres + 1.5 * rough
    # The septum belongs to the left ventricle: it is painted over the right one
    for wall_shape, chambers in ((right_wall, (right, right_atrium)), (outer, (left_atrium, ventricle))):
        c.fill(wall_shape(at) + 0.8 * rough, tissue, 0.01, 4)
        for chamber in chambers:
            c.fill(chamber(at) + 0.8 * rough, -33 + 3 * rough, 0.0, 5)
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
    ribs = tuple(Ray(side * anatomy.uniform(0.55, 0.85), anatomy.uniform(0.14, 0.26)) for side in (-1.0, 1.0))
    lines: list[tuple[int, Shape]] = [(1, Cut(Band(pleura, 0.9), ribs))]  # nobody sees it behind a rib
    c.surface(level, 12, 0.8, 1)
    if label == "b_lines":
        lines += [(2, Cut(ray, ribs)) for ray in _b_lines(c, anatomy, pleura)]
    else:
        for k in range(2, 5):  # the pleura seen again at twice, three times its depth
            again = Arc(pleura_r * k, pleura.bend * k)(at)
            c.echo_db += np.float32(13 - 1.5 * k) * np.exp(-(again**2) * np.float32(0.8)) * np.minimum(c.patches, 1.4)
    front = Arc(pleura_r * 0.62, 3)(at)
    for rib in ribs:
        shade = rib(at) + 4 * c.noise(12, 40)
        c.fill(np.maximum(shade, front), -20, 0.45, 16)
        c.echo_db += 18 * np.exp(-(front**2) * np.float32(0.7)) * np.clip(-shade / 8, 0, 1) * np.minimum(c.patches, 1.3)
    c.face(10)
    return Scene(tuple(lines))


def _b_lines(c: Canvas, anatomy: np.random.Generator, pleura: Arc) -> list[Shape]:
    """Bright rays from the pleura to the bottom of the picture that wipe out the A-lines."""
    rays: list[Shape] = []
    for _ in range(int(anatomy.integers(1, 5))):
        ray = Common(Ray(float(c.rng.uniform(-0.27, 0.27)), float(anatomy.uniform(0.025, 0.06))), pleura)
        c.fill(ray(c.at), c.rng.uniform(-4, 2) + 2.5 * c.noise(12, 1.2), 0.0, 5)
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
    edge_shadow(piece, level, 0.5)
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
