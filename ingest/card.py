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
from typing import Annotated, Any, Literal, Self

import xxhash
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from ingest.strict_yaml import read_yaml
from usdata.errors import CardError, UsdataError, nearest
from usdata.schema import check_word, organ_group_of

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
BUILTIN_NAMES = ("path", "name", "stem", "parent")  # of the image's own path, unless a group has that name
NOT_IN_DIGEST = frozenset({"title", "citation", "sources", "verified", "needs", "expect", "patients", "defects"})
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, coerce_numbers_to_str=True)


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression ({error}): {pattern[:200]}") from error
    return pattern


Regex = Annotated[str, BeforeValidator(lambda value: _regex(value) if isinstance(value, str) else value)]
Patterns = Annotated[tuple[Regex, ...], BeforeValidator(_one_or_many)]
Words = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]


class Source(_Model):
    """Where a data set, or one archive of it, comes from; checksums where they are known."""

    page: str | None = None
    url: str | None = None
    archive: str | None = None
    size: int | None = Field(default=None, ge=0)  # bytes
    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    note: str | None = None


class Value(_Model):
    """How one catalog column is read from path groups or from a table row.

    `from` is the name of a group (or table column), or a template such as `"{patient}_{point}"`. Values are stripped of
    blanks at both ends; an empty one is unknown (null). With `map`, a value that the map does not list is an error.
    """

    source: str = Field(alias="from", min_length=1)
    map: dict[str, str] | None = None
    lower: bool = False  # fold to lower case before `map`
    optional: bool = False  # of a table: the column may be absent from the file

    def names(self) -> list[str]:
        """The groups or columns that this value needs."""
        return PLACEHOLDER.findall(self.source) or [self.source]


def _as_value(value: object) -> object:
    return {"from": value} if isinstance(value, str) else value


Values = dict[str, Annotated[Value, BeforeValidator(_as_value)]]


class Layout(_Model):
    """Regular expressions for whole POSIX paths below the root; their named groups are the fields.

    A file takes the first role that fits it, in the order ignore, table (from `Card.tables`), mask, video, image.
    """

    image: Patterns = ()
    video: Patterns = ()
    mask: Patterns = ()
    ignore: Patterns = ()
    pair_by: tuple[str, ...] | None = None  # groups that tie a mask to its image; default: all that both name
    ignore_case: bool = False  # .PNG as well as .png, for all patterns
    example: dict[Literal["image", "video", "mask", "table", "ignore"], Words] = {}  # made-up paths; a test runs them

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not (self.image or self.video):
            raise ValueError("give an image or a video pattern")
        for mask in self.mask:
            for image in (*self.image, *self.video):
                if not self.pairing(mask, image):
                    raise ValueError(f"nothing pairs masks with images: no group is named in both {mask} and {image}")
        return self

    def pairing(self, mask: str, image: str) -> tuple[str, ...]:
        """The groups whose values a mask shares with its image, sorted."""
        shared = set(re.compile(mask).groupindex) & set(re.compile(image).groupindex)
        if self.pair_by is None:
            return tuple(sorted(shared))
        missing = set(self.pair_by) - shared
        if missing:
            raise ValueError(f"pair_by: {', '.join(sorted(missing))} is not a group of both {mask} and {image}")
        return tuple(sorted(self.pair_by))


class Table(_Model):
    """A CSV, TSV or JSON file whose rows give columns to items.

    A row belongs to the items for which `match` (filled from the item's path) equals `key` (filled from the row).
    Named groups of `file` count as columns of each of its rows. Header and values are stripped of blanks.
    """

    file: Regex  # for the whole POSIX path below the root
    key: str  # a column, or a template of columns: "{split}/{filename}"
    match: str  # a group or template of groups, or of path, name, stem, parent (of the item): "{split}/{name}"
    columns: Values  # catalog column -> how to read it from the row
    format: Literal["auto", "csv", "json", "lines"] = "auto"  # auto: by extension; lines: split at blanks
    separator: str | None = None  # of CSV; default: tab for .tsv, else comma
    header: tuple[str, ...] | None = None  # column names of a file that has none
    encoding: str = "utf-8-sig"
    missing: tuple[str, ...] = ("nan", "NaN", "NA", "N/A", "null")  # besides the empty value
    required: bool = False  # the file must be there; otherwise its absence is a note
    every_item: bool = False  # an item without a row is refused (label_missing)

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            "x".encode(encoding)
        except LookupError as error:
            raise ValueError(f"no text encoding {encoding!r}; for example utf-8, latin-1, cp1252, utf-16") from error
        return encoding

    @field_validator("separator")
    @classmethod
    def _one_character(cls, separator: str | None) -> str | None:
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise ValueError(f"one character that is no quote and no end of line, not {separator!r}")
        return separator


