"""`usdata dedup` as one call: search, count, write."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usdata.cohort import Cohort
from usdata.dedup_find import THRESHOLD, Duplicates, find_duplicates
from usdata.dedup_relations import Pairs
from usdata.dedup_sheet import SHEET_FILES, write_sheet
from usdata.dedup_table import catalog_state, duplicates_path, why_stale, write_duplicates
from usdata.errors import ConfigError, LakeError
from usdata.files import explain_os_errors, replacing
from usdata.lake import Lake
from usdata.workers import Progress, silent

PAIR_FILES = (".csv", ".parquet")


@dataclass(frozen=True)
class Outcome:
    """What a search found, and what became of the lake's table.

    Attributes:
        cohort: what was searched; after the table was written it can't be asked any more.
        wrote: whether the table was written; None: nothing was to be written.
        before: why the table that stood there was not of this catalog.
    """

    cohort: Cohort
    found: Duplicates
    pairs: Pairs
    wrote: bool | None
    before: str | None

    def rows(self) -> list[dict[str, Any]]:
        """Pairs by relation and data set."""
        return self.pairs.counts()

    def words(self) -> list[str]:
        """The report for a person."""
        found, totals = self.found, self.pairs.totals()
        lines = [self.before] if self.before else []
        lines.append(
            f"{totals['groups']:,} groups of {totals['images']:,} images, the largest of {totals['largest']:,}; "
            f"the pixels of {found.read:,} of {self.cohort.rows:,} images were read, "
            f"{found.laid:,} pairs laid over each other."
        )
        for name, word in (("label", "labels"), ("patient", "patients"), ("official_split", "official splits")):
            if number := totals[f"several_{name}s"]:
                lines.append(f"{number:,} groups hold images of different {word}.")
        if len(found.blank):
            lines.append(f"{len(found.blank):,} images show nothing (no contrast): they are no duplicates.")
        if found.unhashed:
            lines.append(f"{found.unhashed:,} images have no perceptual hash: only exact copies of them are found.")
        if found.skipped:
            lines.append(f"{found.skipped:,} comparisons of hashes were spared where very many are alike.")
        if found.crowded:
            lines.append(f"{found.crowded:,} images have more than 32 near others by hash: the nearest were looked at.")
        path = duplicates_path(self.cohort.lake)
        said = {True: f"{path} written.", False: f"{path} is up to date.", None: "Nothing was written to the lake."}
        return [*lines, said[self.wrote]]


def search(
    lake: Lake,
    cohort: str = "all",
    threshold: float = THRESHOLD,
    *,
    recut: bool = True,
    write: bool = True,
    sheet: Path | None = None,
    pairs: Path | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Outcome:
    """Find the duplicates of a lake and put their groups into `catalog/duplicates.parquet`.

    Args:
        cohort: SQL condition or saved name; only what is found in all samples is ever written.
        threshold: correlation of thumbnails that a near pair must exceed.
        recut: also look for copies that were cut or shifted, see `find_duplicates`.
        write: False: only look.
        sheet: a .html or .png file for a contact sheet of the largest groups, see `write_sheet`.
        pairs: a .csv or .parquet file for all pairs, see `write_pairs`.
        workers: threads; the result is the same for any number.
        progress: told of the bytes read.

    Raises:
        QueryError: the cohort is refused.
        ConfigError: a threshold that is none, or a file of another kind.
        LakeError: the lake is remote, damaged, or changed meanwhile.
    """
    for path, kinds in ((sheet, SHEET_FILES), (pairs, PAIR_FILES)):
        if path is not None and path.suffix.lower() not in kinds:
            raise ConfigError(f"{path.name!r} is no {' or '.join(kinds)} file.")
    whole = cohort.strip() == "all"
    before = None
    if write and whole:
        lake.check_writable()
        before = _why_stale(lake)
    state = catalog_state(lake)
    chosen = lake.cohort(cohort)
    found = find_duplicates(chosen, threshold, recut, workers, progress)
    settings = {"threshold": threshold, "recut": recut}
    related = Pairs(chosen, found)
    if pairs is not None:
        write_pairs(related, pairs)
    if sheet is not None:
        write_sheet(chosen, found, sheet)
    # Last: with the table the catalog is another one, and the cohort of before can't be asked any more.
    wrote = write_duplicates(chosen, found, settings, state) if write and whole else None
    return Outcome(chosen, found, related, wrote, before)


def _why_stale(lake: Lake) -> str | None:
    """Why a table that is there is not of this catalog; a damaged one will be replaced."""
    if not duplicates_path(lake).exists():
        return None
    try:
        return why_stale(lake)
    except LakeError as error:
        return error.message


def write_pairs(pairs: Pairs, out: Path) -> Path:
    """Write a row for each pair to a .csv or .parquet file: both sample ids, correlation, relation.

    Raises:
        LakeError: it can't be written.
    """
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    with explain_os_errors(out, step="pairs", elsewhere="with --pairs FILE"), replacing(out) as file:
        if out.suffix.lower() == ".csv":
            csv.write_csv(pairs.table(), file)
        else:
            pq.write_table(pairs.table(), file, compression="zstd", write_page_checksum=True)
    return out
