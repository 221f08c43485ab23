"""The embedded data set `phantom`: simulated B-mode images whose masks, labels and measures are known exactly.

The physics is `ingest.phantom_scan.envelope`; the tissue that it looks at is painted, organ by organ, by
`ingest.phantom_scenes` with the brushes of `ingest.phantom_shapes`. Three steps, each deterministic:

* `plan(n, seed)`: which images there are (organ, patient, clip, frame); no pixels.
* `render(spec)`: the image of one spec; the same bytes in any process and in any order.
* `render_many(specs)`: the same for many, in their order.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ingest.phantom_scan import BEAMS, MARGIN, ROWS, SIZE, Geometry, Probe, display, envelope, geometry_of
from ingest.phantom_scenes import SCENES
from ingest.phantom_shapes import Body, Canvas, Scene, rasterise
from usdata.errors import ConfigError, DataError, nearest

FRAME_MEMORY = 0.75  # share of speckle power that one frame of a clip keeps from the clip (ours)

LINEAR = Probe("linear", width_mm=40.0, f_number=3.6)
CONVEX = Probe("convex", radius_mm=50.0, half_angle=33.0, f_number=3.2)
PHASED = Probe("phased", radius_mm=4.0, half_angle=42.0, f_number=4.5)


@dataclass(frozen=True, slots=True)
class Organ:
    """How one organ is represented in the data set.

    `share` is its number of images in the default set of 1000; `labels` are dealt to patients in turn; `depths` are the
    depths in mm a sonographer would choose; `images` is the range of images (or clips) of one patient.
    """

    share: int
    probe: Probe
    mhz: float
    depths: tuple[int, ...]
    mask_classes: tuple[str, ...]
    view: str
    labels: tuple[str | None, ...] = (None,)
    images: tuple[int, int] = (1, 4)
    frames: int = 1  # more than one: a cine
    fps: float | None = None
    crop: float = 1.0  # share of the sector's width that is kept in the picture
    gain_db: float = 0.0
    dynamic_db: float = 0.0  # how much wider than usual its preset is


ORGANS: Mapping[str, Organ] = MappingProxyType(
    {
        "breast": Organ(
            share=400,
            probe=LINEAR,
            gain_db=2.0,
            mhz=9.0,
            depths=(32, 36, 40),
            mask_classes=("background", "lesion"),
            view="radial",
            # The order of BUSI's proportions, 437 benign, 210 malignant and 133 normal
            labels=("benign", "malignant", "benign", "normal", "benign", "malignant", "benign"),
        ),
        "thyroid": Organ(
            share=200,
            probe=LINEAR,
            mhz=10.0,
            depths=(30, 34, 38),
            mask_classes=("background", "thyroid", "nodule", "carotid_artery"),
            view="transverse",
            labels=("normal", "nodule", "normal"),
        ),
        "fetal_head": Organ(
            share=140,
            probe=CONVEX,
            mhz=3.5,
            depths=(120, 135, 150),
            mask_classes=("background", "head"),
            view="transventricular",
            images=(1, 3),
            crop=0.74,
            gain_db=3.0,
        ),
        "heart": Organ(
            share=100,
            probe=PHASED,
            mhz=2.5,
            depths=(140, 155, 170),
            mask_classes=("background", "left_ventricle", "myocardium", "left_atrium"),
            view="apical_four_chamber",
            images=(1, 2),
            frames=8,
            fps=10.0,
            gain_db=3.0,
        ),
        "lung": Organ(
            share=72,
            probe=CONVEX,
            mhz=3.5,
            depths=(80, 95, 110),
            mask_classes=("background", "pleural_line", "b_line"),
            view="intercostal",
            labels=("a_lines", "b_lines"),
            images=(2, 4),
            crop=0.7,
            gain_db=-3.0,
            dynamic_db=12.0,
        ),
        "gallbladder": Organ(
            share=48,
            probe=CONVEX,
            mhz=3.5,
            depths=(100, 115, 130),
            mask_classes=("background", "gallbladder", "stone"),
            view="longitudinal",
            labels=("normal", "stones"),
            images=(1, 3),
            crop=0.85,
        ),
        "skeletal_muscle": Organ(
            share=28,
            probe=LINEAR,
            mhz=8.0,
            depths=(40, 50),
            mask_classes=("background", "muscle"),
            view="longitudinal",
            images=(2, 4),
        ),
        "kidney": Organ(
            share=12,
            probe=CONVEX,
            mhz=3.5,
            depths=(110, 125, 140),
            mask_classes=("background", "cortex", "medulla", "sinus"),
            view="longitudinal",
            labels=("normal", "hydronephrosis"),
            images=(1, 3),
            crop=0.85,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class PhantomSpec:
    """Everything that decides one image. Counts start at 0, patients at 1; `clip` and `frame` are None for a still."""

    organ: str
    seed: int
    patient: int  # number over the whole data set: one patient shows one organ
    case: int  # number of the patient among those of the same organ: it decides the label
    image: int  # number of the still or clip within the patient
    frame: int | None = None
    n_frames: int | None = None

    @property
    def patient_id(self) -> str:
        """For example "phantom-p0001"."""
        return f"phantom-p{self.patient:04d}"

    @property
    def clip(self) -> str | None:
        """For example "phantom-p0001-c0"; None for a still."""
        return None if self.frame is None else f"{self.patient_id}-c{self.image}"

    @property
    def source_id(self) -> str:
        """A path-like name, unique over all seeds and images: "seed-0/breast/phantom-p0001-0"."""
        still = f"seed-{self.seed}/{self.organ}/{self.patient_id}-{self.image}"
        return still if self.frame is None else f"{still}-f{self.frame:02d}"


@dataclass(frozen=True, slots=True)
class Phantom:
    """One simulated image with its truth.

    `image`: uint8 (256, 256), black outside of the sector. `mask`: uint8 (256, 256), indices into `mask_classes`; all 0
    where the image shows nothing of interest (a normal breast). `fields`: catalog columns by their names, in the
    catalog's units and types, so that a row needs only identity, hashes, rights and location in addition.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    mask_classes: tuple[str, ...]
    fields: dict[str, object]


