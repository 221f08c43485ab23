"""From a card's source to the files to load: their names, addresses, and what is known of their bytes."""

from urllib.parse import unquote, urlsplit

from ingest.card_parts import Source
from ingest.fetch_answer import Patience, Wanted
from ingest.fetch_doi import Filed, resolve
from ingest.fetch_record import Record
from usdata.errors import CardError, DataError


def name_of(source: Source, dataset: str) -> str | None:
    """The name under which a source's file is stored; None if it is a whole record of a repository.

    Raises:
        CardError: the address ends in no name of a file, and the card gives no `archive`.
    """
    url = str(source.url)
    if source.archive:
        return source.archive
    if url.startswith("doi:"):
        return url.split("/", 2)[2].rpartition("/")[2] if url.count("/") > 1 else None
    name = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    if not name or "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
        raise CardError(
            f"{url} ends in no proper name of a file.",
            dataset=dataset,
            step="fetch",
            hint="Give the source an `archive` in the card: the name to store it under.",
        )
    return name


def wanted_files(source: Source, record: Record, accepted: frozenset[str], patience: Patience) -> list[Wanted]:
    """What is to be loaded for a source: one file; or for a DOI alone, all files of its record.

    Args:
        record: what an earlier fetch met.
        accepted: sha256s of files that may differ from it.

    Raises:
        CardError: see `name_of`.
        DataError: the repository behind a DOI does not answer, or has no such file.
    """
    url, name = str(source.url), name_of(source, record.dataset)
    if not url.startswith("doi:"):
        assert name is not None
        return [_wanted(source, name, Filed(name, url, None), record, accepted, whole=True)]
    filed = resolve(url, patience)
    if len(filed) == 1:
        return [_wanted(source, name or filed[0].name, filed[0], record, accepted, whole=True)]
    if source.archive:
        raise DataError(
            "not_loaded",
            f"{url} holds {len(filed)} files; the card's `archive` can't be the name of all.",
            dataset=record.dataset,
            step="fetch",
            hint=f"Name one in the card:  url: {url}/{source.archive}",
        )
    return [_wanted(source, one.name, one, record, accepted, whole=False) for one in filed]


def _wanted(
    source: Source, name: str, filed: Filed, record: Record, accepted: frozenset[str], *, whole: bool
) -> Wanted:
    """One file. `whole`: it is all that the source gives, so the card's mirrors and checksums are its."""
    before = record.sources.get(name)
    trusted = before.sha256 if before and before.source == source.url else None
    if not whole:
        return Wanted(name, (filed.url,), None, filed.md5, None, trusted, accepted)
    urls = (filed.url, *source.mirrors)
    return Wanted(name, urls, source.size, source.md5 or filed.md5, source.sha256, trusted, accepted)
