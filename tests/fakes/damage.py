"""A small lake to be damaged, and ways to damage it."""

import tarfile
from pathlib import Path
from typing import Any

import pytest
from fakes.folders import write_folder

from ingest.card import load_card
from ingest.run import ingest
from usdata.catalog import read_part
from usdata.files import file_xxh, read_json, write_json
from usdata.lake import Lake
from usdata.seal import seal
from usdata.shards import header
from usdata.verify import Finding

Members = list[tuple[str, bytes]]


def fill(root: Path, name: str, lake: Path, images: int = 6) -> None:
    """Ingest a data set of `images` images, some to a shard."""
    folder = root / name / "source"
    if not folder.exists():
        write_folder(folder, images=images)
        card = root / name / "mine.yaml"
        card.write_text(card.read_text().replace("name: mine", f"name: {name}"))
    ingest(load_card(root / name / "mine.yaml"), folder, Lake.create(lake))


def make_origin(root: Path) -> Path:
    """A folder with the sources of two data sets and their lake, `lake`: five shards and a saved cohort."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.plan.MAX_SAMPLES", 3)
        fill(root, "mine", root / "lake", images=7)
        fill(root, "other", root / "lake", images=4)
    Lake(root / "lake").cohort("label = 'benign'").save("harmless")
    seal_all(Lake(root / "lake"))
    return root


def seal_all(lake: Lake) -> None:
    """Seal every JSON file of a lake, as its writers do."""
    for path in lake.root.rglob("*.json"):
        if not path.name.startswith(".") and ".staging" not in path.parts:
            write_json(path, seal(read_json(path)))


def files_of(lake: Lake) -> list[Path]:
    """Every file that holds data: not the views for the duckdb shell, which can be deleted, nor the locks."""
    paths = sorted(p for p in lake.root.rglob("*") if p.is_file() and p.suffix not in (".duckdb", ".lock"))
    assert len(paths) > 10
    return paths


def damage(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "damage"]


def owners(lake: Lake, path: Path) -> list[str] | None:
    """The data set that a file belongs to; None for what belongs to all. Looking at one is quicker."""
    named = {path.stem, path.parent.name} & set(lake.datasets())
    return sorted(named) or None


def shard(lake: Lake, number: int = 0, dataset: str = "mine") -> Path:
    return lake.shard_folder(dataset) / f"{dataset}-thyroid-{number:06d}.tar"


def rows(lake: Lake, number: int = 0, dataset: str = "mine") -> list[dict[str, Any]]:
    """The catalog's rows of a shard."""
    wanted = f"shards/{dataset}/{shard(lake, number, dataset).name}"
    return [row for row in read_part(lake.catalog_part(dataset)).to_pylist() if row["shard"] == wanted]


def members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]


def write_shard(path: Path, content: Members) -> None:
    """A shard of any members, in the form in which usdata writes one."""
    with path.open("wb") as file:
        for name, data in content:
            file.write(header(name.encode(), len(data)) + data + bytes(-len(data) % 512))
        file.write(bytes(1024))


def believe(lake: Lake, dataset: str = "mine") -> None:
    """Make the manifest say that all is as it is now: a wrong manifest must hide nothing."""
    manifest = read_json(lake.manifest(dataset))
    for name, record in manifest["shards"].items():
        path = lake.shard_folder(dataset) / f"{name}.tar"
        record |= {"size": path.stat().st_size, "xxh": file_xxh(path)}
    hashes = {"catalog_xxh": file_xxh(lake.catalog_part(dataset))}
    write_json(lake.manifest(dataset), seal(manifest | hashes))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
