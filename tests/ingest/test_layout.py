"""From a card and a folder to items: which fields, which masks, and that no file is lost silently."""

import json
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from fakes.datasets import MAKERS, draw, echo, save
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.card import Card, get_card
from ingest.layout import list_items
from usdata.errors import CardError, DataError

BASE = {
    **{"name": "mine", "title": "My images", "citation": "none", "licence": "CC0-1.0"},
    **{"commercial_use": "yes", "redistribution": "yes", "deid_profile": "public", "defaults": {"organ": "thyroid"}},
}
CLASSES = {
    "layout": {"image": r"(?P<label>benign|malignant)/(?P<stem>[^/]+)\.png"},
    "labels": {"label": ["benign", "malignant"]},
}
WITH_MASKS = {
    "layout": {"image": r"i/(?P<stem>[^/]+)\.png", "mask": r"m/(?P<stem>[^/_]+)(?:_\d)?\.png"},
    "masks": {"classes": ["background", "nodule"]},
}


def card(**changes) -> Card:
    return Card.model_validate(BASE | changes)


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def table_card(**table) -> Card:
    table = {"file": "labels.csv", "key": "file", "match": "name", "columns": {"label": "class"}} | table
    return card(layout={"image": r"[^/]+\.png"}, labels={"label": ["benign", "malignant"]}, tables=[table])


def reasons(listing) -> dict[str, str]:
    return {problem.path: problem.reason for problem in listing.problems}


def accounted(listing) -> int:
    files = len(listing.items) + sum(len(item.masks) for item in listing.items)
    return files + len(listing.tables) + listing.ignored + len(listing.problems)


@pytest.mark.parametrize("name", MAKERS)
def test_a_fake_of_every_card_lists_as_it_was_drawn(name, tmp_path):
    fake = draw(name, tmp_path / "source")
    listing = list_items(get_card(name), fake.root)
    kinds = Counter(item.kind for item in listing.items)
    assert (kinds["image"], kinds["video"]) == (fake.images, fake.videos)
    assert sum(len(item.masks) for item in listing.items) == fake.masks
    assert (listing.ignored, len(listing.tables), listing.problems) == (fake.ignored, fake.tables, ())
    assert accounted(listing) == listing.files
    labels = Counter(item.fields["label"] for item in listing.items if "label" in item.fields)
    assert labels == fake.labels
    assert {item.fields.get("patient") for item in listing.items} - {None} == fake.patients


def test_busi_masks_stand_with_the_image_of_their_name(tmp_path):
    listing = list_items(get_card("busi"), draw("busi", tmp_path).root)
    masks = {Path(item.path).stem: [Path(mask).stem for mask in item.masks] for item in listing.items}
    assert masks["benign (2)"] == ["benign (2)_mask", "benign (2)_mask_1"]
    assert masks["malignant (1)"] == ["malignant (1)_mask"]


def test_hc18_gets_size_and_circumference_from_the_table_of_its_own_split(tmp_path):
    listing = list_items(get_card("hc18"), draw("hc18", tmp_path).root)
    by_path = {item.path: item.fields for item in listing.items}
    train, test = by_path["training_set/000_HC.png"], by_path["test_set/000_HC.png"]
    assert (train["pixel_mm_x"], train["pixel_mm_y"], train["target"]) == (0.06, 0.06, 150.5)
    assert json.loads(train["targets"]) == {"head_circumference_mm": 150.5}
    assert (test["pixel_mm_x"], test.get("target"), test["official_split"]) == (0.11, None, "test")
    assert train["patient"] != test["patient"]  # both are number 000
    repeats = {by_path[f"training_set/{name}.png"]["patient"] for name in ("010_HC", "010_2HC")}
    assert repeats == {"hc18-training-010"}
    (note,) = listing.notes
    assert note.endswith("training_set_pixel_size_and_HC.csv: 1 of 5 keys have no file here (training/805_HC.png)")


def test_covid_blues_words_lose_their_blanks_and_patients_share_their_row(tmp_path):
    listing = list_items(get_card("covid_blues"), draw("covid_blues", tmp_path).root)
    by_clip = {item.fields["clip"]: item.fields for item in listing.items}
    first = by_clip["covid_blues-patient_1_L1"]
    assert json.loads(first["labels"]) == {"a_lines": "yes", "b_lines": "no", "covid": "yes", "severity": "1"}
    assert json.loads(first["targets"]) == {"spo2_without_oxygen": 91.0}  # the other cell is empty
    assert json.loads(by_clip["covid_blues-patient_15_L2"]["labels"])["covid"] == "no"
    assert by_clip["covid_blues-patient_1_R1_2"]["view"] == "blue_point_R1"