def plan(n: int = 1000, seed: int = 0, organs: Collection[str] | None = None) -> list[PhantomSpec]:
    """What the data set holds, image by image: cheap, and the same for the same arguments.

    Args:
        n: number of images, at least 1. Organs keep the ratios of their shares; each gets at least one image as soon as
            there are as many images as organs. A clip counts with all of its frames.
        seed: at least 0; another seed means other patients.
        organs: draw only these; None means all of `ORGANS`.

    Raises:
        ConfigError: `n`, `seed` or an organ makes no sense (the message gives the nearest organs).
    """
    if n < 1:
        raise ConfigError(f"A phantom data set needs at least 1 image, not {n}.", dataset="phantom", step="list")
    if seed < 0:
        raise ConfigError(f"A seed is 0 or more, not {seed}.", dataset="phantom", step="list")
    chosen = list(ORGANS) if organs is None else [name for name in ORGANS if name in set(map(_known, organs))]
    if not chosen:
        raise ConfigError("No organ was asked for.", dataset="phantom", step="list", hint=_organs_hint())
    specs: list[PhantomSpec] = []
    patient = 0
    for name, count in zip(chosen, _shares(n, [ORGANS[name].share for name in chosen]), strict=True):
        case = 0
        while count:
            patient += 1
            more = _patient_specs(name, seed, patient, case, count)
            specs, count, case = specs + more, count - len(more), case + 1
    return specs


def render(spec: PhantomSpec) -> Phantom:
    """The image of `spec`. A pure function: no state, no clock, no global random numbers.

    Raises:
        ConfigError: `spec` names no organ of `ORGANS` (the message gives the nearest).
        DataError: `spec` has a negative number, or a frame outside of its clip.
    """
    organ = ORGANS[_known(spec.organ)]
    _check(spec)
    body = _body(spec, organ)
    geometry = geometry_of(organ.probe, float(body.depth_mm), organ.mhz, organ.crop)
    canvas = Canvas(geometry.beams, _rng(spec, "scene", image=True))
    scene = SCENES[spec.organ](canvas, body, _label(spec), 0.0 if spec.frame is None else spec.frame / organ.frames)
    echo = envelope(canvas.echo_db, canvas.loss_db_mm, canvas.coherent, geometry, _noise(spec))
    image = display(echo, geometry, body.gain_db, body.dynamic_db)
    mask = _mask(scene, geometry)
    return Phantom(image, mask, organ.mask_classes, _fields(spec, organ, body, scene, mask, geometry))


def render_many(specs: Iterable[PhantomSpec]) -> Iterator[Phantom]:
    """`render` of each spec, in order. Neighbours of one patient share the cached geometry.

    Raises:
        UsdataError: as `render`, at the spec concerned.
    """
    return map(render, specs)


