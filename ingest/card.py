"""A data set's card: one YAML file that says what the files are, whose they are, and what may be done with them.

Read `Card` first: it is the whole registry entry. `ingest.layout` turns a card and a folder into items.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import xxhash
import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from ingest.card_parts import (
    PLACEHOLDER,
    Annotations,
    Arrays,
    Defaults,
    Expect,
    Frames,
    Layout,
    Masks,
    Model,
    Regex,
    Source,
    Table,
    Value,
    Values,
    known_word,
)
from usdata.errors import CardError, nearest
from usdata.schema import organ_group_of
from usdata.strict_yaml import read_yaml

# Catalog columns that a path group or a table column may fill. `labels.x` and `targets.x` name an entry of the two
# JSON columns; `pixel_mm` fills both directions.
FILLABLE = (
    *("organ", "view", "mode", "species", "probe", "manufacturer", "model", "site"),
    *("patient", "study", "clip", "official_split", "label"),
    *("pixel_mm", "pixel_mm_x", "pixel_mm_y", "depth_mm"),
)
# Path groups that fill a column without being asked to, because they bear its name.
AUTOMATIC = {"split": "official_split"} | {
    name: name for name in ("organ", "view", "mode", "probe", "site", "patient", "study", "clip", "label")
}
SPLIT_WORDS = ("train", "val", "test")  # of the column official_split
# Of the image's own path, unless a group has that name. position: rank among the pictures of its folder, from 0.
BUILTIN_NAMES = ("path", "name", "stem", "parent", "position")
NOT_IN_DIGEST = frozenset(
    {"title", "citation", "sources", "verified", "needs", "expect", "patients", "defects", "terms", "tasks"}
)


Task = Literal["classification", "segmentation", "regression", "enhancement", "detection", "registration"]


class Card(Model):
    """Everything the lake knows about a data set before opening its first file."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_]*$", max_length=40)  # sample ids and shard names are built from it
    title: str
    citation: str
    licence: str = Field(min_length=1)  # an SPDX identifier where there is one, else "custom", "unstated"
    commercial_use: Literal["yes", "no", "unknown"]
    redistribution: Literal["yes", "attribution", "share_alike", "unmodified", "no", "unknown"]
    deid_profile: Literal["public", "private"]  # public: published by its owner; private: patients' own files
    relax: tuple[Literal["text"], ...] = ()  # of a private card: rules that are not applied; `deid_profile` shows them
    dicom: Literal["refuse", "published"] = "refuse"  # of a public card: whether its DICOM files were published as such
    scan_area: Literal["find", "keep"] | None = None  # all but the scan area goes; default: of DICOM and private files
    verified: Literal["real", "layout", "unverified"] = "unverified"  # run on real files, on fakes, or on none
    sources: tuple[Source, ...] = ()
    terms: str | None = None  # what a user must have accepted: off until `--accept-terms`
    tasks: tuple[Task, ...] = ()  # what its labels are used for
    needs: str | None = None  # of an unverified card: what a user must supply
    defaults: Defaults = Defaults()
    layout: Layout | None = None
    generator: str | None = None  # instead of a layout: the program that draws the images ("phantom")
    fields: Values = Field(default_factory=dict)  # catalog column -> which path group (or template) fills it
    tables: tuple[Table, ...] = ()
    # "label", or the x of "labels.x" -> all allowed values
    labels: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    target: str | None = None  # which of the named targets is also the column `target`
    masks: Masks | None = None
    annotations: tuple[Annotations, ...] = ()
    arrays: Arrays | None = None  # of volumes
    reader: str | None = None  # module of `ingest.special` that reads the card's containers
    frames: Frames = Frames()
    crop: tuple[int, int, int, int] | None = None  # x0, y0, x1, y1 in source pixels; x1 and y1 lie one past the last
    # Where the files of a set need several: a search in the path -> crop; the first that fits goes over `crop`.
    crops: dict[Regex, tuple[int, int, int, int]] = Field(default_factory=dict)
    colour_limit: float = Field(
        default=0.02, ge=0, le=1
    )  # share of coloured pixels above which a frame is colour Doppler
    patients: str = "none"  # how patients are told apart, for people; "none": no ids were published
    patients_of: str | None = None  # another card whose patients have the same ids, so that groups hold across both
    expect: Expect = Expect()
    defects: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.generator:
            if self.layout:
                raise ValueError("generator: a card has either a layout or a generator")
            return self
        self._check_private()
        if self.layout is None:
            if self.deid_profile == "private":
                return self  # every file below the folder, told by its content
            if self.verified != "unverified" or not self.needs:
                raise ValueError("layout: missing (only an unverified card that says what it `needs` may leave it out)")
            return self
        self._check_pictures(self.layout)
        cleaned = self.scan_area == "find" or (self.dicom == "published" and self.scan_area is None)
        if cleaned and (self.masks or self.annotations or self.crop or self.crops):  # its pixels alone are cut out
            raise ValueError("masks, annotations, crop: not where only the scan area is kept; see scan_area")
        for x0, y0, x1, y1 in ((self.crop,) if self.crop else ()) + tuple(self.crops.values()):
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise ValueError("crop: x0, y0, x1, y1 with 0 <= x0 < x1 and 0 <= y0 < y1")
        self._check_columns()
        self._check_words()
        self._check_names()
        return self

    def _check_pictures(self, layout: Layout) -> None:
        """Masks, arrays and containers are each said in two places that must agree."""
        drawn = any(one.becomes == "mask" for one in self.annotations)
        inside = bool(layout.container) or bool(self.arrays and self.arrays.mask_dataset)  # masks beside the pixels
        if self.masks is None and (layout.mask or drawn):
            raise ValueError("masks: missing; say what the masks mean")
        if self.masks is not None and not (layout.mask or drawn or inside):
            raise ValueError("masks: neither layout.mask nor annotations give any")
        if self.masks is not None and (self.masks.kind == "drawn") != (drawn and not layout.mask):
            raise ValueError("masks.kind: `drawn` is for masks that come from annotations alone")
        classes = self.masks.classes if self.masks else ()
        for one in self.annotations:
            for name in one.classes.values() if one.becomes == "mask" else ():
                if name not in classes:
                    raise ValueError(f"annotations: {name!r} is not among masks.classes")
        if self.masks and self.masks.frame_from == "group" and not all("(?P<frame>" in mask for mask in layout.mask):
            raise ValueError("masks.frame_from: `group` needs a group named frame in every mask pattern")
        if bool(layout.volume) and self.arrays is None:
            raise ValueError("arrays: missing; say which axes the volumes have")
        if bool(layout.container) != (self.reader is not None):
            raise ValueError("layout.container and reader: give both or neither")

    def _check_private(self) -> None:
        """Nothing of a private file but checked values can pass: the card must list all words that it lets through."""
        if self.deid_profile == "public":
            if self.relax:
                raise ValueError("relax: only private files are checked by these rules")
            return
        if self.scan_area == "keep":
            raise ValueError("scan_area: of private files only what is shown to be scan area is kept")
        if self.layout and (self.layout.volume or self.layout.container):
            raise ValueError("layout: volumes and containers of private files can't be cleaned here")
        if self.masks or self.crop or self.crops or self.annotations:
            raise ValueError("masks, annotations, crop: not for private files; a reviewed template shows the scan area")
        if self.dicom == "published":
            raise ValueError("dicom: published and deid_profile: private contradict each other")
        for column, value, _ in self.filled() if self.layout else ():
            if column.startswith(("targets.", "pixel_mm", "depth_mm")):
                raise ValueError(f"{column}: numbers of private files come from checked tags only")
            if column in ("view", "site", "manufacturer", "model") and value.map is None:
                raise ValueError(f"fields.{column}: give a `map` that lists every word that may be stored")

    @property
    def profile(self) -> str:
        """The catalog's `deid_profile`: public, private, or private with the rules that were relaxed."""
        return ":".join((self.deid_profile, *sorted(self.relax)))

    def words(self) -> frozenset[str]:
        """Every text that the card itself puts into rows: no secret of a source, whatever a source may say too."""
        values = [*self.constants().values(), *(word for listed in self.labels.values() for word in listed)]
        values += [word for _, value, _ in self.filled() for word in (value.map or {}).values()]
        values += SPLIT_WORDS
        return frozenset(word for word in values if isinstance(word, str)) | frozenset(self.labels)

    def crop_of(self, path: str) -> tuple[int, int, int, int] | None:
        """The crop of the file at `path` (POSIX, below the root); None: the whole picture."""
        return next((box for pattern, box in self.crops.items() if re.search(pattern, path)), self.crop)

    def cleans(self, is_dicom: bool) -> bool:
        """Whether a file goes through de-identification's steps: its scan area only, its header by the allow-list."""
        return self.deid_profile == "private" or self.scan_area == "find" or (is_dicom and self.scan_area is None)

    def filled(self) -> list[tuple[str, Value, Table | None]]:
        """Every catalog column that files fill: (column, how, table or None for the path).

        The groups that bear a column's name come first, unless `fields` says otherwise.
        """
        own: dict[str, Value] = {}
        for pattern in self.layout.pictures if self.layout else ():
            for group in re.compile(pattern).groupindex:
                if group in AUTOMATIC and AUTOMATIC[group] not in self.fields:
                    own[AUTOMATIC[group]] = Value.model_validate({"from": group})
        return [
            *((column, value, None) for column, value in (own | self.fields).items()),
            *((column, value, table) for table in self.tables for column, value in table.columns.items()),
        ]

    def constants(self) -> dict[str, Any]:
        """The columns that are the same in every row; an item's own fields go over them."""
        same = self.defaults.model_dump(exclude={"pixel_mm"})
        same |= {"pixel_mm_x": self.defaults.pixel_mm, "pixel_mm_y": self.defaults.pixel_mm}
        if self.defaults.organ:
            same["organ_group"] = organ_group_of(self.defaults.organ)
        rights = ("licence", "commercial_use", "redistribution")
        same |= {name: getattr(self, name) for name in rights}
        return {"dataset": self.name} | same | {"deid_profile": self.profile}

    def _check_columns(self) -> None:
        filled = self.filled()
        columns = [column for column, _, _ in filled]
        over = self.deid_profile == "public"  # a table's word goes over the path's
        for (column, _), count in Counter((column, over and table is None) for column, _, table in filled).items():
            kind, _, name = column.partition(".")
            if column not in FILLABLE and not (kind in ("labels", "targets") and re.fullmatch("[a-z][a-z0-9_]*", name)):
                raise ValueError(f"{column!r} is not a column that files can fill.{nearest(column, FILLABLE)}")
            if count > 1:
                raise ValueError(
                    f"{column!r} is filled twice (by {'' if over else 'the path and a table, or '}two tables)"
                )
        if self.defaults.organ is None and "organ" not in columns and self.deid_profile == "public":
            raise ValueError("organ: give defaults.organ or a field that fills it")
        named = {column.removeprefix("labels.") for column in columns if column == "label" or column[:7] == "labels."}
        if self.masks and self.masks.label:
            if "label" in columns:
                raise ValueError("masks.label: the path or a table fills `label` already")
            named.add("label")
        for name in sorted(named ^ set(self.labels)):
            raise ValueError(
                f"labels: no values are listed for {name!r}" if name in named else f"labels: no file fills {name!r}"
            )
        if self.target and f"targets.{self.target}" not in columns:
            raise ValueError(f"target: nothing fills 'targets.{self.target}'")

    def _check_words(self) -> None:
        for column, value, _ in self.filled():
            for word in (value.map or {}).values():
                if column in ("organ", "mode", "species", "probe"):
                    known_word(column, word)
                name = column.removeprefix("labels.")
                if name in self.labels and word not in self.labels[name]:
                    raise ValueError(f"{column}: maps to {word!r}, which labels.{name} does not list")
        for word in (self.masks.label or {}).values() if self.masks else ():
            if word not in self.labels.get("label", ()):
                raise ValueError(f"masks.label: {word!r} is not in labels.label")
        for name, values in self.labels.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"labels.{name}: list each value once")

    def _check_names(self) -> None:
        """Each pattern offers every group that the fields and the tables' `match` ask for."""
        assert self.layout is not None
        patterns = [set(re.compile(pattern).groupindex) for pattern in self.layout.pictures]
        known = set().union(*patterns) | set(BUILTIN_NAMES)
        asked = [(f"fields.{column}", value.names()) for column, value in self.fields.items()]
        asked += [("tables.match", PLACEHOLDER.findall(t.match) or [t.match]) for t in self.tables]
        asked += [("annotations.match", PLACEHOLDER.findall(a.match) or [a.match]) for a in self.annotations]
        for place, names in asked:
            for name in names:
                if name not in known and not self.reader:  # a container's entries bring words of their own
                    raise ValueError(f"{place}: no image or video pattern has a group {name!r}.{nearest(name, known)}")