def test_an_optional_table_that_is_absent_is_a_note_and_a_required_one_an_error(tmp_path):
    root = draw("covid_blues", tmp_path).root
    (root / "clinical_variables.csv").unlink()
    listing = list_items(get_card("covid_blues"), root)
    assert [note for note in listing.notes if note.startswith("no clinical_variables.csv: labels.covid")]
    assert "covid" not in json.loads(listing.items[0].fields["labels"])
    (root / "severity.csv").unlink()
    with pytest.raises(CardError, match=r"requires is missing: severity\.csv") as error:
        list_items(get_card("covid_blues"), root)
    assert error.value.hint


def test_rights_and_defaults_are_in_every_row(tmp_path):
    (item,) = list_items(card(**CLASSES), touch(tmp_path, "benign/1.png")).items
    wanted = {"dataset": "mine", "licence": "CC0-1.0", "commercial_use": "yes", "organ": "thyroid"}
    wanted |= {"organ_group": "neck", "mode": "B-mode", "species": "human", "label": "benign", "synthetic": False}
    assert wanted.items() <= item.fields.items()
    assert None not in item.fields.values()


def test_the_order_of_files_on_disk_does_not_matter(tmp_path):
    paths = [f"{label}/{k}.png" for label in ("benign", "malignant") for k in range(20)]
    first = list_items(card(**CLASSES), touch(tmp_path / "a", *paths))
    second = list_items(card(**CLASSES), touch(tmp_path / "b", *random.Random(0).sample(paths, len(paths))))
    assert [item.path for item in first.items] == [item.path for item in second.items] == sorted(paths)


def test_a_file_that_no_pattern_fits_is_a_problem_and_clutter_is_not(tmp_path):
    root = touch(tmp_path, "benign/1.png", "benign/1.txt", "odd/2.png", "benign/.DS_Store", "__MACOSX/benign/._1.png")
    listing = list_items(card(**CLASSES), root)
    assert reasons(listing) == {"benign/1.txt": "unmatched_file", "odd/2.png": "unmatched_file"}
    assert (listing.ignored, listing.files) == (2, 5)


def test_a_pattern_must_fit_the_whole_path(tmp_path):
    listing = list_items(card(**CLASSES), touch(tmp_path, "benign/1.png", "copy/benign/1.png", "benign/1.png.bak"))
    assert [item.path for item in listing.items] == ["benign/1.png"]
    assert len(listing.problems) == 2


def test_endings_in_capitals_fit_only_if_the_card_says_so(tmp_path):
    root = touch(tmp_path, "benign/1.png", "benign/2.PNG")
    assert reasons(list_items(card(**CLASSES), root)) == {"benign/2.PNG": "unmatched_file"}
    tolerant = CLASSES | {"layout": {**CLASSES["layout"], "ignore_case": True}}
    assert len(list_items(card(**tolerant), root).items) == 2


def test_masks_without_image_and_images_without_mask(tmp_path):
    root = touch(tmp_path, "i/1.png", "m/1_0.png", "m/1_1.png", "i/2.png", "m/3.png")
    listing = list_items(card(**WITH_MASKS), root)
    assert {item.path: item.masks for item in listing.items} == {
        "i/1.png": ("m/1_0.png", "m/1_1.png"),
        "i/2.png": (),
    }
    assert reasons(listing) == {"m/3.png": "mask_without_image"}
    strict = WITH_MASKS | {"masks": {"classes": ["background", "nodule"], "required": True}}
    assert reasons(list_items(card(**strict), root)) == {
        "i/2.png": "image_without_mask",
        "m/3.png": "mask_without_image",
    }


def test_a_mask_that_fits_two_images_is_given_to_neither(tmp_path):
    layout = {"image": r"i/(?P<stem>\d+)\.(?:png|jpg)", "mask": r"m/(?P<stem>\d+)\.png"}
    root = touch(tmp_path, "i/1.png", "i/1.jpg", "m/1.png", "i/2.png", "m/2.png")
    listing = list_items(card(**WITH_MASKS | {"layout": layout}), root)
    assert [item.path for item in listing.items] == ["i/2.png"]
    assert set(reasons(listing).values()) == {"mask_of_several_images"}
    assert accounted(listing) == listing.files


