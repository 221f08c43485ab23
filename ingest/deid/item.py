"""One file, the whole way: examine it, find its scan area, check every frame, and give what may be stored.

Runs in the isolated child only. Read `clean` first. Sources: anonymization.md, sections 1, 6 and 8.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ingest import preprocess
from ingest.card import Card
from ingest.deid.area import ScanArea, Summary, find_area, summarise
from ingest.deid.device import Device, Region
from ingest.deid.glyphs import TextCheck
from ingest.deid.header import RATE, Header, keep
from ingest.deid.identifiers import file_identifiers, path_identifiers
from ingest.deid.identity import Identity
from ingest.deid.isolate import Message
from ingest.deid.reasons import Reason, Refusal
from ingest.deid.rules import DEID_VERSION, Rules
from ingest.deid.selfcheck import SelfCheck
from ingest.deid.templates import Templates, load_templates
from ingest.deid.values import number
from ingest.deid.vocabulary import allowed_words
from ingest.preprocess import Box
from ingest.readers import dicom, image, sniff, video
from usdata import png
from usdata.errors import DataError

SAMPLED = 64  # frames from which the scan area of a cine is found; text is looked for in every frame. Ours
HELD = 128 << 20  # bytes of decoded frames below which a clip is decoded once only
SHOWN = 1600  # longest side of a picture for review
LAST_DAY = date(2099, 12, 31)  # of believable dates: fixed, so that the same file gives the same row on any day. Ours

_COLOURED = ("elastography", "CEUS")  # modes whose pictures hold colour that is no flow

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tools:
    """What every item needs and no item changes."""

    card: Card
    rules: Rules
    identity: Identity
    templates: Templates
    allowed: frozenset[str]
    interpolation: str  # of the lake

    @classmethod
    def load(cls, card: Card, rules: Rules, interpolation: str) -> "Tools":
        """Key and templates from their files.

        Raises:
            ConfigError: one of them can't be used.
        """
        templates = load_templates(rules.templates)
        allowed = allowed_words() | card.words() | {rules.issuer}
        return cls(card, rules, rules.identity(), templates, allowed, interpolation)

    @property
    def checks_text(self) -> bool:
        """Published pictures keep their callipers and labels; private ones only where a rule was relaxed."""
        return self.rules.private and "text" not in self.card.relax


@dataclass(frozen=True, slots=True)
class Opened:
    """A file whose header was read, and how to get at its frames."""

    kind: str  # dicom, video, image
    path: Path
    frames: int
    fps: float | None
    header: Header | None  # of DICOM
    dicom: Any = None
    still: Pixels | None = None

    @property
    def regions(self) -> tuple[Region, ...]:
        """The calibrated regions that the file states."""
        return self.header.regions if self.header else ()

    @property
    def device(self) -> Device:
        """The scanner, as far as the file states it in known words."""
        return self.header.device if self.header else Device()

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """The frames `indices`, ascending, each (H, W) or (H, W, 3) RGB."""
        if self.kind == "dicom":
            yield from dicom.read_frames(self.dicom, indices)
        elif self.kind == "video":
            yield from video.read_frames(self.path, indices)
        else:
            yield from ((0, self.still) for _ in indices if self.still is not None)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A frame that may be stored, with the columns that cleaning decided."""

    index: int
    image: Pixels  # (256, 256)
    row: dict[str, Any]


class TextFound(Refusal):
    """Text-like content in the scan area: where, and in which frame."""

    def __init__(self, box: Box, frame: Pixels | None) -> None:
        super().__init__(Reason.TEXT_IN_SCAN_AREA, "pixels")
        self.box, self.frame = box, frame


def open_item(path: Path, tools: Tools, decode: bool = True) -> Opened:
    """Read a file's header, or decode it if it is a still image and `decode` is wanted.

    Raises:
        Refusal, DataError: it can't be read, or is no ultrasound picture.
    """
    if sniff.is_dicom(path):
        opened = dicom.open_dicom(path)
        header = keep(opened.dataset, tools.identity, today=LAST_DAY)
        return Opened("dicom", path, opened.frames, header.row.get("fps"), header, opened)
    with path.open("rb") as file:
        head = file.read(16)
    if video.is_video(head):
        info = video.probe(path)
        return Opened("video", path, info.n_frames, number(info.fps, *RATE, digits=4), None)
    if not decode:
        image.image_format(head)  # refuses what is no image
        return Opened("image", path, 1, None, None)
    return Opened("image", path, 1, None, None, still=image.read_image(path))


