"""Splits of a lake: made, checked, published. A patient, study, clip or near-duplicate never stands in two of them.

`make_split` writes `catalog/splits.parquet`, the one active split; what it is made by stands in the file itself.
`check_split` lists the leaks of any assignment. What stays as a lake grows: docs/splits.md.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from usdata.catalog import Catalog, ask, canonical, write_duckdb, write_part
from usdata.errors import ConfigError, LakeError
from usdata.files import explain_os_errors
from usdata.lake import Lake
from usdata.parts import DAMAGED
from usdata.schema import SPLITS
from usdata.split_assign import (
    LEFT_OUT,
    Assigned,
    OnLeaks,
    Settings,
    assign,
    coded_as,
    fold_shares,
    parse_ratios,
)
from usdata.split_file import SplitFile, catalog_fingerprint, read_split_file, write_split_file
from usdata.split_groups import COLUMNS, Groups, Links, group_images, links_of, owner_names
from usdata.split_leaks import Leaks, find_leaks

_KEY = b"usdata.split"  # of the Parquet file's own notes: the settings
_PUBLISHED = ("train", "val", "test")  # the words of `official_split`
_BESIDE = ("duplicate_group", "split")  # columns that curation adds


@dataclass(frozen=True)
class Split:
    """A split that was made: of which images, by what, and what is wrong with it."""

    settings: Settings
    links: Links
    groups: Groups
    assigned: Assigned
    leaks: Leaks  # of the fixed words, before images were left out
    stale: str | None  # why not all near-duplicates are known; None: they are
    written: Path | None
    on_leaks: OnLeaks

    @property
    def refused(self) -> bool:
        """Whether it was not written because of its leaks."""
        return self.on_leaks == "refuse" and bool(self.leaks)

    @property
    def overruled(self) -> int:
        """Images that keep their earlier word though another one was published for them since."""
        if self.settings.official == "ignore":
            return 0
        words = self.assigned.words
        published = coded_as(self.links.table["official_split"], ["test"] if self.settings.folds else words, words)
        return int((self.assigned.earlier & (published >= 0) & (published != self.assigned.codes)).sum())

    def table(self) -> pa.Table:
        """Columns of `schema.SPLITS`, in the catalog's order, with the settings as a note."""
        names = self.groups.names.take(pa.array(self.groups.of))
        words = pa.DictionaryArray.from_arrays(pa.array(self.assigned.codes), pa.array(self.assigned.words))
        table = pa.table({"sample_id": self.links.table["sample_id"], "group": names, "split": words})
        note = json.dumps(self.settings.record(), sort_keys=False)
        return canonical(table, SPLITS).replace_schema_metadata({_KEY: note.encode()})


def splits_path(lake: Lake) -> Path:
    """The table of the active split."""
    return lake.root / "catalog" / "splits.parquet"


def active_settings(lake: Lake) -> Settings | None:
    """What the active split was made by; None if there is no split, or one that usdata did not make.

    Raises:
        LakeError: the table is damaged.
    """
    path = splits_path(lake)
    if not path.exists():
        return None
    try:
        note = (pq.read_schema(path).metadata or {}).get(_KEY)
        return None if note is None else Settings.of_record(json.loads(note))
    except (*DAMAGED, ConfigError, KeyError, TypeError, AttributeError) as error:
        raise LakeError(
            f"{path} is damaged ({error}).", step="split", hint=f"Remove it and split anew:  rm {quote(str(path))}"
        ) from error


def make_split(
    lake: Lake,
    changes: Mapping[str, Any] | None = None,
    *,
    on_leaks: OnLeaks = "refuse",
    like: Path | None = None,
    anew: bool = False,
    dry_run: bool = False,
) -> Split:
    """Split all images of the lake, and make that the active split.

    Images that the active split holds keep their word; images that came since join their group, or are placed by hash.

    Args:
        changes: fields of `Settings` that are asked for; the others are those of the active split, or the defaults.
        on_leaks: what to do with groups that stand in two splits by words that are fixed (published, or of an earlier
            split): `refuse` writes nothing, `drop` leaves out all of a group's images but those of its most precious
            split (test, then val), `keep` leaves them as they are.
        like: a published file whose words are kept in place of the active split's.
        anew: forget the active split.
        dry_run: write nothing.

    Returns:
        The split; `written` is None if nothing was written: a dry run, or leaks that are refused.

    Raises:
        ConfigError: settings that make no sense, or others than the active split's without `anew`; a file `like` that
            can't be read or names no sample of the lake.
        LakeError: an empty, damaged or remote lake, or one that can't be written.
    """
    with explain_os_errors(splits_path(lake), step="split"), lake.commit_lock():
        active = None if anew or like else active_settings(lake)
        published = read_split_file(like) if like else None
        settings = replace(active or _settings_of(published) or Settings(), **(changes or {}))
        _check_same(lake, active, settings, anew, like)
        _check_parts(published, settings)
        links, stale = read_links(lake)
        links = replace(links, table=_with_earlier(links.table, active is not None, published, lake))
        if active is not None:
            links = replace(links, table=_with_owners_words(links, splits_path(lake)))
        groups = group_images(links)
        kept = assign(links, groups, settings, "keep")
        leaks = find_leaks(links, groups, kept.words, without_left_out(kept))
        assigned = assign(links, groups, settings, "drop") if on_leaks == "drop" else kept
        path = splits_path(lake)
        split = Split(settings, links, groups, assigned, leaks, stale, None, on_leaks)
        if dry_run or split.refused:
            return split
        write_part(path, split.table())
        write_duckdb(lake)  # its view joins the table only if it is there
    return replace(split, written=path)


