"""One HTML page with which a person judges what de-identification did: before and after, device by device.

Read `Review` first. The page holds patients' pictures: it is for the private side alone, and `write_page` puts it only
where nothing is shared. It needs no network, no script and no other file.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ingest.deid.device import Device
from ingest.deid.place import private_folder, write_private
from ingest.deid.reasons import Reason, State
from ingest.deid.review_figures import before_uri, cut, mark
from ingest.deid.review_template import Areas, Draft, draft
from ingest.deid.review_words import WORDS
from usdata import __version__
from usdata.report_figures import png_uri
from usdata.schema import LOCATION_COLUMNS, SAMPLES

if TYPE_CHECKING:
    from ingest.deid.decision import Decision

PER_DEVICE = 20  # pictures of each device group and verdict: anonymization.md, Q8
FILE = "review.html"
_LISTED = 5000  # lines of the list of all items; the page says what it leaves out
_PATIENT = ("patient", "patient_known", "sex", "age", "study_date", "study", "clip")
_PICTURE = (
    *("organ", "view", "laterality", "mode", "probe", "manufacturer", "model", "depth_mm", "frequency_mhz"),
    *("pixel_mm_x", "pixel_mm_y", "fps", "n_frames", "width", "height", "label"),
)
_YES_NO = ("no", "yes")
_ELSEWHERE = frozenset({*LOCATION_COLUMNS, "mask_source", "mask_score", "licence", "commercial_use", "redistribution"})


@dataclass(frozen=True, slots=True)
class Shown:
    """An item with its pictures, as the page shows it."""

    key: str
    state: State
    reason: Reason | None
    path: str | None  # only if asked for
    aspect: float  # width / height of the frame
    before: str | None  # data URI
    layers: tuple[Markup, ...]
    after: str | None  # data URI
    source: str | None
    score: float | None
    kept: float | None  # share of the frame's pixels, 0 to 1
    patient: list[tuple[str, str]]
    picture: list[tuple[str, str]]
    rest: list[tuple[str, str]]


@dataclass(slots=True)
class Group:
    """The items of one device and picture size."""

    device: Device
    shape: tuple[int, int] | None  # height, width
    areas: Areas
    devices: set[Device] = field(default_factory=set)  # of the accepted ones: they differ in the software at most
    states: Counter[State] = field(default_factory=Counter)
    reasons: Counter[Reason] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)  # what showed the area of the accepted ones
    accepted: list[Shown] = field(default_factory=list)
    refused: dict[Reason, list[Shown]] = field(default_factory=dict)
    proposal: Draft | None = None

    @property
    def name(self) -> str:
        """The device in words."""
        known = [word for word in (self.device.manufacturer, self.device.model) if word]
        return " ".join(known) or "Unknown device"

    @property
    def size(self) -> str:
        """Width × height in pixels."""
        return f"{self.shape[1]} × {self.shape[0]}" if self.shape else "not decoded"


@dataclass(frozen=True, slots=True)
class Line:
    """One item in the list of all."""

    key: str
    state: State
    reason: Reason | None
    group: int
    path: str | None


class Review:
    """Collects decisions, in the order of their keys, and gives the page.

    Pictures are kept of the first `per_device` items of each group and verdict, as text; so memory follows the page's
    size, not the number of files.
    """

    def __init__(
        self,
        name: str,
        *,
        per_device: int = PER_DEVICE,
        reason: Reason | None = None,
        all_shown: bool = False,
    ) -> None:
        """Begin a page.

        Args:
            name: of the data set.
            per_device: pictures of each device group and verdict.
            reason: show pictures of this reason only; all items are counted all the same.
            all_shown: whatever `per_device` says (the items were asked for by their keys).
        """
        self.name, self.per_device, self.reason, self.all_shown = name, per_device, reason, all_shown
        self._groups: dict[tuple[Any, ...], Group] = {}
        self.lines: list[Line] = []
        self.states: Counter[State] = Counter()

    def add(self, decision: "Decision", path: str | None = None) -> None:
        """Take in one item. `path`: of its file, if the page is to show it."""
        path = None if path is None else path.encode("utf-8", "backslashreplace").decode()
        group, number = self._group(decision)
        group.states[decision.state] += 1
        self.states[decision.state] += 1
        self.lines.append(Line(decision.key, decision.state, decision.reason, number, path))
        if decision.reason is not None:
            group.reasons[decision.reason] += 1
            shown = group.refused.setdefault(decision.reason, [])
        else:
            group.sources[decision.mask_source or "unknown"] += 1
            shown = group.accepted
            group.devices.add(decision.device)
            if decision.mask is not None:
                group.areas.add(decision.mask)
        wanted = self.reason is None or decision.reason is self.reason
        if wanted and (self.all_shown or len(shown) < self.per_device):
            shown.append(_shown(decision, path))

    def _group(self, decision: "Decision") -> tuple[Group, int]:
        key = (decision.device.manufacturer, decision.device.model, decision.shape)
        if key not in self._groups:
            self._groups[key] = Group(decision.device, decision.shape, Areas(decision.shape or (0, 0)))
        return self._groups[key], list(self._groups).index(key)

    def groups(self) -> list[Group]:
        """The groups, those with most items first."""
        return sorted(self._groups.values(), key=lambda g: (-sum(g.states.values()), g.name, g.size))

    def page(self, ignored: int = 0, seen: int | None = None) -> str:
        """The page as text.

        Args:
            ignored: files that are no items (what operating systems leave behind).
            seen: items of the source, if not all of them were decided.
        """
        groups = self.groups()
        for group in groups:
            group.proposal = None if _has_template(group) else draft(group.devices, group.areas)
        number = {id(group): place for place, group in enumerate(groups)}
        place = [number[id(group)] for group in self._groups.values()]
        return _template().render(
            name=self.name,
            version=__version__,
            groups=groups,
            states=self.states,
            State=State,
            total=len(self.lines),
            seen=seen,
            ignored=ignored,
            lines=[(line, place[line.group]) for line in self.lines[:_LISTED]],
            left_out=max(0, len(self.lines) - _LISTED),
            words=WORDS,
            cut=cut,
            per_device=self.per_device,
            reason=self.reason,
        )

    def counts(self) -> dict[str, int]:
        """How many items had which outcome; the three add up to `items`."""
        return {"items": len(self.lines), **{state.value: self.states[state] for state in State}}


def write_page(review: Review, folder: Path, source: Path, *, ignored: int = 0, seen: int | None = None) -> Path:
    """Write the page into a private folder; an earlier one there is replaced.

    Raises:
        ConfigError: the folder is not private; see `ingest.deid.place`.
    """
    path = private_folder(folder, source) / FILE
    write_private(path, review.page(ignored, seen).encode("utf-8"))
    return path


def _has_template(group: Group) -> bool:
    return any("template" in source for source in group.sources)


def _shown(one: "Decision", path: str | None) -> Shown:
    layers = [] if one.mask is None else [cut(one.mask)]
    shape = one.shape or (1, 1)
    if one.text_box is not None:
        layers.append(mark(one.text_box, shape))
    return Shown(
        key=one.key,
        state=one.state,
        reason=one.reason,
        path=path,
        aspect=shape[1] / shape[0],
        before=None if one.before is None else before_uri(one.before),
        layers=tuple(layers),
        after=None if one.after is None else png_uri(one.after),
        source=one.mask_source,
        score=one.mask_score,
        kept=None if one.mask is None else float(one.mask.mean()),
        patient=list(_values(one.row, _PATIENT)),
        picture=list(_values(one.row, _PICTURE)),
        rest=list(_values(one.row, [n for n in SAMPLES.names if n not in {*_PATIENT, *_PICTURE, *_ELSEWHERE}])),
    )


def _values(row: dict[str, Any], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and text of each known value; long ids shortened."""
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        text = _YES_NO[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
        yield name, f"{text[:8]}…" if len(text) == 32 and text.isalnum() else text


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["n"] = lambda value: f"{value:,}"
    environment.filters["words"] = lambda word: str(word).replace("_", " ")
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    return environment.from_string(files("ingest.deid").joinpath("review.html.j2").read_text("utf-8"))