def test_the_masks_of_a_refused_image_are_problems_too(tmp_path):
    layout = {"image": r"i/(?P<label>[a-z])(?P<n>\d)\.png", "mask": r"m/(?P<label>[a-z])(?P<n>\d)\.png"}
    root = touch(tmp_path, "i/a1.png", "m/a1.png", "i/c1.png", "m/c1.png")
    listing = list_items(card(**WITH_MASKS | {"layout": layout, "labels": {"label": ["a", "b"]}}), root)
    assert reasons(listing) == {"i/c1.png": "unknown_label", "m/c1.png": "mask_of_refused"}


def test_two_copies_of_a_data_set_keep_their_masks_apart(tmp_path):
    for place in ("one", "two"):
        draw("usgra_seg", tmp_path / place)
    items = list_items(get_card("usgra_seg"), tmp_path).items
    assert len(items) == 4
    assert all(item.masks == (item.path.replace("images", "masks"),) for item in items)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("1.png,benign\n2.png,malignant", {}),
        ("1.png,benign", {"2.png": "label_missing"}),
        ("1.png,benign\n2.png,", {"2.png": "label_missing"}),
        ("1.png,benign\n2.png,nan", {"2.png": "label_missing"}),
        ("1.png,benign\n2.png,Benign", {"2.png": "unknown_label"}),
        ("1.png,benign\n2.png,benign\n2.png,malignant", {"2.png": "duplicate_key_in_table"}),
        ("1.png,benign\n2.png,benign\n2.png,benign", {}),
        (" 1.png , benign \n\n2.png,malignant\n,\n", {}),
    ],
)
def test_labels_from_a_table(tmp_path, rows, wanted):
    root = touch(tmp_path, "1.png", "2.png")
    (root / "labels.csv").write_text(f"file , class\n{rows}\n")
    listing = list_items(table_card(every_item=True), root)
    assert reasons(listing) == wanted
    assert listing.items[0].fields["label"] == "benign"
    assert {problem.stage for problem in listing.problems} <= {"join", "list"}


def test_without_every_item_a_missing_label_is_null(tmp_path):
    root = touch(tmp_path, "1.png", "2.png")
    (root / "labels.csv").write_text("file,class\n1.png,benign\n")
    listing = list_items(table_card(), root)
    assert [item.fields.get("label") for item in listing.items] == ["benign", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,klass\n1.png,benign\n", "no column 'class'. Did you mean 'klass'"),
        (b"file,class\n1.png,benign,extra\n", "row 1 has 3 values for 2 columns"),
        (b"file,class,class\n1.png,a,b\n", "column name is given twice"),
        (b"file,class\n1.png,\xff\n", "Can't read the table"),
        (b'file,class\n"1.png,benign\n', "not a table separated by ','"),
    ],
)
def test_a_table_that_does_not_fit_its_card_is_one_error(tmp_path, content, message):
    (touch(tmp_path, "1.png") / "labels.csv").write_bytes(content)
    with pytest.raises(CardError) as error:
        list_items(table_card(), tmp_path)
    assert message in error.value.message
    assert (error.value.dataset, error.value.item) == ("mine", "labels.csv")


@pytest.mark.parametrize(
    ("name", "content", "table"),
    [
        ("t.tsv", "file\tclass\n1.png\tbenign\n", {}),
        ("t.csv", "file;class\r\n1.png;benign\r\n", {"separator": ";"}),
        ("t.csv", "\ufefffile,class\n1.png,benign\n", {}),
        ("t.csv", "1.png,benign\n", {"header": ["file", "class"]}),
        ("t.txt", "1.png   benign\n", {"format": "lines", "header": ["file", "class"]}),
        ("t.json", '[{"file": "1.png", "class": "benign"}]', {}),
        ("t.json", '{"1.png": {"class": "benign"}}', {"key": "key"}),
    ],
)
def test_a_table_may_have_any_of_these_forms(tmp_path, name, content, table):
    (touch(tmp_path, "1.png") / name).write_text(content)
    (item,) = list_items(table_card(file=name, **table), tmp_path).items
    assert item.fields["label"] == "benign"