def asked_for(
    ratios: str | None = None,
    folds: int | None = None,
    seed: str | None = None,
    official: str | None = None,
    balanced: bool | None = None,
) -> dict[str, Any]:
    """The fields of `Settings` that a user names, from the words of the command line; None: not named.

    Raises:
        ConfigError: ratios and folds at once, or one of them makes no sense.
    """
    if ratios and folds is not None:
        raise ConfigError("Folds are equal parts: give --folds or --ratios.", step="split")
    named: dict[str, Any] = {"seed": seed, "official": official, "balanced": balanced}
    if ratios:
        named["shares"] = parse_ratios(ratios)
    if folds is not None:
        named["shares"] = fold_shares(folds)
    return {name: value for name, value in named.items() if value is not None}


def _settings_of(published: SplitFile | None) -> Settings | None:
    """The settings in a published file's head; None if it has none."""
    if published is None or "settings" not in published.head:
        return None
    try:
        return Settings.of_record(json.loads(published.head["settings"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{published.path}: its line 'settings' can't be read ({error}).", step="split") from error


def _check_same(lake: Lake, active: Settings | None, settings: Settings, anew: bool, like: Path | None) -> None:
    """Refuse to put a split of other settings, none of ours, or another's words in the active one's place unasked."""
    if anew or not splits_path(lake).exists() or active == settings:
        return
    if like is not None:
        raise ConfigError(
            f"The lake has a split already; what {like} does not name would be placed anew, and may move.",
            step="split",
            hint="Publish it first:  usdata split --export FILE.csv        Forget it: add --anew",
        )
    was = "not made by usdata split" if active is None else f"made with {_words(active)}"
    raise ConfigError(
        f"The lake has a split already, {was}; with {_words(settings)} nearly every image would move.",
        step="split",
        hint="Keep it: leave these options away.  Publish it first:  usdata split --export FILE.csv\n"
        "  Forget it: add --anew",
    )


def _check_parts(published: SplitFile | None, settings: Settings) -> None:
    """Refuse words to keep that are no part of the split: new images would go to parts of other names."""
    words = set() if published is None else set(published.words.unique().drop_null().to_pylist())
    if strange := sorted(words - {*settings.words, *_PUBLISHED, LEFT_OUT}):
        raise ConfigError(
            f"{published.path if published else ''} has the part {strange[0]!r}; "
            f"the ratios have {', '.join(settings.words)}.",
            step="split",
            hint=f"Give the ratios of its parts:  --ratios {','.join(f'{word}=SHARE' for word in sorted(words))}",
        )


def _words(settings: Settings) -> str:
    parts = f"{len(settings.shares)} folds" if settings.folds else f"ratios {settings.ratios()}"
    more = ", balanced" if settings.balanced else ""
    return (
        f"seed {settings.seed!r}, {parts}, official splits {'kept' if settings.official == 'keep' else 'ignored'}{more}"
    )


def read_links(lake: Lake) -> tuple[Links, str | None]:
    """What ties the lake's images, in the catalog's order, and why not all near-duplicates are known, if so.

    Raises:
        LakeError: no data set in the lake, or a damaged one.
    """

    def read(catalog: Catalog) -> pa.Table:
        rows = catalog.rows_where("true")
        table = catalog.read([name for name in COLUMNS if name not in _BESIDE], rows)
        there = {name: (lake.root / "catalog" / f"{name}.parquet").exists() for name in ("splits", "duplicates")}
        wanted = [column for column, name in zip(_BESIDE, ("duplicates", "splits"), strict=True) if there[name]]
        if wanted:
            for name, column in zip(wanted, catalog.select("true", wanted).columns, strict=True):
                table = table.append_column(name, column)
        return table

    table = ask(lake, read)
    if not len(table):
        raise LakeError(f"{lake.address} holds no image yet.", hint="Bring some in:  usdata ingest phantom")
    return links_of(table), _why_stale(lake)


def _why_stale(lake: Lake) -> str | None:
    from usdata.dedup_table import why_stale

    try:
        return why_stale(lake)
    except LakeError as error:  # a table by other means: its groups count, but nobody knows whether it is whole
        return error.message


def _with_earlier(table: pa.Table, active: bool, published: SplitFile | None, lake: Lake) -> pa.Table:
    """The table with the words to keep as its column `split`."""
    place = table.column_names.index("split")
    if published is not None:
        return table.set_column(place, "split", _looked_up(table, published, lake))
    return table if active else table.set_column(place, "split", pa.nulls(len(table), pa.string()))


def _with_owners_words(links: Links, path: Path) -> pa.Table:
    """The table with words for images that came since, of a patient (study, clip) whose earlier images are gone.

    A data set that is read anew from a later version has other sample ids; its patients stay where they were. They are
    known by the names of the split's groups: of a group of several patients that is one.

    Raises:
        LakeError: the active split's table is damaged.
    """
    table, words = links.table, links.table["split"].cast(pa.string())
    try:
        old = pq.read_table(path, columns=["group", "split"], partitioning=None)
    except DAMAGED as error:
        raise LakeError(
            f"{path} is damaged ({error}).", step="split", hint=f"Remove it and split anew:  rm {quote(str(path))}"
        ) from error
    if not words.null_count or len(old) == len(words) - words.null_count:
        return table  # nothing came, or nothing went
    known = old.cast(pa.schema([("group", pa.string()), ("split", pa.string())]))
    known = known.filter(pc.not_equal(known["split"], LEFT_OUT))
    known = known.group_by("group").aggregate([("split", "min"), ("split", "max")])
    known = known.filter(pc.equal(known["split_min"], known["split_max"])).combine_chunks()
    found = known["split_min"].take(pc.index_in(owner_names(links), value_set=known["group"].combine_chunks()))
    return table.set_column(table.column_names.index("split"), "split", pc.coalesce(words, found))


def _looked_up(table: pa.Table, published: SplitFile, lake: Lake) -> pa.ChunkedArray:
    """The file's word of each row; null where it has none.

    Raises:
        ConfigError: the file knows no sample of the lake.
    """
    found = pc.index_in(table["sample_id"], value_set=published.ids)
    if found.null_count == len(found):
        raise ConfigError(
            f"{published.path} names no sample of {lake.address}.",
            step="split",
            hint=f'How they are called:  usdata sql "select sample_id from samples limit 3" --lake {lake.address}',
        )
    return pa.chunked_array([published.words]).take(found)


def without_left_out(assigned: Assigned) -> Any:
    """(n,) int32 codes with −1 for images that were left out: they can't leak."""
    return np.where(assigned.left_out, -1, assigned.codes).astype(np.int32)


# --- check and publish ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """An assignment, and its leaks."""

    leaks: Leaks
    images: int  # that have a split
    unassigned: int  # that have none, or were left out
    unknown: int  # lines of the file that name no sample of the lake
    stale: str | None  # as of `Split`

    def images_by_split(self) -> dict[str, int]:
        """Split -> images."""
        codes = self.leaks.codes
        counts = np.bincount(codes[codes >= 0], minlength=len(self.leaks.words))
        return {word: int(n) for word, n in zip(self.leaks.words, counts, strict=True) if n}


def check_split(lake: Lake, assignment: Path | str = "active") -> Checked:
    """Look for leaks in an assignment of the lake's images to splits.

    Args:
        assignment: `active`, `official` (the published words), or a CSV with the columns sample_id and split.

    Raises:
        ConfigError: there is no such assignment, or its file can't be used.
        LakeError: an empty or damaged lake.
    """
    links, stale = read_links(lake)
    unknown = 0
    if assignment == "active":
        column = links.table["split"]
    elif assignment == "official":
        column = links.table["official_split"]
    else:
        published = read_split_file(Path(assignment))
        column = _looked_up(links.table, published, lake)
        unknown = (
            len(published.ids) - pc.sum(pc.is_in(published.ids, links.table["sample_id"].combine_chunks())).as_py()
        )
    words = sorted({*column.cast(pa.string()).unique().drop_null().to_pylist()} - {LEFT_OUT})
    if not words:
        raise ConfigError(*_NOTHING.get(str(assignment), (f"{assignment} puts no image of the lake into a split.",)))
    codes = coded_as(column, words)
    leaks = find_leaks(links, group_images(links), words, codes)
    inside = int((codes >= 0).sum())
    return Checked(leaks, inside, len(links) - inside, unknown, stale)


_NOTHING = {
    "active": ("The lake has no split yet. Make one:  usdata split",),
    "official": ("No data set of the lake has a published split.",),
}


def export_split(lake: Lake, path: Path, overwrite: bool = False) -> tuple[int, str]:
    """Write the active split as a file to publish; gives how many images it holds, and its SHA-256.

    Raises:
        ConfigError: no split, or the file is there already.
        LakeError: the split is damaged, or the file can't be written.
    """
    settings = active_settings(lake)
    if not splits_path(lake).exists():
        raise ConfigError(_NOTHING["active"][0], step="export")
    table = ask(lake, lambda catalog: catalog.select("split is not null", ["sample_id", "group", "split"]))
    head = {} if settings is None else _head(settings)
    head |= {"catalog": catalog_fingerprint(lake), "images": str(len(table))}
    return len(table), write_split_file(path, table, head, overwrite)


def _head(settings: Settings) -> dict[str, str]:
    return {
        "seed": settings.seed,
        "ratios": settings.ratios(),
        "official": settings.official,
        "balanced": "yes" if settings.balanced else "no",
        "settings": json.dumps(settings.record()),
    }
