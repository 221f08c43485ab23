"""Fixtures that several packages' tests share."""

import os
from pathlib import Path

import pytest

from ingest.card import get_card
from ingest.run import ingest
from usdata.lake import Lake

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real sample images: $USDATA_REAL_DATA, else ../shared/data; tests that need them are skipped without."""
    place = Path(os.environ.get("USDATA_REAL_DATA") or PROJECT.parent / "shared" / "data")
    if not (place / "MANIFEST.csv").exists():
        pytest.skip(f"no real sample data at {place}; set USDATA_REAL_DATA (the fakes cover the same code)")
    return place


@pytest.fixture(scope="session")
def phantom_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with 80 phantom images of eight organs. Shared: tests only read it."""
    lake = Lake.create(tmp_path_factory.mktemp("phantom") / "lake")
    ingest(get_card("phantom"), None, lake, count=80)
    return lake
