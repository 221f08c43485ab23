"""Reviewed device templates: where the scan area of a scanner's screens is, as a person has confirmed it.

A template is a YAML entry that names device and picture size exactly; `templates/README.md` shows the form. It helps
where pixels alone do not show the area, so a wrong one is dangerous: the form is strict, conflicts are errors, and a
draft from `propose` does not load before somebody has signed for it.
Source: anonymization.md section 6 (step 3 and 4, templates) and Q8 (first 20 images before a template is trusted).
"""

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ingest.deid.device import Device
from ingest.deid.regions import LEAST_SHARE, LEAST_SIDE, MOST_SHARE
from usdata.errors import ConfigError
from usdata.strict_yaml import read_yaml

if TYPE_CHECKING:
    from ingest.deid.area import ScanArea

LEAST_SEEN = 20  # pictures of the device that a person has looked at
AGREEING = 0.95  # share of the areas that a pixel must lie in to be proposed; ours

Kind = Literal["sector", "trapezoid", "rectangle"]
Point = tuple[int, int]
Word = Annotated[str, StringConstraints(min_length=2, max_length=64)]
_NO_DEVICE = frozenset({"other", "unknown"})  # what the tables say of every scanner they do not know
_Key = tuple[str | None, str | None, str | None, int, int]


class Template(BaseModel):
    """One reviewed scan area. Extra keys are errors; pixels outside the picture are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    manufacturer: Word | None
    model: Word | None
    software: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}$")] | None = None
    rows: int = Field(ge=LEAST_SIDE, le=8192)
    columns: int = Field(ge=LEAST_SIDE, le=8192)
    box: tuple[int, int, int, int] | None = None
    polygons: tuple[tuple[Point, ...], ...] | None = None
    kind: Kind
    reviewed_by: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z -]{2,40}$")]
    reviewed_on: datetime.date
    images_seen: int = Field(ge=LEAST_SEEN)
    note: Annotated[str, StringConstraints(max_length=400)] = ""

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if (self.box is None) == (self.polygons is None):
            raise ValueError("give either box or polygons")
        if (self.manufacturer is None) != (self.model is None):
            raise ValueError("give manufacturer and model, or neither")
        if _NO_DEVICE & {self.manufacturer, self.model}:
            raise ValueError("'other' and 'unknown' name no device")
        for x, y in self._corners():
            if not (0 <= x <= self.columns and 0 <= y <= self.rows):
                raise ValueError("a corner lies outside the picture")
        if any(len(polygon) < 3 for polygon in self.polygons or ()):
            raise ValueError("a polygon has at least three corners")
        share = float(self.mask().mean())
        if not LEAST_SHARE <= share <= MOST_SHARE:
            raise ValueError(f"the area must be {LEAST_SHARE:.0%} to {MOST_SHARE:.0%} of the picture")
        return self

    def _corners(self) -> list[Point]:
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if x0 >= x1 or y0 >= y1:
                raise ValueError("a box is x0, y0, x1, y1 with x0 < x1 and y0 < y1")
            return [(x0, y0), (x1, y1)]
        return [point for polygon in self.polygons or () for point in polygon]

    @property
    def key(self) -> _Key:
        """What it is chosen by."""
        return self.manufacturer, self.model, self.software, self.rows, self.columns

    def mask(self) -> NDArray[np.bool_]:
        """(rows, columns) bool: the scan area."""
        canvas = np.zeros((self.rows, self.columns), np.uint8)
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            canvas[y0:y1, x0:x1] = 1
        for polygon in self.polygons or ():
            cv2.fillPoly(canvas, [np.array(polygon, np.int32)], 1)
        return canvas > 0


@dataclass(frozen=True, slots=True)
class Templates:
    """All templates in force, by what they are chosen by. `digest` (32 hex) changes with any of them."""

    by_key: Mapping[_Key, Template]
    digest: str

    def find(self, device: Device, shape: tuple[int, int]) -> Template | None:
        """The template of `device` at the picture size (H, W): its software's own before one for any software."""
        for software in dict.fromkeys((device.software, None)):
            found = self.by_key.get((device.manufacturer, device.model, software, *shape))
            if found is not None:
                return found
        return None


