"""The scanner behind the simulated images: where its beams run, how they blur, what becomes of the echo.

Read `envelope` first: it is the physics of a pulse-echo image in a dozen lines. The model is a linear one on a grid of
beams. A resolution cell holds many scatterers, so what each grid point adds is circular complex Gaussian noise, scaled
by the tissue's echogenicity (Wagner et al., IEEE Trans. Sonics Ultrason. 30, 1983); smooth interfaces add a coherent
echo. A modulated Gaussian pulse and a focused beam blur both, in baseband, where the carrier is only the random phase
of a scatterer. Attenuation is compensated for average tissue, so whatever damps more casts a shadow, and what lies
behind a fluid is enhanced.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ingest.phantom_shapes import Float, Points

SIZE = 256  # pixels per side of image and mask
ROWS, BEAMS, MARGIN = 256, 136, 4  # axial samples, beams across the picture, spare beams outside of each edge
SPEED_MM_MHZ = 1.54  # speed of sound in soft tissue, mm per microsecond
SMOOTHING = 0.65  # the scanner's smoothing of the compressed echo, deviation in samples (ours)
_NEPER = np.float32(np.log(10) / 20)  # dB to natural logarithm of amplitude


@dataclass(frozen=True, slots=True)
class Probe:
    """A transducer. Lengths in mm, angles in degrees; `width_mm` is for linear, radius and angle for curved arrays."""

    word: str  # the catalog's word
    width_mm: float = 0.0
    radius_mm: float = 0.0
    half_angle: float = 0.0
    f_number: float = 3.0


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the beams and the pixels of one probe setting lie, and how wide the beam is. Arrays are read-only."""

    beams: Points  # (ROWS, BEAMS + 2 * MARGIN)
    pixels: Points  # (SIZE, SIZE)
    inside: NDArray[np.uint8]  # (SIZE, SIZE), 255 in the sector, 0 outside
    map_x: Float  # (SIZE, SIZE), beam number at a pixel
    map_y: Float  # (SIZE, SIZE), sample number at a pixel
    pixel_mm: tuple[float, float]  # x, y
    lateral: Float  # (ROWS, BEAMS + 2 * MARGIN), spectrum of the beam profile along the beams, of unit energy
    pulse: Float  # (taps, 1), envelope of the pulse, of unit energy


@lru_cache(maxsize=48)
def geometry_of(probe: Probe, depth: float, mhz: float, crop: float) -> Geometry:
    """Beam grid and scan conversion of `probe` at `depth` mm; `crop` keeps the middle part of a sector's width."""
    rows = (np.arange(ROWS) + 0.5) * depth / ROWS
    fans = (np.arange(-MARGIN, BEAMS + MARGIN) + 0.5) / BEAMS * 2 - 1  # -1 and 1 are the edges of the field of view
    r, u = np.broadcast_arrays(rows[:, None], fans[None, :])
    grid = (np.arange(SIZE) + 0.5) / SIZE
    if probe.word == "linear":
        half, top, bottom = probe.width_mm / 2, 0.0, depth
        px, py = np.meshgrid((grid * 2 - 1) * half, grid * depth)
        x, y, pixel_r, pixel_u = u * half, r, py, px / half
        pitch = np.full(ROWS, probe.width_mm / BEAMS)
    else:
        angle, radius = np.deg2rad(probe.half_angle), probe.radius_mm
        half = (radius + depth) * np.sin(angle) * crop * 1.02
        top, bottom = radius * (np.cos(angle) - 1) - 0.02 * depth, depth * 1.02
        px, py = np.meshgrid((grid * 2 - 1) * half, top + grid * (bottom - top))
        x, y = (radius + r) * np.sin(u * angle), (radius + r) * np.cos(u * angle) - radius
        pixel_r, pixel_u = np.hypot(px, py + radius) - radius, np.arctan2(px, py + radius) / angle
        pitch = (radius + rows) * 2 * angle / BEAMS
    inside = (abs(pixel_u) <= 1) & (pixel_r >= 0) & (pixel_r <= depth)
    pixel_mm = (float(2 * half / SIZE), float((bottom - top) / SIZE))
    x, y, r, u, gaps = _frozen(x, y, r, u, pitch[:, None])
    px, py, far, fan, widths = _frozen(px, py, pixel_r, pixel_u, np.full((SIZE, 1), pixel_mm[0]))
    return Geometry(
        beams=Points(x, y, r, u, gaps, depth / ROWS),
        pixels=Points(px, py, far, fan, widths, pixel_mm[1]),
        inside=_frozen(np.where(inside, 255, 0), kind=np.uint8)[0],
        map_x=_frozen((pixel_u + 1) / 2 * BEAMS + MARGIN - 0.5)[0],
        map_y=_frozen(pixel_r / depth * ROWS - 0.5)[0],
        pixel_mm=pixel_mm,
        lateral=_frozen(_beam_spectrum(probe, rows, pitch, mhz))[0],
        pulse=_frozen(_pulse(depth / ROWS, mhz))[0],
    )