@pytest.mark.parametrize("word", ["zero", "-0.1", "0", "inf", "1_0"])
def test_a_pixel_size_that_is_no_positive_number_is_a_problem(tmp_path, word):
    (touch(tmp_path, "1.png", "2.png") / "labels.csv").write_text(f"file,size\n1.png,{word}\n2.png,0.5\n")
    table = {"file": "labels.csv", "key": "file", "match": "name", "columns": {"pixel_mm": "size"}}
    listing = list_items(card(layout={"image": r"\d\.png"}, tables=[table]), tmp_path)
    assert reasons(listing) == {"1.png": "bad_number"}
    assert listing.items[0].fields["pixel_mm_y"] == 0.5


def test_organ_probe_and_split_words_are_mapped_and_unknown_ones_refused(tmp_path):
    mapping = {"lungs": "lung", "plax": "heart"}
    mixed = card(
        defaults={},
        layout={"image": r"(?P<split>[a-z]+)/(?P<site>[a-z]+)-(?P<probe>[a-z]+)/\d\.png"},
        fields={"organ": {"from": "site", "map": mapping}},
    )
    paths = ["train/lungs-convex/1.png", "testing/plax-phased/1.png", "train/foot-convex/1.png"]
    paths += ["train/lungs-konvex/1.png", "fold/lungs-convex/1.png"]
    listing = list_items(mixed, touch(tmp_path, *paths))
    rows = {item.path: (item.organ, item.fields["probe"], item.fields["official_split"]) for item in listing.items}
    assert rows == {paths[0]: ("lung", "convex", "train"), paths[1]: ("heart", "phased", "test")}
    assert listing.items[0].fields["organ_raw"] == "plax"
    found = reasons(listing)
    assert found == {paths[2]: "unknown_organ", paths[3]: "unknown_probe", paths[4]: "unknown_split"}
    assert any("Did you mean 'convex'" in problem.detail for problem in listing.problems)


def test_patients_of_two_data_sets_never_share_an_id_unless_a_card_says_so(tmp_path):
    layout = {"layout": {"image": r"(?P<patient>\d+)/\d\.png"}}
    touch(tmp_path, "07/1.png")
    first = list_items(card(**layout), tmp_path).items[0]
    second = list_items(card(**layout | {"name": "other"}), tmp_path).items[0]
    kin = list_items(card(**layout | {"name": "other", "patients_of": "mine"}), tmp_path).items[0]
    assert [item.fields["patient"] for item in (first, second, kin)] == ["mine-07", "other-07", "mine-07"]


def test_a_video_without_a_clip_name_is_its_own_clip(tmp_path):
    (item,) = list_items(card(layout={"video": r".*\.avi"}), touch(tmp_path, "a/b.avi")).items
    assert (item.kind, item.fields["clip"]) == ("video", "mine-a/b")


def test_a_missing_an_empty_and_a_wrong_folder_each_give_their_own_message(tmp_path):
    with pytest.raises(DataError, match="There is no") as error:
        list_items(card(**CLASSES), tmp_path / "none")
    assert error.value.reason == "missing"
    (tmp_path / "empty/inside").mkdir(parents=True)
    with pytest.raises(DataError, match="There is no file in") as error:
        list_items(card(**CLASSES), tmp_path / "empty")
    assert error.value.reason == "empty_folder" and "usdata fetch mine" in error.value.hint
    with pytest.raises(DataError) as error:
        list_items(card(**CLASSES), save(echo(4, 4), tmp_path / "a.png"))
    assert error.value.reason == "not_a_folder"


def test_a_folder_in_which_nothing_fits_is_answered_with_what_was_expected_and_seen(tmp_path):
    root = touch(tmp_path, *[f"other/{k}.jpg" for k in range(9)])
    with pytest.raises(CardError) as error:
        list_items(get_card("busi"), root)
    assert "'Dataset_BUSI_with_GT/benign/benign (1).png'" in error.value.message
    assert "'other/0.jpg'" in error.value.message and error.value.message.count("other/") == 5
    with pytest.raises(CardError, match="only files that the card ignores"):
        list_items(get_card("busi"), touch(tmp_path / "clutter", ".DS_Store"))


