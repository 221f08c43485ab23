"""The parts of a data set's card: where its files are, how paths, tables, masks and arrays are read.

`ingest.card.Card` puts them together. Every model refuses keys that it does not know.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from usdata.errors import UsdataError
from usdata.schema import check_word

PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


class Model(BaseModel):
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


How = Literal["direct", "git", "kaggle", "drive", "registration", "request", "private", "generate", "unknown"]


class Source(Model):
    """Where a data set, or one archive of it, comes from; checksums where they are known.

    `usdata fetch` loads every source that has a `url`. A source without one tells a person what to do; beside loaded
    ones of the same `part` it is only another way to the same files. All parts are needed.
    """

    page: str | None = None  # for people
    # Of the file itself: what `usdata fetch` loads. Or doi:10.5281/zenodo.123/NAME of a file at Zenodo, figshare or a
    # Dataverse; doi:10.5281/zenodo.123 is all of its files.
    url: str | None = None
    mirrors: Words = ()  # other addresses of the same bytes, tried in this order
    how: How = "direct"
    steps: str | None = None  # where fetch can't: what a person does, step by step
    part: str = "files"  # sources of one part are ways to the same files; a card with several parts needs each
    archive: str | None = None  # name of the file; default: the end of `url`
    into: str = "."  # folder below the data set's own that the archive is unpacked into
    unpack: bool | None = None  # default: what is called .zip, .tar, .tgz, .tar.gz, ... is unpacked
    nested: Words = ()  # archives inside it: paths below `into`, * for any; each becomes a folder of its name
    names: str | None = None  # encoding of names that the archive does not declare, e.g. gbk; default: UTF-8, or cp437
    size: int | None = Field(default=None, ge=0)  # bytes
    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    note: str | None = None

    @field_validator("url", "mirrors")
    @classmethod
    def _address(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for one in (value,) if isinstance(value, str) else value or ():
            if not re.match(r"https?://[^/\s]+/|doi:10\.\d{4,9}/\S", one):
                raise ValueError(f"an address of a file, https://... or doi:10...., not {one[:200]!r}")
        return value

    @field_validator("into", "archive", "nested")
    @classmethod
    def _inside(cls, value: str | tuple[str, ...] | None, info: Any) -> str | tuple[str, ...] | None:
        for one in (value,) if isinstance(value, str) else value or ():
            parts = one.split("/")
            if (one != "." and any(part in ("", ".", "..") for part in parts)) or "\\" in one or "\0" in one:
                raise ValueError(f"a path below the data set's folder, not {one!r}")
            if info.field_name == "archive" and (len(parts) > 1 or one.startswith(".")):
                raise ValueError(f"one file's name, not {one!r}")
        return value

    @field_validator("names")
    @classmethod
    def _codec(cls, names: str | None) -> str | None:
        return names and known_encoding(names)


class Value(Model):
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


Role = Literal["ignore", "table", "mask", "video", "volume", "container", "image"]


class Layout(Model):
    """Regular expressions for whole POSIX paths below the root; their named groups are the fields.

    A file takes the first role that fits it, in the order ignore, table (from `Card.tables` and `Card.annotations`),
    mask, video, volume, container, image.
    """

    image: Patterns = ()
    video: Patterns = ()
    volume: Patterns = ()  # an array of frames or slices: NIfTI, MetaImage, NRRD, NPY, HDF5, MAT; see `Arrays`
    container: Patterns = ()  # one file of many images or clips, which `Card.reader` tells apart
    mask: Patterns = ()
    ignore: Patterns = ()
    pair_by: tuple[str, ...] | None = None  # groups that tie a mask to its image; default: all that both name
    ignore_case: bool = False  # .PNG as well as .png, for all patterns; the keys of tables too
    example: dict[Role, Words] = {}  # made-up paths; a test runs them

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.pictures:
            raise ValueError("give an image, video, volume or container pattern")
        for mask in self.mask:
            for image in self.pictures:
                if not self.pairing(mask, image):
                    raise ValueError(f"nothing pairs masks with images: no group is named in both {mask} and {image}")
        return self

    @property
    def pictures(self) -> tuple[str, ...]:
        """All patterns of files that hold images."""
        return (*self.image, *self.video, *self.volume, *self.container)

    def pairing(self, mask: str, image: str) -> tuple[str, ...]:
        """The groups whose values a mask shares with its image, sorted."""
        shared = set(re.compile(mask).groupindex) & set(re.compile(image).groupindex)
        if self.pair_by is None:
            return tuple(sorted(shared))
        missing = set(self.pair_by) - shared
        if missing:
            raise ValueError(f"pair_by: {', '.join(sorted(missing))} is not a group of both {mask} and {image}")
        return tuple(sorted(self.pair_by))


class Table(Model):
    """A CSV, TSV, JSON, XLSX, YAML or XML file whose rows give columns to items.

    A row belongs to the items for which `match` (filled from the item's path) equals `key` (filled from the row).
    Named groups of `file` count as columns of each of its rows. Header and values are stripped of blanks. A column
    `a.b` is the entry `b` of a JSON object in the cell `a`.
    """

    file: Regex  # for the whole POSIX path below the root
    key: str  # a column, or a template of columns: "{split}/{filename}"
    match: str  # a group or template of groups, or of path, name, stem, parent (of the item): "{split}/{name}"
    columns: Values  # catalog column -> how to read it from the row
    # auto: by extension. lines: split at blanks. lists: a JSON object of lists, each entry a row {list, value}.
    # mapping: the file is one row, of `key: value` lines (YAML). xml: the file is one row, of its elements' texts.
    format: Literal["auto", "csv", "json", "xlsx", "lines", "lists", "mapping", "xml"] = "auto"
    rows: str | None = None  # of JSON: dotted path to the list of rows inside the file ("annotations")
    sheet: str | None = None  # of XLSX; default: the first
    separator: str | None = None  # of CSV; default: tab for .tsv, else comma
    header: tuple[str, ...] | None = None  # column names of a file that has none
    encoding: str = "utf-8-sig"
    missing: tuple[str, ...] = ("nan", "NaN", "NA", "N/A", "null")  # besides the empty value
    required: bool = False  # the file must be there; otherwise its absence is a note
    every_item: bool = False  # an item without a row is refused (label_missing)

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        return known_encoding(encoding)

    @field_validator("separator")
    @classmethod
    def _one_character(cls, separator: str | None) -> str | None:
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise ValueError(f"one character that is no quote and no end of line, not {separator!r}")
        return separator


class Masks(Model):
    """What the pixels of a mask file mean.

    binary: grey above `threshold` is `classes[1]`; several files of one image are merged by OR.
    outline: like binary, then closed curves are filled.
    index: the stored number (palette index or grey level) is looked up in `values`.
    colour: the RGB colour is looked up in `colours`.
    drawn: no mask file holds pixels; `Card.annotations` give the shapes.
    """

    kind: Literal["binary", "outline", "index", "colour", "drawn"] = "binary"
    classes: tuple[str, ...] = ("background", "foreground")  # name of each index of the stored mask
    threshold: int = Field(default=127, ge=0, le=254)
    values: dict[int, str] | None = None  # index: stored number -> class; default: the position in `classes`
    colours: dict[str, str] | None = None  # colour: "r,g,b" -> class
    by_path: dict[Regex, str] | None = None  # binary, outline: class of a file, by a search in its path
    required: bool = False  # an image without a mask is refused
    other_size: Literal["refuse", "resize"] = "refuse"  # a mask of another size than its image
    if_bad: Literal["image_only", "refuse"] = "image_only"  # an unusable mask: keep its image without, or refuse both
    fill: bool = False  # closed curves of each class are filled (kind outline does it anyway)
    turned: bool = False  # a mask whose sides are swapped is turned back by 90 degrees clockwise
    inside_echo: bool = False  # mask pixels where the image is 0 become background
    other: Literal["refuse", "background"] = "refuse"  # numbers and colours that the card does not list
    # Which frame of a clip or volume a mask file belongs to: the number in its group `frame`, or its rank among the
    # clip's masks. Null: a mask volume has the frames of its volume; a still has one.
    frame_from: Literal["group", "order"] | None = None
    frame_base: Literal[0, 1] = 0  # the number of the first frame, in names and annotations
    label: dict[str, str] | None = None  # class -> label: the first class here that has a pixel gives `label`

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
        used += self.label or ()
        for name in used:
            if name not in self.classes:
                raise ValueError(f"{name!r} is not among the classes {', '.join(self.classes)}")
        if self.kind in ("binary", "outline") and not self.by_path and len(self.classes) != 2:
            raise ValueError(f"a mask of kind {self.kind} has two classes unless by_path tells more apart")
        return self


class Annotations(Model):
    """A file of shapes given as numbers: outlines become masks, boxes and points the column `marks`.

    A shape belongs to the items for which `match` (filled from the item's path) equals `key` (filled from the shape's
    own words: `file` and `stem` of the picture it names, groups of the annotation file's path, and what the format
    gives). Coordinates are pixels of the source picture, before any crop. A group `name` of `file` names all its
    shapes. A shape whose class is the background (of marks: "") is left out and counted; a picture without any shape
    has no mask.

    coco: COCO JSON with polygons, run lengths or boxes. labelme: one JSON per picture. via: VGG Image Annotator's CSV.
    points: one JSON per picture, a bare list of [x, y]. tracings: a table of x, y rows per frame. rle: a table of run
    lengths, column by column, as Kaggle writes them. voc: one Pascal VOC XML per picture. svg: DDTI's XML of svg marks.
    named: JSON, picture -> name -> {x, y} or a list of boxes.
    """

    file: Regex
    format: Literal["coco", "labelme", "via", "points", "tracings", "rle", "voc", "svg", "named"]
    key: str
    match: str
    classes: dict[str, str] = {}  # the source's name of a shape -> class of `masks.classes`, or name of the mark
    becomes: Literal["mask", "marks"] = "mask"
    columns: dict[str, str] = {}  # of tables: which column is file, frame, x, y, x2, y2, name, runs (of rle)
    skip_first: int = Field(default=0, ge=0)  # of tracings: leading rows of each frame that are no outline (an axis)
    frame_base: Literal[0, 1] = 0
    encoding: str = "utf-8-sig"
    required: bool = False


class Arrays(Model):
    """How a stored array becomes frames of rows and columns.

    `axes` names the stored axes in the order the file gives them: f frames or slices, y rows downwards, x columns to
    the right, c colours, k planes of classes (masks only), `_` an axis of length one. NIfTI gives its axes in index
    order (i, j, k, t: the first varies fastest on disk; last axes of length one may be missing or extra); MetaImage and
    NRRD the slowest first, as SimpleITK's arrays; NPY, HDF5 and MAT as NumPy shows them.
    """

    axes: str = Field(pattern="^[fyxck_]{2,5}$")
    mask_axes: str | None = Field(default=None, pattern="^[fyxck_]{2,5}$")  # default: as `axes`
    flip: tuple[Literal["f", "y", "x"], ...] = ()  # axes that run backwards; image and mask alike
    dataset: str | None = None  # of HDF5, MAT, NPZ: name of the array
    mask_dataset: str | None = None  # the mask's name in its own files, or in the volume's if it has none
    # stored: numbers are grey levels, 0-255; unit: 0-1; range: the file's smallest to its largest; or two numbers
    window: Literal["stored", "unit", "range"] | tuple[float, float] = "stored"

    @field_validator("axes", "mask_axes")
    @classmethod
    def _each_once(cls, axes: str | None) -> str | None:
        letters = (axes or "yx").replace("_", "")
        if len(set(letters)) != len(letters) or not {"y", "x"} <= set(letters):
            raise ValueError(f"{axes!r} must name y and x, and no axis twice")
        return axes


class Frames(Model):
    """Which frames of a video or volume become images: every `stride`-th, thinned evenly to at most `max_per_clip`.

    Of `annotated`: a frame is if it has marks, or a mask that is not empty (an empty one counts where `masks.label`
    names the background). `only`: stride and max_per_clip thin those.
    """

    stride: int = Field(default=1, ge=1)
    max_per_clip: int | None = Field(default=None, ge=1)
    annotated: Literal["as_others", "also", "only"] = "as_others"  # frames with a mask or marks: kept besides, or alone


class Defaults(Model):
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
        return None if word is None else known_word(info.field_name, word)


class Expect(Model):
    """Published counts of the whole set. Ingest warns when it finds more than 2 % otherwise; it never fails on them."""

    images: int | None = None
    videos: int | None = None
    patients: int | None = None
    label: dict[str, int] = {}


def known_word(kind: str, word: str) -> str:
    """`word` as the vocabulary `kind` spells it; a ValueError, which pydantic reports, if it does not list it."""
    try:
        return check_word(kind, word)
    except UsdataError as error:
        raise ValueError(error.message) from error


def known_encoding(name: str) -> str:
    """`name`, if Python knows such a text encoding; else a ValueError, which pydantic reports."""
    try:
        "x".encode(name)
    except LookupError as error:
        raise ValueError(f"no text encoding {name!r}; for example utf-8, latin-1, cp1252, gbk, utf-16") from error
    return name