def load_templates(folder: Path | None) -> Templates:
    """The packaged templates, and those of the site's own `folder`, which replace packaged ones of the same key.

    Raises:
        ConfigError: no such folder, a file that is not in the form, or two templates of one key in one folder.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigError("The folder of templates does not exist.", hint="Give --templates an existing folder.")
    packaged = _load(files("ingest.deid") / "templates")
    by_key = packaged | (_load(folder) if folder is not None else {})
    lines = sorted(json.dumps(template.model_dump(mode="json"), sort_keys=True) for template in by_key.values())
    return Templates(by_key, hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32])


def _load(folder: Traversable | Path) -> dict[_Key, Template]:
    found: dict[_Key, Template] = {}
    if not folder.is_dir():
        return found
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith((".yaml", ".yml")):
            continue
        for template in _read(file):
            if template.key in found:
                raise ConfigError(
                    f"Two templates are for the same device and picture size; the second is in {file.name}.",
                    hint="Remove one: which of them holds must not depend on the order of files.",
                )
            found[template.key] = template
    return found


def _read(file: Traversable | Path) -> list[Template]:
    try:
        content = read_yaml(file.read_bytes())
        if not isinstance(content, dict) or set(content) != {"templates"} or not isinstance(content["templates"], list):
            raise ValueError("a template file has one key, templates, with a list")
        return [Template.model_validate(entry) for entry in content["templates"]]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        known = [str(part) for part in first["loc"] if part in Template.model_fields or isinstance(part, int)]
        raise _unusable(f"{'.'.join(known) or 'entry'}: {first['msg']}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise _unusable(f"line {mark.line + 1} is no YAML" if mark else "it is no YAML") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _unusable("it must be YAML with one key, templates, with a list") from None


def _unusable(why: str) -> ConfigError:
    """Neither the file's name nor a line of it: this error may be stored by whoever runs us."""
    return ConfigError(
        f"A template file can't be used: {why}.", step="templates", hint="Mend it, or take it out of --templates DIR."
    )


def propose(device: Device, shape: tuple[int, int], areas: Iterable["ScanArea"]) -> dict[str, Any]:
    """A draft of a template file for a reviewer, from the accepted areas of one device at one picture size.

    The area is where at least 95 % of the given areas agree. The review is left open (`images_seen: 0`), so the draft
    does not load until a person has looked at pictures and filled it in.

    Args:
        device: what the template is chosen by.
        shape: (H, W) of all the areas.
        areas: at least 20.

    Returns:
        Plain lists, strings and numbers, ready for a YAML writer.

    Raises:
        ConfigError: fewer than 20 areas, another shape among them, or areas that have too little in common.
    """
    votes = np.zeros(shape, np.int32)
    kinds: list[str] = []
    for area in areas:
        if area.mask.shape != shape:
            raise ConfigError("The areas for a template must have one picture size.")
        votes += area.mask
        kinds.append(area.kind)
    if len(kinds) < LEAST_SEEN:
        raise ConfigError(f"A template needs at least {LEAST_SEEN} accepted pictures, not {len(kinds)}.")
    polygons = _polygons(votes >= AGREEING * len(kinds))
    if not polygons:
        raise ConfigError("The accepted areas have too little in common for a template.")
    entry = {
        "manufacturer": device.manufacturer,
        "model": device.model,
        "software": device.software,
        "rows": shape[0],
        "columns": shape[1],
        "polygons": polygons,
        "kind": max(sorted(set(kinds)), key=kinds.count),
        "reviewed_by": "",
        "reviewed_on": "",
        "images_seen": 0,
        "note": f"drafted from {len(kinds)} accepted pictures",
    }
    return {"templates": [entry]}


def _polygons(mask: NDArray[np.bool_]) -> list[list[list[int]]]:
    """Outlines of the larger parts of `mask`, simplified to within a pixel."""
    outlines: Sequence[Any] = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    large = [outline for outline in outlines if cv2.contourArea(outline) >= LEAST_SHARE * mask.size]
    return [cv2.approxPolyDP(outline, 1.0, closed=True)[:, 0].tolist() for outline in large]