def find_scan_area(opened: Opened, tools: Tools, held: dict[int, Pixels]) -> ScanArea:
    """The scan area of all frames, from at most `SAMPLED` evenly spaced ones; `held` receives those it decodes.

    Raises:
        Refusal: no_scan_area, area_differs.
    """
    summary: Summary = summarise(_kept(opened.read(video.choose_frames(opened.frames, 1, SAMPLED)), held))
    return find_area(summary, opened.regions, opened.device, tools.templates)


def _kept(frames: Iterator[tuple[int, Pixels]], held: dict[int, Pixels]) -> Iterator[Pixels]:
    size = 0
    for index, frame in frames:
        size += frame.nbytes
        if size <= HELD:
            held[index] = frame
        yield frame


def clean(opened: Opened, wanted: Sequence[int], tools: Tools) -> Iterator[Cleaned | None]:
    """The frames `wanted` of an item, cleaned; None after each other frame, as a sign of life.

    Raises:
        Refusal: no_scan_area, text_in_scan_area, pixel_length, ...
    """
    held: dict[int, Pixels] = {}
    area = find_scan_area(opened, tools, held)
    yield None
    yield from clean_within(area, opened, wanted, tools, held)


def clean_within(
    area: ScanArea, opened: Opened, wanted: Sequence[int], tools: Tools, held: dict[int, Pixels]
) -> Iterator[Cleaned | None]:
    """`clean` for a scan area that was found; `held`: frames that are decoded already.

    Every frame is decoded and looked at for text, wanted or not, before the first is given: one bad frame keeps the
    whole item out.

    Raises:
        Refusal: text_in_scan_area, pixel_length, frame_missing.
    """
    check = TextCheck(area.mask, area.box) if tools.checks_text else None
    cut = _Cut(area, tools)
    ready = []
    chosen = frozenset(wanted)
    for index, frame in _all_frames(opened, held):
        if frame.shape[:2] != area.mask.shape:
            raise Refusal(Reason.PIXEL_LENGTH, "pixels")
        if check and (box := check.look(frame)):
            raise TextFound(box, frame)
        if index in chosen:
            ready.append(Cleaned(index, *cut.frame(frame)))
        yield None
    if check and (box := check.end()):
        raise TextFound(box, None)
    yield from ready


def _all_frames(opened: Opened, held: dict[int, Pixels]) -> Iterator[tuple[int, Pixels]]:
    """Every frame in order. Those that are held are not decoded again, unless a video must be read in one go."""
    if opened.kind == "video" and len(held) < opened.frames:
        held.clear()
    others = opened.read([index for index in range(opened.frames) if index not in held])
    for index in range(opened.frames):
        if index in held:
            yield index, held.pop(index)
            continue
        found = next(others, None)
        if found is None or found[0] != index:
            raise Refusal(Reason.FRAME_MISSING, "pixels")
        yield found


class _Cut:
    """From a whole frame to the stored image: zero outside the mask, crop, grey, resize; each result is verified."""

    def __init__(self, area: ScanArea, tools: Tools) -> None:
        x0, y0, x1, y1 = self.box = area.box
        self.inside = np.ascontiguousarray(area.mask[y0:y1, x0:x1]).astype(np.uint8) * 255
        self.outside = cv2.bitwise_not(self.inside)
        self.limit, self.interpolation = tools.card.colour_limit, tools.interpolation
        height, width = area.mask.shape
        self.row = {
            **{"width": width, "height": height, "crop_x0": x0, "crop_y0": y0, "crop_x1": x1, "crop_y1": y1},
            **{"deid_version": DEID_VERSION, "mask_source": area.source, "mask_score": round(float(area.score), 4)},
            "burned_in": "no" if tools.checks_text else "unknown",
        }

    def frame(self, frame: Pixels) -> tuple[Pixels, dict[str, Any]]:
        """The (256, 256) image of a frame, and its columns."""
        x0, y0, x1, y1 = self.box
        part = frame[y0:y1, x0:x1]
        kept = cv2.bitwise_and(part, part, mask=self.inside).astype(np.uint8, copy=False)
        grey = preprocess.to_grey(kept)
        if cv2.countNonZero(cv2.bitwise_and(grey, self.outside)):
            raise Refusal(Reason.NOT_ZERO_OUTSIDE, "pixels")
        coloured = preprocess.colour_share(kept) > self.limit
        return preprocess.resize(grey, self.interpolation), self.row | ({"mode": "colour_doppler"} if coloured else {})


# --- the child's tasks ------------------------------------------------------------------------------------------------


def answer_examine(tools: Tools, content: dict[str, Any]) -> Iterator[Message]:
    """The header's columns, and how many frames there are; no pixel leaves."""
    opened = open_item(Path(content["path"]), tools, decode=False)
    row = dict(opened.header.row) if opened.header else {}
    clip = opened.kind != "image" and opened.frames > 1
    yield Message({"kind": "done", "row": row, "frames": opened.frames, "fps": opened.fps, "clip": clip})


