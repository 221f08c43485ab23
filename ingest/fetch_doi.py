"""Files behind a DOI: pooch asks Zenodo, figshare or a Dataverse which there are, where they lie, and their md5.

`doi:10.5281/zenodo.123/name.zip` is one file, `doi:10.5281/zenodo.123` all files of the record.
"""

import re
from dataclasses import dataclass

from ingest.fetch_answer import Patience, reason_of
from usdata.errors import DataError, describe

_DOI = re.compile(r"doi:(10\.\d{4,9}/[^/\s]+)(?:/(.+))?")
_CHECKSUM = re.compile(r"md5:[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Filed:
    """One file of a record: name, address, and md5 if the repository gives one."""

    name: str
    url: str
    md5: str | None


def resolve(address: str, patience: Patience) -> list[Filed]:
    """The files that a `doi:` address means, by name.

    Raises:
        DataError: step fetch, reason not_loaded: the repository can't be reached, is none of the three, or has no such
            file; the message says which.
    """
    import requests
    from pooch.downloaders import doi_to_repository

    found = _DOI.fullmatch(address)
    if not found:
        raise _failed(address, "no DOI with a file's name behind it")
    doi, name = found[1], found[2]
    registry = _Registry()
    try:
        repository = doi_to_repository(doi, timeout=patience.read)
        repository.populate_registry(registry)
        names = [name] if name else sorted(registry.registry)
        files = [Filed(one, repository.download_url(one), _md5(registry.registry.get(one))) for one in names]
    except requests.RequestException as error:
        raise _failed(address, reason_of(error)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _failed(address, describe(error)) from error  # the last ones: an answer of another shape than pooch knows
    if not files:
        raise _failed(address, "the record holds no file")
    for one in files:
        if "/" in one.name or "\\" in one.name or one.name.startswith(".") or not one.name.isprintable():
            raise _failed(address, f"a file with the name {one.name!r}")
    return files


class _Registry:
    """What pooch's repositories fill: name -> checksum."""

    def __init__(self) -> None:
        self.registry: dict[str, str] = {}


def _md5(checksum: str | None) -> str | None:
    return checksum[4:] if checksum and _CHECKSUM.fullmatch(checksum) else None


def _failed(address: str, why: str) -> DataError:
    return DataError(
        "not_loaded",
        f"{address} can't be resolved: {why}.",
        step="fetch",
        hint="Open https://doi.org/ with it in a browser; and run the same command again later.",
    )