class Masks(_Model):
    """What the pixels of a mask file mean.

    binary: grey above `threshold` is `classes[1]`; several files of one image are merged by OR.
    outline: like binary, then closed curves are filled.
    index: the stored number (palette index or grey level) is looked up in `values`.
    colour: the RGB colour is looked up in `colours`.
    """

    kind: Literal["binary", "outline", "index", "colour"] = "binary"
    classes: tuple[str, ...] = ("background", "foreground")  # name of each index of the stored mask
    threshold: int = Field(default=127, ge=0, le=254)
    values: dict[int, str] | None = None  # index: stored number -> class; default: the position in `classes`
    colours: dict[str, str] | None = None  # colour: "r,g,b" -> class
    by_path: dict[Regex, str] | None = None  # binary, outline: class of a file, by a search in its path
    required: bool = False  # an image without a mask is refused
    other_size: Literal["refuse", "resize"] = "refuse"  # a mask of another size than its image
    if_bad: Literal["image_only", "refuse"] = "image_only"  # an unusable mask: keep its image without, or refuse both

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.classes)) != len(self.classes) or not 2 <= len(self.classes) <= 256:
            raise ValueError("classes: 2 to 256 different names, the first for the background")
        for field, kinds in (("values", ("index",)), ("colours", ("colour",)), ("by_path", ("binary", "outline"))):
            if getattr(self, field) is not None and self.kind not in kinds:
                raise ValueError(f"{field} has no meaning for masks of kind {self.kind}")
        if self.kind == "colour" and not self.colours:
            raise ValueError("colours: say which colour is which class")
        for colour in self.colours or {}:
            if not re.fullmatch(r"\d{1,3},\d{1,3},\d{1,3}", colour) or max(map(int, colour.split(","))) > 255:
                raise ValueError(f'colours: "{colour}" is not "red,green,blue" with numbers from 0 to 255')
        if any(not 0 <= number <= 255 for number in self.values or {}):
            raise ValueError("values: the stored numbers go from 0 to 255")
        used = [*(self.values or {}).values(), *(self.colours or {}).values(), *(self.by_path or {}).values()]
        for name in used:
            if name not in self.classes:
                raise ValueError(f"{name!r} is not among the classes {', '.join(self.classes)}")
        if self.kind in ("binary", "outline") and not self.by_path and len(self.classes) != 2:
            raise ValueError(f"a mask of kind {self.kind} has two classes unless by_path tells more apart")
        return self


class Frames(_Model):
    """Which frames of a video become images: every `stride`-th, thinned evenly to at most `max_per_clip`."""

    stride: int = Field(default=1, ge=1)
    max_per_clip: int | None = Field(default=None, ge=1)


class Defaults(_Model):
    """What holds for every item unless its path or a table says otherwise. Null: unknown."""

    organ: str | None = None
    mode: str = "B-mode"
    species: str = "human"
    probe: str | None = None
    view: str | None = None
    site: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    synthetic: bool = False
    burned_in: Literal["no", "some", "yes", "unknown"] = "unknown"  # text or callipers in the pixels
    pixel_mm: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @field_validator("organ", "mode", "species", "probe")
    @classmethod
    def _word(cls, word: str | None, info: Any) -> str | None:
        return None if word is None else _check(info.field_name, word)


class Expect(_Model):
    """Published counts of the whole set. Ingest warns when it finds more than 2 % otherwise; it never fails on them."""

    images: int | None = None
    videos: int | None = None
    patients: int | None = None
    label: dict[str, int] = {}