def _frozen(*arrays: NDArray[Any], kind: type[np.generic] = np.float32) -> list[NDArray[Any]]:
    """Contiguous copies that nobody can change: they are cached and shared."""
    copies = [np.array(array, kind, order="C") for array in arrays]
    for array in copies:
        array.flags.writeable = False
    return copies


def _beam_spectrum(probe: Probe, rows: NDArray[Any], pitch: NDArray[Any], mhz: float) -> Float:
    """Spectrum over beam number of the two-way beam profile at each depth, energy 1: narrow at the focus, wider away.

    A Gaussian of full width lambda * F at the focus, plus a faint skirt ten times as wide for side lobes and clutter.
    """
    focus = 0.55 * rows[-1]  # ours: one transmit focus a little below the middle
    waist = SPEED_MM_MHZ / mhz * probe.f_number / 2.355
    spread = 0.35 * waist / focus if probe.word == "linear" else 0.0
    aperture_mm = np.hypot(waist, spread * 2 * (rows - focus))
    # Far beyond the aperture a sector's beam is as wide as its angle: F grows with depth
    width = aperture_mm if probe.word == "linear" else aperture_mm * np.maximum(rows / focus, 0.45)
    sigma = np.maximum(width / pitch, 0.8)[:, None]  # in beams; the display shows nothing finer than a beam
    k = scipy.fft.fftfreq(BEAMS + 2 * MARGIN)[None, :]
    spectrum = np.exp(-2 * (np.pi * k * sigma) ** 2) + 0.08 * np.exp(-2 * (np.pi * k * sigma * 10) ** 2)
    energy = np.mean(spectrum**2, axis=1, keepdims=True)  # Parseval: sum over beams of the profile squared
    return spectrum / np.sqrt(energy)


def _pulse(step_mm: float, mhz: float) -> Float:
    """Envelope of a three-cycle pulse sampled every `step_mm`, energy 1; never shorter than the display resolves."""
    sigma = max(3 * SPEED_MM_MHZ / mhz / 2 / 2.355 / step_mm, 0.95)
    taps = np.arange(-int(np.ceil(3.5 * sigma)), int(np.ceil(3.5 * sigma)) + 1)
    pulse = np.exp(-((taps / sigma) ** 2) / 2)
    return (pulse / np.sqrt(np.sum(pulse**2)))[:, None]


def envelope(echo_db: Float, loss_db_mm: Float, coherent: Float, geometry: Geometry, noise: NDArray[Any]) -> Float:
    """Detected echo amplitude on the beam grid.

    Args:
        echo_db: (rows, beams), backscatter of the tissue in dB; 0 is the reference (liver-like) tissue.
        loss_db_mm: (rows, beams), two-way attenuation beyond what the time gain compensates, dB per mm; negative
            where the tissue damps less than average (fluid).
        coherent: (rows, beams), amplitude of specular echoes, the reference tissue's r.m.s. being 1.
        geometry: beams, pulse and beam profile.
        noise: (rows, beams), complex64, circular Gaussian of unit power: the sum over a cell's scatterers.

    Returns:
        (rows, beams), float32. In reference tissue it is Rayleigh distributed with mean square 2: mean / std = 1.91.
    """
    blur = cv2.blur(loss_db_mm, (7, 1), borderType=cv2.BORDER_REPLICATE)  # an aperture looks around small obstacles
    damping = np.cumsum(blur, axis=0, dtype=np.float32) * np.float32(geometry.beams.step_mm)
    gain = np.exp(_NEPER * (echo_db - damping))
    specular = coherent * np.exp(-_NEPER * damping)
    field = noise * (gain + np.float32(0.55) * specular)  # real interfaces are rough: part of their echo is diffuse
    field += np.float32(0.45) * specular
    field = scipy.fft.ifft(scipy.fft.fft(field, axis=1) * geometry.lateral, axis=1)
    floor = np.exp(_NEPER * np.linspace(-46, -34, len(field), dtype=np.float32))  # amplified with depth, like the echo
    field += floor[:, None] * noise[::-1, ::-1]  # electronic noise has no beam; far from the echo it stands beside
    pairs = field.view(np.float32).reshape(*field.shape, 2)
    pairs = cv2.sepFilter2D(pairs, -1, np.ones(1, np.float32), geometry.pulse, borderType=cv2.BORDER_REFLECT)
    return cv2.magnitude(pairs[..., 0], pairs[..., 1])


def display(echo: Float, geometry: Geometry, gain_db: float, dynamic_db: float) -> NDArray[np.uint8]:
    """Log compression of `dynamic_db` decibels to 0..255, then scan conversion; black outside of the sector."""
    # The reference tissue lies at 45 % of the grey scale (ours); speckle and specular echoes need the rest
    level = np.log(echo + np.float32(1e-6))
    level *= np.float32(255 / dynamic_db) / _NEPER
    level += np.float32(255 * (0.45 + gain_db / dynamic_db))
    level = cv2.GaussianBlur(level, (3, 3), SMOOTHING)
    picture = cv2.remap(level, geometry.map_x, geometry.map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    grey = np.clip(picture, 0, 255, out=picture).astype(np.uint8)
    return np.bitwise_and(grey, geometry.inside)
