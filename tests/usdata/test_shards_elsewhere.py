"""Other people's programs read the lake without our code: the blocks of docs/formats.md, run as they are printed.

Each runs in a process of its own in which `usdata` can't be imported; what it read is compared with the catalog.
"""

import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from fakes.lakes import add_dataset

from ingest.card import get_card
from ingest.run import ingest
from usdata.export import write_table
from usdata.export_coco import write_coco
from usdata.lake import Lake

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "formats.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.S)
ALONE = """
import sys

class Refuse:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("usdata", "ingest", "training", "pipelines"):
            raise ImportError(f"{name} is to be done without")

sys.meta_path.insert(0, Refuse)
"""
SHOW = """
import hashlib, json, sys
pixels = {k: hashlib.sha256(v.tobytes()).hexdigest() + str(v.shape) for k, v in globals().get("images", {}).items()}
found = {"images": pixels, "records": globals().get("records"), "rows": globals().get("rows")}
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a lake of two data sets and their exports; in one, masks and JSON keys differ from row to row."""
    home = tmp_path_factory.mktemp("elsewhere")
    lake = Lake.create(home / "lake")
    ingest(get_card("phantom"), None, lake, count=16)
    words = {"licence": "CC-BY-4.0", "redistribution": "attribution", "pixel_mm_x": 1 / 3, "organ": "thyroid"}
    mask = np.eye(256, dtype=np.uint8)
    masks = [None, mask, None, None, mask, None, None]
    rows = [words | ({"mask_classes": ["background", "line"]} if m is not None else {}) for m in masks]
    rows[6] |= {"label": "NA", "view": "only here", "phash": 2**64 - 1}
    add_dataset(lake, "clinic", rows, masks, per_shard=7)
    write_table(lake.cohort(), home / "samples.csv")
    write_coco(lake.cohort(), home / "coco", images=True, masks=True)
    return home


@pytest.fixture(scope="module")
def known(home) -> dict[str, dict]:
    """sample_id -> the catalog's row, and the hash of its pixels."""
    cohort = Lake(home / "lake").cohort()
    rows = cohort.table(Lake(home / "lake").sql("from samples limit 0").column_names).to_pylist()
    digests = [sha256(image.tobytes()).hexdigest() + str(image.shape) for image in cohort.images()]
    return {row["sample_id"]: row | {"digest": digest} for row, digest in zip(rows, digests, strict=True)}


def python(code: str, folder: Path, *words: str) -> str:
    """Run a program in a folder, without a network and with caches of its own."""
    places = {name: str(folder / "cache") for name in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME")}
    settings = os.environ | places | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def name_of(block: str) -> str:
    """What a block reads with: its last import."""
    return re.findall(r"^(?:from|import) ([\w.]+)", block, re.M)[-1] + ("_csv" if "read_csv" in block else "")


def test_the_page_shows_each_of_the_usual_readers_once():
    names = [name_of(block) for block in PYTHON]
    usual = ["duckdb", "polars", "pandas", "PIL", "webdataset", "datasets", "polars", "pandas_csv", "pycocotools.coco"]
    assert names == usual


@pytest.mark.parametrize("block", PYTHON, ids=name_of)
def test_a_block_of_the_page_reads_the_whole_lake_without_usdata(home, known, block):
    printed = python(ALONE + block + SHOW, home)
    found = json.loads(next(line for line in printed.splitlines() if line.startswith("FOUND "))[6:])
    assert found["images"] or found["rows"]
    if found["images"]:
        assert found["images"] == {key: row["digest"] for key, row in known.items()}
    if found["rows"]:
        assert dict(found["rows"]) == pytest.approx({key: row["stored_mm_x"] for key, row in known.items()}, rel=1e-15)
    for key, record in (found["records"] or {}).items():
        assert set(record) == {k for k, v in known[key].items() if v is not None and k in record}
        assert len(record) >= 12
        near = 1e-9 if "load_dataset" in block else 1e-15  # datasets' JSON keeps ten digits
        for name, value in record.items():
            wanted = known[key][name]
            assert value == (pytest.approx(wanted, rel=near) if isinstance(wanted, float) else wanted)
    assert found["records"] is None or set(found["records"]) == set(known)


def test_the_json_of_a_sample_has_every_known_value_but_its_place(home, known):
    block = next(block for block in PYTHON if "import tarfile" in block or "tarfile\n" in block)
    printed = python(ALONE + block + SHOW, home)
    records = json.loads(printed.split("FOUND ", 1)[1])["records"]
    place = {"shard", "offset", "size", "mask_offset", "mask_size", "json_offset"}
    derived = {"stored_mm_x", "stored_mm_y", "digest"}
    for key, row in known.items():
        assert records[key] == {k: v for k, v in row.items() if v is not None and k not in place | derived}


def test_torch_takes_webdatasets_samples_through_its_own_dataloader(home, known):
    code = """
import glob, torch, webdataset as wds
shards = sorted(glob.glob("lake/shards/*/*.tar"))
data = wds.WebDataset(shards, shardshuffle=False).decode("l8").to_tuple("__key__", "png")
images = {}
for keys, batch in torch.utils.data.DataLoader(data, batch_size=5):
    assert batch.dtype == torch.uint8 and batch.shape[1:] == (256, 256)
    images |= dict(zip(keys, batch.numpy()))
"""
    printed = python(ALONE + code + SHOW, home)
    found = json.loads(printed.split("FOUND ", 1)[1])["images"]
    assert found == {key: row["digest"] for key, row in known.items()}


def test_datasets_streams_a_shard_whose_first_images_have_no_mask(home):
    code = """
from datasets import Features, Image, Json, Value, load_dataset
text = Value("string")
features = Features({"__key__": text, "__url__": text, "json": Json(), "png": Image(), "mask.png": Image()})
files = ["lake/shards/clinic/clinic-mixed-000000.tar"]
data = load_dataset("webdataset", data_files={"train": files}, split="train", features=features, streaming=True)
rows = [[s["mask.png"] is not None, s["json"].get("view"), s["json"]["phash"], s["png"].size] for s in data]
"""
    printed = python(ALONE + code + SHOW, home)
    rows = json.loads(printed.split("FOUND ", 1)[1])["rows"]
    assert [row[0] for row in rows] == [False, True, False, False, True, False, False]
    assert rows[6] == [False, "only here", 2**64 - 1, [256, 256]]


def test_the_commands_of_the_page_run_as_printed(home, known, tmp_path):
    [block] = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    (tmp_path / "lake").symlink_to(home / "lake")
    from usdata import cli  # the verbs in this process: a command line of its own takes a second each

    for line in block.splitlines():
        words = line.split("#")[0].split()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit, match="0"):
                cli.main()
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == len(known) + 1
    assert len(list((tmp_path / "coco").glob("images/*.png"))) == len(known)
    assert json.loads((tmp_path / "val.json").read_text())["categories"]


def test_the_example_reads_a_lake_without_importing_usdata(home):
    code = (PROJECT / "examples" / "04_read_without_usdata.py").read_text("utf-8")
    assert not re.search(r"^\s*(import|from) (usdata|ingest)", code, re.M)
    printed = python(ALONE + code, home, "lake")
    assert "23 images, 18 with a mask" in printed