class Card(_Model):
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
    needs: str | None = None  # of an unverified card: what a user must supply
    defaults: Defaults = Defaults()
    layout: Layout | None = None
    generator: str | None = None  # instead of a layout: the program that draws the images ("phantom")
    fields: Values = {}  # catalog column -> which path group (or template) fills it
    tables: tuple[Table, ...] = ()
    labels: dict[str, tuple[str, ...]] = {}  # "label", or the x of "labels.x" -> all allowed values
    target: str | None = None  # which of the named targets is also the column `target`
    masks: Masks | None = None
    frames: Frames = Frames()
    crop: tuple[int, int, int, int] | None = None  # x0, y0, x1, y1 in source pixels; x1 and y1 lie one past the last
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
        if bool(self.layout.mask) != (self.masks is not None):
            raise ValueError("layout.mask and masks: give both or neither")
        if self.crop and not (0 <= self.crop[0] < self.crop[2] and 0 <= self.crop[1] < self.crop[3]):
            raise ValueError("crop: x0, y0, x1, y1 with 0 <= x0 < x1 and 0 <= y0 < y1")
        self._check_columns()
        self._check_words()
        self._check_names()
        return self

    def _check_private(self) -> None:
        """Nothing of a private file but checked values can pass: the card must list all words that it lets through."""
        if self.deid_profile == "public":
            if self.relax:
                raise ValueError("relax: only private files are checked by these rules")
            return
        if self.scan_area == "keep":
            raise ValueError("scan_area: of private files only what is shown to be scan area is kept")
        if self.masks or self.crop:
            raise ValueError("masks, crop: not for private files; a reviewed template says where the scan area is")
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
        return frozenset(word for word in values if isinstance(word, str)) | frozenset(self.labels)

    def cleans(self, is_dicom: bool) -> bool:
        """Whether a file goes through de-identification's steps: its scan area only, its header by the allow-list."""
        return self.deid_profile == "private" or self.scan_area == "find" or (is_dicom and self.scan_area is None)

    def filled(self) -> list[tuple[str, Value, Table | None]]:
        """Every catalog column that files fill: (column, how, table or None for the path).

        The groups that bear a column's name come first, unless `fields` says otherwise.
        """
        own: dict[str, Value] = {}
        for pattern in (*self.layout.image, *self.layout.video) if self.layout else ():
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
        columns = [column for column, _, _ in self.filled()]
        for column, count in Counter(columns).items():
            kind, _, name = column.partition(".")
            if column not in FILLABLE and not (kind in ("labels", "targets") and re.fullmatch("[a-z][a-z0-9_]*", name)):
                raise ValueError(f"{column!r} is not a column that files can fill.{nearest(column, FILLABLE)}")
            if count > 1:
                raise ValueError(f"{column!r} is filled twice (by the path and a table, or by two tables)")
        if self.defaults.organ is None and "organ" not in columns and self.deid_profile == "public":
            raise ValueError("organ: give defaults.organ or a field that fills it")
        named = {column.removeprefix("labels.") for column in columns if column == "label" or column[:7] == "labels."}
        for name in sorted(named ^ set(self.labels)):
            raise ValueError(
                f"labels: no values are listed for {name!r}" if name in named else f"labels: no file fills {name!r}"
            )
        if self.target and f"targets.{self.target}" not in columns:
            raise ValueError(f"target: no table fills 'targets.{self.target}'")

    def _check_words(self) -> None:
        for column, value, _ in self.filled():
            for word in (value.map or {}).values():
                if column in ("organ", "mode", "species", "probe"):
                    _check(column, word)
                name = column.removeprefix("labels.")
                if name in self.labels and word not in self.labels[name]:
                    raise ValueError(f"{column}: maps to {word!r}, which labels.{name} does not list")
        for name, values in self.labels.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"labels.{name}: list each value once")

    def _check_names(self) -> None:
        """Each pattern offers every group that the fields and the tables' `match` ask for."""
        assert self.layout is not None
        patterns = [set(re.compile(pattern).groupindex) for pattern in (*self.layout.image, *self.layout.video)]
        known = set().union(*patterns) | set(BUILTIN_NAMES)
        asked = [(f"fields.{column}", value.names()) for column, value in self.fields.items()]
        asked += [("tables.match", PLACEHOLDER.findall(t.match) or [t.match]) for t in self.tables]
        for place, names in asked:
            for name in names:
                if name not in known:
                    raise ValueError(f"{place}: no image or video pattern has a group {name!r}.{nearest(name, known)}")


def _check(kind: str, word: str) -> str:
    try:
        return check_word(kind, word)
    except UsdataError as error:
        raise ValueError(error.message) from error


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
    content = card.model_dump(mode="json", by_alias=True, exclude=set(NOT_IN_DIGEST))
    if content["layout"]:
        del content["layout"]["example"]
    for name, default in (("relax", []), ("dicom", "refuse"), ("scan_area", None)):
        if content[name] == default:
            del content[name]  # came later: older cards keep their digest, and their shards
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
