"""Reviewed device templates."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from ingest.deid.device import Device
from ingest.deid.templates import load_templates, propose
from usdata.errors import ConfigError

DEVICE = Device("acme", "scan 1", "3")


def entry(**changes: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "manufacturer": "acme",
        "model": "scan 1",
        "rows": 600,
        "columns": 800,
        "box": [100, 60, 700, 520],
        "kind": "rectangle",
        "reviewed_by": "sonographer",
        "reviewed_on": "2026-01-31",
        "images_seen": 20,
    }
    return {key: value for key, value in (plain | changes).items() if value != "leave out"}


def write(folder: Path, *entries: object, name: str = "a.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(yaml.safe_dump({"templates": list(entries)}), encoding="utf-8")
    return folder


def test_no_template_is_packaged_because_nobody_has_reviewed_one():
    assert load_templates(None).by_key == {}


def test_a_template_is_found_by_device_and_exact_picture_size(tmp_path: Path):
    templates = load_templates(write(tmp_path, entry()))
    found = templates.find(DEVICE, (600, 800))
    assert found is not None and found.mask().sum() == 600 * 460
    assert templates.find(DEVICE, (601, 800)) is None
    assert templates.find(Device("acme", "scan 2", "3"), (600, 800)) is None
    assert templates.find(Device(), (600, 800)) is None


def test_a_template_of_the_software_version_goes_before_one_for_any(tmp_path: Path):
    special = entry(software="3", box=[200, 60, 700, 520])
    templates = load_templates(write(tmp_path, entry(), special))
    third, fourth = (templates.find(Device("acme", "scan 1", v), (600, 800)) for v in ("3", "4"))
    assert third is not None and third.box == (200, 60, 700, 520)
    assert fourth is not None and fourth.box == (100, 60, 700, 520)


def test_a_template_without_a_device_is_for_exports_without_a_header_only(tmp_path: Path):
    templates = load_templates(write(tmp_path, entry(manufacturer=None, model=None)))
    assert templates.find(Device(), (600, 800)) is not None
    assert templates.find(DEVICE, (600, 800)) is None


def test_two_templates_of_one_device_and_size_are_an_error(tmp_path: Path):
    write(tmp_path, entry())
    write(tmp_path, entry(note="another"), name="b.yaml")
    with pytest.raises(ConfigError, match="same device and picture size"):
        load_templates(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"images_seen": 19},
        {"reviewed_by": ""},
        {"reviewed_by": "leave out"},
        {"reviewed_on": "leave out"},
        {"reviewed_on": "soon"},
        {"box": [100, 60, 801, 520]},
        {"box": [700, 60, 100, 520]},
        {"box": [0, 0, 800, 600]},
        {"box": [0, 0, 70, 70]},
        {"box": None},
        {"polygons": [[[0, 0], [700, 0], [700, 500]]]},
        {"box": None, "polygons": [[[0, 0], [700, 0]]]},
        {"manufacturer": "other"},
        {"model": None},
        {"software": "3.1"},
        {"kind": "oval"},
        {"surprise": 1},
    ],
)
def test_a_template_that_is_not_in_the_form_is_an_error(tmp_path: Path, changes: dict[str, object]):
    with pytest.raises(ConfigError, match=r"A template file can.t be used"):
        load_templates(write(tmp_path, entry(**changes)))


@pytest.mark.parametrize("content", [b"", b"[]", b"templates: 1", b"templates: [1]", b"a: b: c", b"\xff\xfe"])
def test_a_template_file_that_is_no_list_of_templates_is_an_error(tmp_path: Path, content: bytes):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError):
        load_templates(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError):
        load_templates(tmp_path / "nothing")


def test_the_digest_depends_on_the_templates_and_not_on_the_files_that_hold_them(tmp_path: Path):
    one = load_templates(write(tmp_path / "one", entry(), entry(rows=700)))
    write(tmp_path / "two", entry(rows=700), name="z.yml")
    two = load_templates(write(tmp_path / "two", entry()))
    changed = load_templates(write(tmp_path / "three", entry(), entry(rows=700, note="seen again")))
    assert one.digest == two.digest != changed.digest
    assert len(one.digest) == 32 and one.digest != load_templates(None).digest


def area(x0: int) -> SimpleNamespace:
    mask = np.zeros((600, 800), np.bool_)
    mask[60:520, x0:700] = True
    return SimpleNamespace(mask=mask, kind="rectangle")


def test_a_proposal_is_where_the_areas_agree(tmp_path: Path):
    draft = propose(DEVICE, (600, 800), [area(100)] * 19 + [area(300)] + [area(102)] * 20)["templates"][0]
    corners = np.array(draft["polygons"][0])
    assert corners.min(axis=0).tolist() == [102, 60] and corners.max(axis=0).tolist() == [699, 519]


def test_a_proposal_loads_only_after_somebody_has_signed_for_it(tmp_path: Path):
    draft = propose(DEVICE, (600, 800), [area(100)] * 20)
    with pytest.raises(ConfigError):
        load_templates(write(tmp_path, *draft["templates"]))
    signed = draft["templates"][0] | {"reviewed_by": "sonographer", "reviewed_on": "2026-02-01", "images_seen": 25}
    assert load_templates(write(tmp_path, signed)).find(DEVICE, (600, 800)) is not None


def test_a_proposal_needs_20_areas_of_one_size_with_something_in_common():
    with pytest.raises(ConfigError, match="at least 20"):
        propose(DEVICE, (600, 800), [area(100)] * 19)
    with pytest.raises(ConfigError, match="one picture size"):
        propose(DEVICE, (600, 801), [area(100)] * 20)
    with pytest.raises(ConfigError, match="in common"):
        propose(DEVICE, (600, 800), [area(690)] * 20)