def test_private_data_is_refused_before_a_file_is_looked_at(tmp_path):
    with pytest.raises(CardError, match="with a key only"):
        list_items(card(**CLASSES | {"deid_profile": "private"}), tmp_path / "none")


def test_links_are_followed_inside_the_folder_and_refused_outside(tmp_path):
    root = touch(tmp_path / "root", "benign/1.png")
    outside = touch(tmp_path / "outside", "malignant/9.png")
    (root / "malignant").mkdir()
    (root / "malignant/2.png").symlink_to("../benign/1.png")
    (root / "malignant/3.png").symlink_to(outside / "malignant/9.png")
    (root / "malignant/4.png").symlink_to("nowhere.png")
    (root / "malignant/5.png").symlink_to("5.png")
    (root / "loop").symlink_to(root)
    (root / "away").symlink_to(outside)
    os.mkfifo(root / "benign/6.png")
    listing = list_items(card(**CLASSES), root)
    assert [item.path for item in listing.items] == ["benign/1.png", "malignant/2.png"]
    assert reasons(listing) == {
        "malignant/3.png": "link_outside",
        "malignant/4.png": "broken_link",
        "malignant/5.png": "broken_link",
        "loop": "link_outside",
        "away": "link_outside",
        "benign/6.png": "not_a_file",
    }
    assert accounted(listing) == listing.files == 8


def test_names_that_are_not_utf8_or_hold_control_characters_are_refused_and_printable(tmp_path):
    root = touch(tmp_path, "benign/1.png", "benign/a\nb.png")
    (Path(os.fsdecode(os.fsencode(root) + b"/benign/\xff.png"))).write_bytes(b"x")
    listing = list_items(card(**CLASSES), root)
    assert reasons(listing) == {"benign/\\xff.png": "bad_path", "benign/a\\x0ab.png": "bad_path"}
    assert all(problem.path.isprintable() for problem in listing.problems)


_part = st.text(st.characters(exclude_characters="/\x00", codec="utf-8"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..")
)
_image = st.tuples(st.sampled_from(["i", "m"]), st.from_regex(r"[ab1]{1,2}(_\d)?\.png", fullmatch=True))
_paths = st.lists(st.one_of(_image, st.lists(_part, min_size=1, max_size=3).map(tuple)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(_paths)
def test_every_file_ends_in_exactly_one_place_whatever_its_name(paths):
    with tempfile.TemporaryDirectory() as folder:
        root = touch(Path(folder), "i/a.png")
        for parts in paths:
            path = root.joinpath(*parts)
            if not path.is_dir() and all(not parent.is_file() for parent in path.parents):
                touch(root, "/".join(parts))
        on_disk = sum(len(names) for _, _, names in os.walk(folder))
        strict = WITH_MASKS | {"masks": {"classes": ["background", "x"], "required": False}}
        listing = list_items(card(**strict), root)
    assert listing.files == on_disk == accounted(listing)
    places = [item.path for item in listing.items] + [mask for item in listing.items for mask in item.masks]
    assert len(set(places)) == len(places)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "folder", "kind", "items", "masks"),
    [
        ("busi", "busi", "image", 45, 47),
        ("hc18", "hc18", "image", 54, 54),
        ("usgra_seg", "usgra-seg", "image", 68, 68),
        ("covid_blues", "covid-blues", "video", 18, 0),
    ],
)
def test_the_real_samples_list_completely(real_data, name, folder, kind, items, masks):
    listing = list_items(get_card(name), real_data / folder)
    assert (len(listing.items), sum(len(item.masks) for item in listing.items)) == (items, masks)
    assert {item.kind for item in listing.items} == {kind}
    assert (listing.problems, listing.ignored) == ((), 0)
    assert accounted(listing) == listing.files
    fields = [item.fields for item in listing.items]
    if name == "busi":
        assert Counter(row["label"] for row in fields) == {"benign": 15, "malignant": 15, "normal": 15}
    if name == "hc18":
        assert len({row["patient"] for row in fields}) == 44
        assert all(30 < row["target"] < 400 and 0.03 < row["pixel_mm_x"] < 0.4 for row in fields)
    if name == "usgra_seg":
        assert {row["organ"] for row in fields} == {"peripheral_nerve"}
    if name == "covid_blues":
        assert len({row["patient"] for row in fields}) == 6
        assert all(json.loads(row["labels"]).keys() == {"severity", "a_lines", "b_lines"} for row in fields)