def _mask(scene: Scene, geometry: Geometry) -> NDArray[np.uint8]:
    """Class index of each pixel; a later region lies over an earlier one."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for index, shape in scene.regions:
        window, inside = rasterise(shape, geometry.pixels)
        mask[window][inside] = index
    mask[geometry.inside == 0] = 0
    return mask


# --- who and what: patients, labels, catalog columns -------------------------------------------------------------

_STREAMS = {"body": 0, "scene": 1, "speckle": 2, "frame": 3}


def _rng(spec: PhantomSpec, stream: str, *, image: bool = False, frame: bool = False) -> np.random.Generator:
    """An own stream of random numbers per patient, or per image, or per frame."""
    key = [spec.seed, _STREAMS[stream], spec.patient]
    key += [spec.image + 1] if image else []
    key += [(spec.frame or 0) + 1] if frame else []
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _noise(spec: PhantomSpec) -> NDArray[np.complex64]:
    """The scatterers: circular complex Gaussian, unit power per part; within a clip most of them stay."""
    shape = (ROWS, BEAMS + 2 * MARGIN, 2)
    noise = _rng(spec, "speckle", image=True).standard_normal(shape, np.float32)
    if spec.frame is not None:
        fresh = _rng(spec, "frame", image=True, frame=True).standard_normal(shape, np.float32)
        noise = np.float32(FRAME_MEMORY**0.5) * noise + np.float32((1 - FRAME_MEMORY) ** 0.5) * fresh
    return noise.view(np.complex64)[..., 0]


def _body(spec: PhantomSpec, organ: Organ) -> Body:
    """What all images of one patient share: the patient's tissue and the settings of the scanner that day."""
    rng = _rng(spec, "body")
    return Body(
        depth_mm=int(rng.choice(organ.depths)),
        gain_db=organ.gain_db + float(np.clip(rng.normal(0, 2.5), -5, 5)),
        dynamic_db=organ.dynamic_db + float(rng.choice([54, 58, 62, 66])),
        fat=float(rng.random()),
        coarseness=float(rng.random()),
        size=float(rng.random()),
        seed=int(rng.integers(2**31)),
    )


def _label(spec: PhantomSpec) -> str | None:
    labels = ORGANS[spec.organ].labels
    return labels[spec.case % len(labels)]


def _fields(
    spec: PhantomSpec, organ: Organ, body: Body, scene: Scene, mask: NDArray[np.uint8], geometry: Geometry
) -> dict[str, object]:
    """The catalog's columns that the simulation knows."""
    area = geometry.pixel_mm[0] * geometry.pixel_mm[1]
    targets = dict(scene.targets)
    for index in scene.measured:
        targets[f"{organ.mask_classes[index]}_area_mm2"] = round(float(np.count_nonzero(mask == index)) * area, 1)
    return {
        "source_id": spec.source_id,
        "organ": spec.organ,
        "probe": organ.probe.word,
        "mode": "B-mode",
        "view": organ.view,
        "species": None,
        "synthetic": True,
        "label": _label(spec),
        "target": scene.target,
        "targets": json.dumps(targets, sort_keys=True) if targets else None,
        "patient": spec.patient_id,
        "clip": spec.clip,
        "frame": spec.frame,
        "n_frames": spec.n_frames,
        "fps": None if spec.frame is None else organ.fps,
        "pixel_mm_x": round(geometry.pixel_mm[0], 6),
        "pixel_mm_y": round(geometry.pixel_mm[1], 6),
        "depth_mm": float(body.depth_mm),
        "width": SIZE,
        "height": SIZE,
    }


def _patient_specs(organ: str, seed: int, patient: int, case: int, left: int) -> list[PhantomSpec]:
    """The images of one patient, at most `left`. A clip that does not fit is shortened, and says so in `n_frames`."""
    facts = ORGANS[organ]
    first = PhantomSpec(organ, seed, patient, case, image=0)
    low, high = facts.images
    count = int(_rng(first, "body", image=True).integers(low, high + 1))
    if facts.frames == 1:
        return [PhantomSpec(organ, seed, patient, case, image) for image in range(min(count, left))]
    specs: list[PhantomSpec] = []
    for image in range(count):
        length = min(facts.frames, left - len(specs))
        specs += [PhantomSpec(organ, seed, patient, case, image, frame, length) for frame in range(length)]
    return specs


def _shares(n: int, shares: Sequence[int]) -> list[int]:
    """`n` divided in the ratio of `shares` by largest remainders; nobody gets 0 while n suffices for all."""
    exact = [n * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    for index in sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))[: n - sum(counts)]:
        counts[index] += 1
    while n >= len(counts) and 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def _known(organ: str) -> str:
    if organ not in ORGANS:
        message = f"There is no phantom of {organ!r}.{nearest(organ, ORGANS)}"
        raise ConfigError(message, dataset="phantom", step="list", hint=_organs_hint())
    return organ


def _organs_hint() -> str:
    return f"Phantoms exist of: {', '.join(ORGANS)}"


def _check(spec: PhantomSpec) -> None:
    numbers = (spec.seed, spec.patient, spec.case, spec.image, spec.frame or 0)
    frames = ORGANS[spec.organ].frames
    if min(numbers) < 0 or (spec.frame is not None and spec.frame >= frames) or (spec.frame is None) != (frames == 1):
        raise DataError("bad_spec", f"No such phantom: {spec}.", dataset="phantom", item=spec.source_id, step="read")
