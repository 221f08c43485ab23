"""A contact sheet of the largest groups of duplicates, as one HTML page or one PNG picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from usdata.cohort import Cohort
from usdata.dedup_find import Codes, Duplicates
from usdata.files import explain_os_errors, replacing
from usdata.rights import rights_of

SHEET_FILES = (".html", ".png")
GROUPS = 40  # on a sheet
IMAGES = 8  # of a group
_SIDE = 160  # pixels of an image on the sheet
_TEXT, _GAP, _MARGIN = 62, 10, 24  # pixels below an image, between images, around all
_COLUMNS = ("sample_id", "dataset", "label", "patient", "clip", "frame", "official_split", "source_id")
_LOCAL = "Stays on this machine: the terms of {} forbid passing images on, or say nothing of it."


@dataclass(frozen=True)
class Shown:
    """A group on the sheet: its size, what its members differ in, and the facts and pixels of the first few."""

    size: int
    differs: list[str]
    facts: list[dict[str, Any]]
    images: NDArray[np.uint8]


def write_sheet(cohort: Cohort, found: Duplicates, out: Path) -> Path:
    """Write the sheet of the 40 largest groups, 8 images of each.

    Groups whose members bear different labels, patients or official splits come before others of their size.

    Args:
        out: a .html or .png file; replaced whole or not at all.

    Raises:
        LakeError: damage in the lake, or `out` can't be written.
    """
    groups = found.groups()
    shown = _shown(cohort, groups)
    local = [r.dataset for r in rights_of(cohort) if not r.free]
    local = [name for name in local if any(fact["dataset"] == name for group in shown for fact in group.facts)]
    title = f"{len(groups):,} groups of duplicates"
    if len(shown) < len(groups):
        title += f", the {len(shown)} largest"
    with explain_os_errors(out, step="sheet", elsewhere="with --sheet FILE"), replacing(out) as file:
        if out.suffix.lower() == ".html":
            file.write(_page(title, shown, local).encode())
        else:
            _picture(title, shown, local).save(file, "PNG")
    return out


def _shown(cohort: Cohort, groups: list[Codes]) -> list[Shown]:
    if not groups:
        return []
    sizes = np.array([len(group) for group in groups])
    least = np.sort(sizes)[::-1][:GROUPS][-1]  # groups as large as the last that has a place compete for it
    rows = np.concatenate([group for group in groups if len(group) >= least])
    table = cohort.table(_COLUMNS).take(pa.array(rows)).to_pylist()
    members, start = [], 0
    for group in groups[: int((sizes >= least).sum())]:
        members.append((group, table[start : start + len(group)]))
        start += len(group)
    ranked = sorted(members, key=lambda one: (-len(one[0]), -len(_differs(one[1])), int(one[0][0])))[:GROUPS]
    return [
        Shown(len(group), _differs(facts), facts[:IMAGES], cohort.images(group[:IMAGES])) for group, facts in ranked
    ]


def _differs(facts: Sequence[dict[str, Any]]) -> list[str]:
    """What the members of a group differ in."""
    found = ["dataset"] if len({fact["dataset"] for fact in facts}) > 1 else []
    for name in ("label", "patient", "official_split"):
        own = {(fact["dataset"] if name != "label" else "", fact[name]) for fact in facts if fact[name] is not None}
        if len(own) > len({dataset for dataset, _ in own}):
            found.append(name)
    return found


def _heading(group: Shown) -> str:
    words = f"{group.size:,} images"
    if group.differs:
        words += f", more than one {' and '.join(name.replace('_', ' ') for name in group.differs)}"
    return words


def _lines(fact: dict[str, Any]) -> list[str]:
    """What stands below an image."""
    frame = "" if fact["frame"] is None else f", frame {fact['frame']}"
    clip = None if fact["clip"] is None else f"clip {fact['clip']}{frame}"
    rest = [
        fact["label"] or "no label",
        None if fact["patient"] is None else f"patient {fact['patient']}",
        clip,
        None if fact["official_split"] is None else f"official {fact['official_split']}",
    ]
    return [fact["dataset"], " · ".join(word for word in rest if word), fact["source_id"] or fact["sample_id"]]


def _page(title: str, shown: list[Shown], local: list[str]) -> str:
    from jinja2 import Environment, StrictUndefined

    from usdata.report_figures import png_uri

    groups = [
        {
            "heading": _heading(group),
            "finding": bool(group.differs),
            "more": group.size - len(group.facts),
            "tiles": [
                {"uri": png_uri(image, _SIDE), "lines": _lines(fact), "local": fact["dataset"] in local}
                for image, fact in zip(group.images, group.facts, strict=True)
            ],
        }
        for group in shown
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("usdata").joinpath("dedup.html.j2").read_text("utf-8"))
    return str(template.render(title=title, groups=groups, local=_LOCAL.format(", ".join(local)) if local else ""))


def _picture(title: str, shown: list[Shown], local: list[str]) -> Any:
    """A row for each group, as wide as the longest one needs, 4 images at least."""
    from PIL import Image, ImageDraw, ImageFont

    large, small = ImageFont.load_default(18), ImageFont.load_default(12)
    columns = max([4, *(len(group.facts) for group in shown)])
    head, row = (90 if local else 60), 26 + _SIDE + _TEXT + _GAP
    width = 2 * _MARGIN + columns * (_SIDE + _GAP) - _GAP
    sheet = Image.new("RGB", (width, head + row * len(shown) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 20), title, "black", large)
    if local:
        pen.text(
            (_MARGIN, 50), _fit(pen, _LOCAL.format(", ".join(local)), width - 2 * _MARGIN, small), "#b00020", small
        )
    for number, group in enumerate(shown):
        top = head + number * row
        pen.text((_MARGIN, top), _heading(group), "#b00020" if group.differs else "black", small)
        for place, (image, fact) in enumerate(zip(group.images, group.facts, strict=True)):
            left, above = _MARGIN + place * (_SIDE + _GAP), top + 22
            sheet.paste(Image.fromarray(np.ascontiguousarray(image)).resize((_SIDE, _SIDE)), (left, above))
            for line, text in enumerate(_lines(fact)):
                pen.text((left, above + _SIDE + 3 + 16 * line), _fit(pen, text, _SIDE, small), "#333333", small)
    return sheet


def _fit(pen: Any, text: str, width: int, font: Any) -> str:
    """The text, its middle left out if it is too wide; what the font can't draw is a question mark."""
    text = text.encode("latin-1", "replace").decode("latin-1")
    if pen.textlength(text, font) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
        if pen.textlength(short, font) <= width:
            return short
    return text[:2]