def load_card(path: Path) -> Card:
    """The card in the YAML file `path`.

    Raises:
        CardError: no such file, not YAML, a key given twice, an unknown key, a wrong value, a word outside the
            vocabulary. The message names the file, the key and the problem.
    """
    try:
        content = read_yaml(path.read_bytes())
    except OSError as error:
        raise CardError(f"Can't read the card {path}: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise CardError(f"{path} is not a card: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise CardError(f"{path} is not a card: expected `key: value` lines.", hint="Start from ingest/cards/busi.yaml")
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        raise CardError(
            f"{path} is not a valid card: {explain(error)}.", dataset=str(content.get("name", "?"))
        ) from error


def explain(error: ValidationError) -> str:
    """What is wrong with a card, key by key, in one line."""
    return "; ".join(_explain(problem) for problem in error.errors(include_url=False))


def _explain(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        text = f"unknown key.{nearest(str(problem['loc'][-1]), _keys(problem['loc'][:-1]))}"
    return f"{place}: {text}" if place else text


def _keys(place: tuple[int | str, ...]) -> Iterator[str]:
    """The keys that are allowed at a place in a card, for the spelling hint."""
    parts = [part for part in place if isinstance(part, str)]
    models: dict[str, type[BaseModel]] = {
        **{"layout": Layout, "masks": Masks, "tables": Table, "frames": Frames, "defaults": Defaults},
        **{"expect": Expect, "sources": Source, "fields": Value, "columns": Value},
        **{"annotations": Annotations, "arrays": Arrays},
    }
    found = [models[part] for part in parts if part in models]
    for name, field in (found[-1] if found else Card).model_fields.items():
        yield field.alias or name


def _folder() -> Any:
    return files("ingest").joinpath("cards")


@cache
def registered() -> tuple[str, ...]:
    """The names of all cards that come with the package, sorted."""
    return tuple(sorted(entry.name[:-5] for entry in _folder().iterdir() if entry.name.endswith(".yaml")))


@cache
def get_card(name: str) -> Card:
    """The registered card `name`.

    Raises:
        CardError: there is none; the message gives the nearest names.
    """
    if name not in registered():
        raise CardError(
            f"No dataset named {name!r} ({len(registered())} are registered).{nearest(name, registered())}",
            hint="All of them:  usdata datasets        Your own:  usdata ingest --card my.yaml --from DIR",
        )
    return load_card(Path(str(_folder().joinpath(f"{name}.yaml"))))


def card_digest(card: Card) -> str:
    """xxh3_128 (32 hex digits) of all in the card that can change a stored byte; a new title does not."""
    # Without defaults, so that a key which a later version adds leaves the digest of older cards alone.
    content = card.model_dump(mode="json", by_alias=True, exclude=set(NOT_IN_DIGEST), exclude_defaults=True)
    if "layout" in content:
        content["layout"].pop("example", None)
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
