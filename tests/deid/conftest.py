"""What the tests of de-identification share: a world of folders per test, with a key."""

from pathlib import Path

import pytest
from fakes.deid_run import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Folders for source, home, temporary files, private area; a key file."""
    return World(tmp_path / "world")
