"""Fits the weights of the text check (ingest/deid/glyphs_weights.py) on drawn text over drawn and real scan areas.

Run: python benchmarks/glyph_weights.py --real /path/to/sample/data [--write ingest/deid/glyphs_weights.py] [--table]
The real pictures are the project's sample set (public, looked at one by one; those that show callipers or text are left
out by name). Every second pair of pictures is for fitting, the others are for the rates that are printed; the same seed
gives the same weights on the same machine. A head is a logistic score, linear in the logarithms of a window's pooled
steps and of what is usual in the picture. Each round adds the clean windows that score highest.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fakes.burned_text import COLOURS, MARKS, WORDS, Frame, Style, cover, draw_mark, draw_text, fonts, mark_cover
from fakes.scans import KINDS, draw_screen

from ingest.deid.glyphs_maps import (
    CELL,
    CHANNELS,
    QUICK,
    QUICK_DARK,
    USUAL,
    Steps,
    grey,
    logs,
    reference,
)
from ingest.phantom import plan, render

WINDOWS = {"small": (2, 2), "word": (2, 4)}  # in cells
BRIGHT = ("word", "short", "mark", "menu")
DIM = ("dark", "dark menu", "faint")
EVERY = range(CHANNELS)
#: Name: the window, the channels, and the kinds of ink it is fitted on
HEADS = {
    "small": ("small", EVERY, BRIGHT),
    "word": ("word", EVERY, BRIGHT),
    "dark": ("word", EVERY, ("dark", "dark menu")),
    "screen": ("word", QUICK, BRIGHT),
    "screen_dark": ("word", QUICK_DARK, ("dark", "dark menu")),
}
ONE = {"menu": "word", "dark menu": "dark"}  # what a menu is ten of
DARKEST = (0, 0, 0, 20, 35, 45)  # grey levels of dark ink
FAINTEST = (0.15, 0.2, 0.25, 0.35)  # covers of faint white ink
HEIGHTS = (7, 9, 11, 14, 18, 24, 32, 40)
SHORT = ("M1", "LK", "1", "2", "R", "A", "Rt", "D1", "3.2", "LOV")
LOOKS = (*COLOURS, "outlined", "half", "boxed")
KINDS_OF_INK = (*BRIGHT, *DIM)
# Pictures of the sample set in whose scan area text, callipers or a mark stand, or whose area the mask here misses
TEXT = ("benign (11).png", "benign (34).png", "benign (4).png", "benign (6).png", "malignant (13).png")
ROUNDS, PENALTY = 4, 10.0  # of adding hard windows; of squared standardised weights

Mask = NDArray[np.bool_]
Any2 = NDArray[Any]


@dataclass
class Clean:
    """A scan area without text. `name` is its source; `fit`: for fitting, not for the rates."""

    name: str
    frame: Frame
    mask: Mask
    fit: bool


@dataclass
class Case:
    """The windows of one picture, per head (logs, reference, ink under each window), and what was drawn on it."""

    name: str
    fit: bool
    kind: str  # clean, word, short, mark
    windows: dict[str, tuple[Any2, Any2, Any2]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


# --- clean scan areas -----------------------------------------------------------------------------------------------


def tissue_mask(frame: Frame, margin: int, level: int = 8) -> Mask:
    """The largest bright component, closed, without blackened rectangles: good enough to look at, not to publish by."""
    luma = grey(frame)
    found = (cv2.GaussianBlur(luma, (0, 0), 3) > level).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((9, 9), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(found)
    found = (labels == 1 + int(np.argmax(stats[1:, 4]))).astype(np.uint8)
    padded = cv2.copyMakeBorder(found, 60, 60, 60, 60, cv2.BORDER_CONSTANT, value=0)
    found = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (61, 61)))
    found = np.ascontiguousarray(found[60:-60, 60:-60])
    contours, _ = cv2.findContours(found, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = cv2.drawContours(np.zeros_like(found), [max(contours, key=cv2.contourArea)], -1, 1, -1)
    black = cv2.morphologyEx((luma == 0).astype(np.uint8), cv2.MORPH_OPEN, np.ones((25, 25), np.uint8))
    found[cv2.dilate(black, np.ones((9, 9), np.uint8)) > 0] = 0
    return shrunk(found > 0, margin)


def shrunk(mask: Mask, margin: int) -> Mask:
    """`mask` eroded by `margin` px; outside of the picture counts as outside of the mask."""
    side = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
    return cv2.erode(mask.astype(np.uint8), side, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


def within(frame: Frame, top: float, bottom: float, left: float, right: float) -> Mask:
    """A rectangle given in shares of the sides."""
    h, w = frame.shape[:2]
    mask = np.zeros((h, w), bool)
    mask[int(top * h) : int(bottom * h), int(left * w) : int(right * w)] = True
    return mask


def load(path: Path) -> Frame:
    """As RGB, or grey if all three channels are equal."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image.ndim == 3:
        image = np.ascontiguousarray(image[..., 2::-1])
        if not np.ptp(image, axis=2).any():
            image = image[..., 0].copy()
    return image