def answer_clean(tools: Tools, content: dict[str, Any]) -> Iterator[Message]:
    """The samples of an item: each final row but for its hashes, and 65,536 bytes of pixels."""
    path = Path(content["path"])
    opened = open_item(path, tools)
    check = SelfCheck(identifiers_of(opened, content["relative"], tools), tools.allowed)
    ready = []
    for cleaned in clean(opened, content["frames"], tools):
        if cleaned is None:
            yield Message({"kind": "beat"})
            continue
        row = merged(content["rows"][str(cleaned.index)], cleaned.row)
        if tools.rules.private and found_in(check, row, cleaned.image):
            raise Refusal(Reason.SELF_CHECK, "check")
        ready.append((row, cleaned.image))
    for row, pixels in ready:
        yield Message({"kind": "sample", "row": row}, pixels.tobytes())
    counts = {action.value: n for action, n in opened.header.counts.items()} if opened.header else {}
    yield Message({"kind": "done", "counts": counts})


def merged(known: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A row with what cleaning found. Colour means flow unless the header says of what else it tells."""
    row = known | found
    return row | {"mode": known["mode"]} if known.get("mode") in _COLOURED else row


def identifiers_of(opened: Opened, relative: str, tools: Tools) -> frozenset[str]:
    """Everything in the source that could tell who it is of, for the search in what is to be stored."""
    if not tools.rules.private:
        return frozenset()
    if opened.header:
        return opened.header.identifiers | path_identifiers(relative)
    return file_identifiers(opened.path, relative)


def found_in(check: SelfCheck, row: dict[str, Any], pixels: Pixels) -> bool:
    """Whether an identifier of the source is in a row or in the PNG file of its image."""
    file = png.encode(pixels[None])[0].tobytes()
    return check.finds_in_row(row) or check.finds(file)


def answer_decide(tools: Tools, content: dict[str, Any]) -> Iterator[Message]:
    """One item for review: its verdict, and the pictures before and after, scaled down if they are large."""
    path, verdict = Path(content["path"]), _Verdict()
    try:
        yield from _judge(path, content, tools, verdict)
    except TextFound as found:
        verdict.reason, verdict.box = found.reason, found.box
        verdict.before = verdict.before if found.frame is None else found.frame
    except DataError as error:
        verdict.reason = error.reason
    for name, picture in (("before", verdict.before), ("mask", verdict.mask), ("after", verdict.after)):
        if picture is not None:
            small = _for_eyes(picture)
            yield Message({"kind": "sample", "picture": name, "shape": small.shape}, small.tobytes())
    facts = {name: getattr(verdict, name) for name in ("reason", "box", "shape", "source", "score", "row", "device")}
    yield Message({"kind": "done", **facts})


@dataclass(slots=True)
class _Verdict:
    reason: str | None = None
    box: Box | None = None
    shape: tuple[int, int] | None = None
    source: str | None = None
    score: float | None = None
    row: dict[str, Any] = field(default_factory=dict)
    device: tuple[str | None, ...] = (None, None, None)
    before: Pixels | None = None
    mask: Pixels | None = None
    after: Pixels | None = None


def _judge(path: Path, content: dict[str, Any], tools: Tools, verdict: _Verdict) -> Iterator[Message]:
    """The same steps as `answer_clean`, noting how far an item gets."""
    opened = open_item(path, tools)
    verdict.row = dict(opened.header.row) if opened.header else {}
    verdict.device = (opened.device.manufacturer, opened.device.model, opened.device.software)
    held = dict(opened.read([0]))
    verdict.before = held[0]
    verdict.shape = (held[0].shape[0], held[0].shape[1])
    area = find_scan_area(opened, tools, held)
    verdict.mask = area.mask.astype(np.uint8) * 255
    verdict.source, verdict.score = area.source, float(area.score)
    check = SelfCheck(identifiers_of(opened, content["relative"], tools), tools.allowed)
    for cleaned in clean_within(area, opened, [0], tools, held):
        yield Message({"kind": "beat"})
        if cleaned is not None:
            verdict.row = merged(verdict.row, cleaned.row)
            verdict.after = cleaned.image
            if found_in(check, verdict.row, cleaned.image):
                raise Refusal(Reason.SELF_CHECK, "check")


def _for_eyes(picture: Pixels) -> Pixels:
    scale = max(picture.shape[:2]) / SHOWN
    if scale <= 1:
        return np.ascontiguousarray(picture)
    size = (round(picture.shape[1] / scale), round(picture.shape[0] / scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