def real_areas(root: Path) -> Iterator[tuple[str, Frame, Mask]]:
    """The sample set's clean scan areas, by source."""
    for path in sorted(root.glob("busi/**/*.png")):
        if "_mask" not in path.name and path.name not in TEXT:
            mask = tissue_mask(frame := load(path), 3)
            mask[:40, :52] = False  # the maker's logo
            yield "busi", frame, mask
    for path in sorted(root.glob("hc18/**/*HC.png")):
        mask = tissue_mask(frame := load(path), 8)
        mask[:, :40], mask[-40:] = False, False
        yield "hc18", frame, mask
    for path in sorted(root.glob("usgra-seg/dataset/images/*.png")):
        yield "usgra-seg", (frame := load(path)), tissue_mask(frame, 4)
    for path in sorted(root.glob("timtrack-muscle/**/*")):
        if path.suffix.lower() in (".png", ".jpg", ".bmp"):
            yield "timtrack", (frame := load(path)), _muscle(frame, str(path))
    for path in sorted(root.glob("covid-blues/**/*.mp4")):
        frames = video(path)
        mask = tissue_mask(frames.max(0), 6, 6)
        yield from (("covid-blues", frames[i], mask) for i in range(0, len(frames), max(1, len(frames) // 4)))


def _muscle(frame: Frame, path: str) -> Mask:
    """TimTrack's screens; the shares were read off the pictures."""
    if "dataset 1" in path:
        mask = tissue_mask(frame, 10, 12)
        mask[:70, :50] = False
        return mask
    if "dataset 2" in path:
        return within(frame, 0.22, 0.85, 0.17, 0.82)
    if "dataset 3" in path:
        return within(frame, 0.24, 0.83, 0.29, 0.73)
    if "SampleA" in path:
        return within(frame, 0.12, 0.90, 0.22, 0.78)
    return tissue_mask(frame, 8, 14) & within(frame, 0, 0.78, 0, 1)


def video(path: Path) -> NDArray[np.uint8]:
    """(n, H, W, 3) RGB, or (n, H, W) if all frames are grey."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (got := capture.read())[0]:
        frames.append(got[1][..., ::-1])
    stack = np.stack(frames)
    return stack if np.ptp(stack, axis=3).any() else stack[..., 0].copy()


def drawn_areas() -> Iterator[tuple[str, Frame, Mask]]:
    """Drawn screens of every kind, some with colour flow, and simulated B-mode images."""
    sizes = ((600, 800), (480, 640), (768, 1024))
    for kind in KINDS:
        for seed in range(22):
            jpeg = None if seed % 2 else 90
            screen = draw_screen(
                kind, 100 + seed, sizes[seed % 3], colour=bool(seed % 4 // 2), jpeg=jpeg, doppler=seed % 9 == 8
            )
            yield "screens", screen.frames[0], shrunk(screen.truth, 3)
        for seed in range(3):  # what `TextCheck.end` looks at
            screen = draw_screen(kind, 200 + seed, sizes[seed], frames=10, colour=False)
            for still in (screen.frames.min(0), screen.frames.max(0)):
                yield "screens", still, shrunk(screen.truth, 3)
        for seed in range(16):  # dim ones
            screen = draw_screen(kind, 300 + seed, sizes[seed % 3], colour=False, gain=(0.45, 0.6, 0.75, 0.9)[seed % 4])
            yield "screens", screen.frames[0], shrunk(screen.truth, 3)
    for seed in range(32):
        yield "crisp", *crisp(seed)
    for spec in plan(1000, 7)[::28]:
        image = render(spec).image
        yield "phantom", image, tissue_mask(image, 5)


def crisp(seed: int) -> tuple[Frame, Mask]:
    """Log-compressed speckle of a fine grain, hardly interpolated: sharper than scanners show it.

    Without any interpolation its dark gaps are as sharp as ink; to let such pictures pass costs marks and short words.
    """
    rng = np.random.default_rng([seed, 77])
    grain, contrast = (1.5, 1.75, 2.0, 2.5)[seed // 2 % 4], float(rng.uniform(15, 30))
    real, imaginary = (cv2.GaussianBlur(rng.normal(size=(400, 480)), (0, 0), grain) for _ in range(2))
    echo = np.hypot(real, imaginary)
    y, x = np.mgrid[:400, :480]
    tissue = rng.uniform(50, 140) + 40 * np.sin(x / 70 + seed) * np.cos(y / 50)
    level = cv2.GaussianBlur(tissue + contrast * np.log(echo / echo.mean()), (0, 0), float(rng.uniform(0.45, 0.9)))
    frame = np.clip(level, 6 * (seed % 2), 255).astype(np.uint8)
    return frame, within(frame, 0.02, 0.98, 0.02, 0.98)


# --- what is drawn on them ------------------------------------------------------------------------------------------


def word(rng: np.random.Generator, words: tuple[str, ...], heights: tuple[int, ...]) -> tuple[str, Style, str]:
    """A text, its style and the name of its look."""
    look, font, height = str(rng.choice(LOOKS)), str(rng.choice(fonts())), int(rng.choice(heights))
    if font == "bitmap":
        height = max(7, round(height / 7) * 7)
    style = Style(
        font=font,
        height=height,
        colour=look if look in COLOURS else "white",
        smooth=bool(rng.random() < 0.6) or (font == "cv2" and height < 9),
        alpha=0.55 if look == "half" else 1.0,
        outline=look == "outlined",
        box=look == "boxed",
    )
    return str(rng.choice(words)), style, look


def place(rng: np.random.Generator, shape: tuple[int, int], mask: Mask) -> tuple[int, int] | None:
    """(x, y) of a rectangle (h, w) that lies wholly in `mask`."""
    h, w = shape
    if h >= mask.shape[0] or w >= mask.shape[1]:
        return None
    sums = cv2.integral(mask.astype(np.uint8))
    whole = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w] == h * w
    ys, xs = np.nonzero(whole)
    if not len(ys):
        return None
    k = int(rng.integers(len(ys)))
    return int(xs[k]), int(ys[k])


def burn(rng: np.random.Generator, frame: Frame, mask: Mask, kind: str) -> tuple[Frame, Mask, dict[str, Any]] | None:
    """One text or mark on `frame`, or None if it would not be plain to a reader's eye."""
    if kind == "mark":
        what, size = str(rng.choice(MARKS)), int(rng.choice((9, 11, 13, 17, 21)))
        size = max(size, 13) if what == "body" else size
        look = str(rng.choice(("white", "white", "yellow", "cyan", "green", "grey")))
        style = Style(colour=look, smooth=bool(rng.random() < 0.5), height=size)
        image = mark_cover(what, size, style.smooth)
    else:
        what, style, look = word(rng, *((WORDS, HEIGHTS) if kind == "word" else (SHORT, (9, 11, 14, 18, 24))))
        image = cover(what, style)
    at = place(rng, image.shape, mask)
    if at is None:
        return None
    out = draw_mark(frame, what, at, size, style)[0] if kind == "mark" else draw_text(frame, what, at, style)[0]
    ink = np.zeros(mask.shape, bool)
    ink[at[1] : at[1] + image.shape[0], at[0] : at[0] + image.shape[1]] = image > 100
    contrast, colour = plainness(out, ink)
    if contrast < 40 and colour < 90:
        return None
    return (
        out,
        ink,
        {"look": look, "height": style.height, "font": Path(style.font).stem, "contrast": contrast, "chroma": colour},
    )


def dim(rng: np.random.Generator, frame: Frame, mask: Mask, kind: str) -> tuple[Frame, Mask, dict[str, Any]] | None:
    """Dark ink, or faint white ink, on a grey `frame`; None if it could hardly be read."""
    what, style, _ = word(rng, (*WORDS, *SHORT), (9, 11, 14, 18, 24, 32))
    image = cover(what, style)
    at = place(rng, image.shape, mask)
    if at is None:
        return None
    level, alpha = (255, float(rng.choice(FAINTEST))) if kind == "faint" else (int(rng.choice(DARKEST)), 1.0)
    there = slice(at[1], at[1] + image.shape[0]), slice(at[0], at[0] + image.shape[1])
    share = image / 255 * alpha
    out, ink = frame.copy(), np.zeros(mask.shape, bool)
    out[there] = np.rint(frame[there] * (1 - share) + level * share)
    ink[there] = image > 100
    contrast, _ = plainness(out, ink)
    if contrast < (14 if kind == "dark" else 20) or (kind == "dark" and out[ink].mean() > frame[ink].mean()):
        return None
    facts = {"look": kind, "height": style.height, "font": Path(style.font).stem, "contrast": contrast, "chroma": 0.0}
    return out, ink, facts


def plainness(frame: Frame, ink: Mask) -> tuple[float, float]:
    """Grey levels between the ink's median and the mean around it; the ink's median chroma above that around it."""
    ring = (cv2.dilate(ink.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & ~ink
    luma = grey(frame).astype(float)
    colour = np.ptp(frame.astype(int), axis=2) if frame.ndim == 3 else np.zeros(ink.shape)
    return abs(float(np.median(luma[ink]) - luma[ring].mean())), float(np.median(colour[ink]) - colour[ring].mean())


# --- windows --------------------------------------------------------------------------------------------------------


def variants(
    rng: np.random.Generator, frame: Frame, mask: Mask, *, sizes: bool
) -> Iterator[tuple[Frame, Mask, int | None]]:
    """The picture, a JPEG of it (the quality is given, to be used after drawing); `sizes`: one smaller or larger."""
    yield frame, mask, None
    yield frame, mask, int(rng.choice([70, 80, 90, 95]))
    if not sizes:
        return
    small = min(frame.shape[:2]) > 300
    scale = float(rng.choice((0.5, 0.6, 0.75) if small else (1.3, 1.7)))
    how = cv2.INTER_AREA if small else cv2.INTER_LINEAR
    resized = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=how)
    size = (resized.shape[1], resized.shape[0])
    yield resized, shrunk(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0, 2), None


def jpeg(frame: Frame, quality: int | None) -> Frame:
    """`frame` after lossy JPEG."""
    if quality is None:
        return frame
    data = cv2.imencode(".jpg", frame if frame.ndim == 2 else frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    out = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    return out if out.ndim == 2 else np.ascontiguousarray(out[..., ::-1])


def windows(case: Case, plane: Frame, mask: Mask, ink: Mask | None) -> Case:
    """Fills `case.windows` from the grey picture."""
    steps = Steps(mask)
    cells = steps.all(plane)
    for name, (rows, columns) in WINDOWS.items():
        found = logs(cells, steps.coverage, rows, columns)
        if found is None:
            continue
        values, places = found
        usual, under = reference(values), np.zeros(len(places), int)
        if ink is not None:
            sums = cv2.integral(ink.astype(np.uint8))
            y, x = places.T * CELL
            y1, x1 = y + rows * CELL, x + columns * CELL
            under = sums[y1, x1] - sums[y, x1] - sums[y1, x] + sums[y, x]
            values, under = values[:, under > 2], under[under > 2]
        if len(under):
            case.windows[name] = (values.T.astype(np.float16), usual, under)
    return case


def cases(areas: list[Clean], seed: int = 5) -> Iterator[Case]:
    """Clean and burned pictures as windows. A menu is ten words: much text must not hide itself in what is usual."""
    rng = np.random.default_rng(seed)
    for area in areas:
        ys, xs = np.nonzero(area.mask)
        if len(ys) < 3000:
            continue
        cut = (slice(int(ys.min()), int(ys.max()) + 1), slice(int(xs.min()), int(xs.max()) + 1))
        made = variants(rng, np.ascontiguousarray(area.frame[cut]), area.mask[cut], sizes=area.name != "crisp")
        for frame, mask, quality in made:
            base = grey(frame)
            yield windows(Case(area.name, area.fit, "clean"), jpeg(base, quality), mask, None)
            for kind in KINDS_OF_INK:
                draw, one = (dim if kind in DIM else burn), ONE.get(kind, kind)
                burned = draw(rng, base, mask, one)
                for _ in range(9 if burned and one != kind else 0):
                    more = draw(rng, burned[0], mask, one)
                    burned = (more[0], burned[1] | more[1], burned[2]) if more else burned
                if burned:
                    case = Case(area.name, area.fit, kind, facts=burned[2] | {"jpeg": quality})
                    yield windows(case, jpeg(burned[0], quality), mask, burned[1])


# --- the fit --------------------------------------------------------------------------------------------------------


def features(values: Any2, at: Any2, channels: Sequence[int]) -> Any2:
    """(n, k + 2 u): a window's logs of k channels, and what is usual in the picture for those of them in `USUAL`."""
    fixed = at[:, [c for c in channels if c in USUAL]].reshape(1, -1)
    return np.concatenate([values[:, list(channels)], np.repeat(fixed, len(values), 0)], 1)


def logistic(x: Any2, y: Any2, weight: Any2) -> Any2:
    """Ridge logistic regression by Newton's method; the last weight is the constant."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
    ridge = np.diag([PENALTY] * (x.shape[1] - 1) + [1e-6])
    w = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (weight * (p - y)) + ridge @ w
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x + ridge
        move = np.linalg.solve(curve, slope)
        w -= move
        if np.abs(move).max() < 1e-4:
            break
    return w


def fit(data: list[Case], window: str, channels: Sequence[int], kinds: tuple[str, ...]) -> Any2:
    """Weights of a head: one for each channel, two for each that counts as usual, and the constant."""
    rng = np.random.default_rng(0)
    ink, clean = [], []
    pool = [c.windows[window] for c in data if c.fit and c.kind == "clean" and window in c.windows]
    for case in data:
        if case.fit and case.kind in kinds and window in case.windows:
            values, at, under = case.windows[window]
            best = np.argsort(-under, kind="stable")[:8]
            best = best[under[best] >= max(4, 0.6 * under.max())]
            ink.append(features(values[best], at, channels))
    for values, at, _ in pool:
        clean.append(features(values[rng.choice(len(values), min(len(values), 60), replace=False)], at, channels))
    yes = np.concatenate(ink)
    for turn in range(ROUNDS):
        no = np.concatenate(clean)
        x, y = np.concatenate([yes, no]), np.r_[np.ones(len(yes)), np.zeros(len(no))]
        mean, spread = x.mean(0), np.maximum(x.std(0), 0.3)
        weight = np.where(y > 0, 0.5 / len(yes), 0.5 / len(no)) * len(x)
        w = logistic((x - mean) / spread, y, weight)
        w = np.r_[w[:-1] / spread, w[-1] - (w[:-1] / spread * mean).sum()]
        if turn < ROUNDS - 1:
            for values, at, _ in pool:
                rows = features(values, at, channels)
                clean.append(rows[np.argsort(-(rows @ w[:-1]), kind="stable")[:12]])
    return w


def best_score(case: Case, window: str, channels: Sequence[int], w: Any2) -> float:
    """The highest score over windows (those with ink, where something was drawn)."""
    if window not in case.windows:
        return -99.0
    values, at, _ = case.windows[window]
    return float((features(values, at, channels) @ w[:-1] + w[-1]).max())


def rates(data: list[Case], fitted: dict[str, Any2]) -> None:
    """Prints, for pictures that were not used for fitting, what each threshold finds and what it takes for text."""
    held = [c for c in data if not c.fit]
    for name, w in fitted.items():
        window, channels, _ = HEADS[name]
        got = {
            kind: np.array([best_score(c, window, channels, w) for c in held if c.kind == kind])
            for kind in ("clean", *KINDS_OF_INK)
        }
        print(f"\n{name}: {len(got['clean'])} clean pictures held out")
        for at in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
            print(f"  > {at:.0f}: " + "  ".join(f"{kind} {(v > at).mean():.4f}" for kind, v in got.items()))
        scores = sorted(zip(got["clean"], (c.name for c in held if c.kind == "clean"), strict=True), reverse=True)
        print("  highest clean:", [(round(float(s), 1), n) for s, n in scores[:12]])


def write(path: Path, fitted: dict[str, Any2]) -> None:
    """The module of weights."""
    lines = [
        '"""Weights of the text check, fitted by benchmarks/glyph_weights.py. Do not edit.',
        "",
        "Per head: weights of each channel's log in the window, of what is usual in the picture, and the constant.",
        '"""',
        "",
    ]
    lines += ["# fmt: off"]
    for name, w in fitted.items():
        lines.append(f"{name} = (")
        numbers = [f"{v:.3f}" for v in w]
        lines += ["    " + " ".join(f"{n}," for n in numbers[i : i + 12]) for i in range(0, len(numbers), 12)]
        lines.append(")")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Fits, prints the rates of held-out pictures, and writes the weights where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="the sample data; without it only drawn scan areas are used")
    parser.add_argument("--write", type=Path, help="write the weights to this module")
    args = parser.parse_args()
    found = [*(real_areas(args.real) if args.real else ()), *drawn_areas()]
    areas = [Clean(name, frame, mask, i // 2 % 2 == 0) for i, (name, frame, mask) in enumerate(found)]
    data = list(cases(areas))
    fitted = {name: fit(data, *head) for name, head in HEADS.items()}
    rates(data, fitted)
    if args.write:
        write(args.write, {name.upper(): w for name, w in fitted.items()})


if __name__ == "__main__":
    main()
