"""The review page: what a person must see is on it, counts add up, and it is written only where nobody else looks."""

import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from fakes.deid_dicom import ultrasound
from fakes.deid_run import SITE, World, command
from fakes.scans import draw_screen

from ingest import preprocess
from ingest.deid.decision import Decision
from ingest.deid.device import Device
from ingest.deid.place import private_folder, write_private
from ingest.deid.private import private_card, rules_of
from ingest.deid.reasons import Reason, State
from ingest.deid.review import FILE, Review, write_page
from ingest.deid.review_figures import LONGEST, before_uri, cut, mark
from ingest.deid.review_run import Reviewed, known_reason, review_files
from ingest.deid.review_template import Areas, draft, kind_of
from ingest.deid.review_words import WORDS
from ingest.deid.templates import LEAST_SEEN, load_templates
from ingest.run import ingest
from usdata.errors import ConfigError
from usdata.lake import Lake

SIZE = (240, 320)
CURVED = Device("ge", "logiq e9", "6")


@cache
def drawn() -> tuple[Any, Any, Any]:
    """A frame, the mask of its scan area, and the image that would be stored."""
    screen = draw_screen("curved", 1, SIZE, colour=False, background=0)
    mask = cv2.erode(screen.truth.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    after = preprocess.resize(np.where(mask, screen.frames[0], 0).astype(np.uint8), "bilinear-aa")
    return screen.frames[0], mask, after


def decision(number: int, reason: Reason | None = None, device: Device = CURVED, **values: Any) -> Decision:
    """An item of a drawn screen, whose key is its number."""
    frame, mask, after = drawn()
    facts: dict[str, Any] = {
        **{"key": f"{number:032x}", "state": reason.state if reason else State.ACCEPTED, "reason": reason},
        **{"device": device, "shape": SIZE, "before": frame, "mask": mask, "mask_source": "regions+fit"},
        **{"mask_score": 0.973, "text_box": None, "after": None if reason else after},
        "row": {"organ": "thyroid", "age": 57, "patient": "ab" * 16, "patient_known": True, "pixel_mm_x": 0.0812},
    }
    return Decision(**facts | values)


def refused(number: int, reason: Reason) -> Decision:
    """An item that was not even decoded."""
    nothing = dict.fromkeys(("shape", "before", "mask", "mask_source", "mask_score"))
    return decision(number, reason, Device(), row={}, **nothing)


def review_of(*decisions: Decision, **options: Any) -> Review:
    review = Review("site_a", **options)
    for one in decisions:
        review.add(one)
    return review


def cards(page: str) -> list[str]:
    """The figures of the page, one per item shown with pictures."""
    return re.findall(r'<figure class="card.*?</figure>', page, re.S)


# --- what is on the page ----------------------------------------------------------------------------------------------


def test_every_reason_is_told_in_words_and_with_what_to_do():
    assert set(WORDS) == set(Reason)
    assert all(words.found.endswith(".") and words.do.strip() for words in WORDS.values())


def test_the_page_says_first_that_it_must_not_be_sent():
    body = review_of(decision(1)).page().partition("<body>")[2]
    assert body.strip().startswith('<div class="alarm" role="alert">Holds patients\' data: do not send.')


def test_the_page_needs_no_network_and_no_script():
    page = review_of(decision(1), decision(2, Reason.NO_SCAN_AREA)).page()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]+)"', page))


def test_an_accepted_item_is_shown_before_and_after_with_mask_source_score_and_kept_row():
    [card] = cards(review_of(decision(1)).page())
    assert card.count("<img ") == 2 and 'class="gone"' in card and 'class="edge"' in card
    assert "As it came" in card and "As it would be stored" in card
    assert "<b>regions+fit</b>" in card and "<b>0.97</b>" in card
    for value in ("thyroid", "57", "abababab…", "yes", "0.0812"):
        assert f"<b>{value}</b>" in card
    assert f"{1:032x}" in card


def test_a_quarantined_item_shows_its_reason_and_where_text_was_seen():
    page = review_of(decision(1, Reason.TEXT_IN_SCAN_AREA, text_box=(100, 80, 160, 92))).page()
    [card] = cards(page)
    assert "quarantined: text in scan area" in card and 'class="text"' in card and card.count("<img ") == 1
    assert WORDS[Reason.TEXT_IN_SCAN_AREA].found in page


def test_an_item_that_could_not_be_decoded_is_a_line_with_its_key():
    page = review_of(refused(7, Reason.NOT_ULTRASOUND)).page()
    assert not cards(page) and f"<code>{7:032x}</code>" in page and "rejected: not ultrasound" in page


def test_counts_add_up_and_say_what_was_ignored():
    review = review_of(
        *(decision(k) for k in range(3)),
        *(decision(10 + k, Reason.NO_SCAN_AREA) for k in range(2)),
        refused(20, Reason.NOT_AN_IMAGE),
    )
    assert review.counts() == {"items": 6, "accepted": 3, "quarantined": 2, "rejected": 1}
    page = review.page(ignored=2)
    assert "6 items = 3 accepted + 2 quarantined + 1 rejected." in page and "2 files of the operating system" in page


def test_items_are_grouped_by_maker_model_and_size():
    other = Device("philips", "epiq 7")
    review = review_of(decision(1), decision(2), decision(3, device=other), refused(4, Reason.EMPTY_FILE))
    assert [(g.name, g.size, g.states.total()) for g in review.groups()] == [
        ("ge logiq e9", "320 × 240", 2),
        ("Unknown device", "not decoded", 1),
        ("philips epiq 7", "320 × 240", 1),
    ]


def test_only_the_first_pictures_of_each_device_and_verdict_are_shown_but_all_are_listed():
    review = review_of(*(decision(k) for k in range(9)), per_device=4)
    page = review.page()
    assert len(cards(page)) == 4 and "9 items, 4 shown" in page
    assert all(f"{k:032x}" in page for k in range(9))


def test_the_same_items_give_the_same_page():
    items = [decision(1), decision(2, Reason.NO_SCAN_AREA), refused(3, Reason.DICOMDIR)]
    assert review_of(*items).page() == review_of(*items).page()


def test_a_reason_narrows_the_pictures_but_not_the_counts():
    review = review_of(decision(1), decision(2, Reason.NO_SCAN_AREA), reason=Reason.NO_SCAN_AREA)
    [card] = cards(review.page())
    assert "no scan area" in card and review.counts()["accepted"] == 1


def test_a_reason_that_does_not_exist_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'no_scan_area'"):
        known_reason("no_scan_aera")


def test_paths_are_shown_only_when_asked_for_and_never_as_markup():
    review = Review("site_a")
    review.add(decision(1), "Mueller^Ann/<b>x</b>\udcff.dcm")
    page = review.page()
    assert "Mueller^Ann/&lt;b&gt;x&lt;/b&gt;\\udcff.dcm" in page
    page.encode("utf-8")
    assert "Mueller" not in review_of(decision(1)).page()


def test_an_empty_review_is_a_page_that_says_so():
    assert "There is nothing to look at" in review_of().page()


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_large_picture_is_scaled_down_and_a_small_one_is_not():
    import base64
    import io

    from PIL import Image

    for shape, shown in (((1536, 2048), (LONGEST, LONGEST * 3 // 4)), ((120, 160), (160, 120))):
        uri = before_uri(np.zeros((*shape, 3), np.uint8))
        assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == shown


def test_the_tint_covers_all_but_the_mask():
    mask = np.zeros((50, 80), bool)
    mask[10:40, 20:60] = True
    drawn = str(cut(mask))
    assert "M0 0H80V50H0ZM20.5 10.5L20.5 39.5L59.5 39.5L59.5 10.5Z" in drawn and 'fill-rule="evenodd"' in drawn


def test_text_is_framed_where_it_lies_in_the_source_whatever_the_picture_is_scaled_to():
    drawn = str(mark((100, 50, 140, 60), (1000, 1000)))
    assert 'viewBox="0 0 1000 1000"' in drawn and 'x="94.0" y="44.0" width="52.0" height="22.0"' in drawn


# --- templates --------------------------------------------------------------------------------------------------------


def page_with(count: int, **values: Any) -> str:
    return review_of(*(decision(k, **values) for k in range(count))).page()


def test_twenty_accepted_areas_of_a_device_give_a_draft_that_does_not_load_before_it_is_signed():
    page = page_with(LEAST_SEEN)
    text = re.search(r"<pre>(templates:.*?)</pre>", page, re.S)
    assert text and "template proposed" in page
    [entry] = yaml.safe_load(text[1].replace("&#39;", "'").replace("&#34;", '"'))["templates"]
    assert (entry["manufacturer"], entry["model"], entry["rows"], entry["columns"]) == ("ge", "logiq e9", *SIZE)
    assert entry["images_seen"] == 0 and not entry["reviewed_by"]


def test_nineteen_areas_give_no_draft():
    assert "<pre>" not in page_with(LEAST_SEEN - 1)


def test_a_device_that_has_a_template_gets_no_other():
    assert "<pre>" not in page_with(LEAST_SEEN, mask_source="template+fit")


def test_a_device_that_the_tables_do_not_know_gets_no_draft():
    assert "<pre>" not in page_with(LEAST_SEEN, device=Device("other", "other"))


def test_areas_that_have_nothing_in_common_give_no_draft():
    areas = Areas((200, 200))
    for k in range(LEAST_SEEN):
        mask = np.zeros((200, 200), bool)
        mask[:, 100 * (k % 2) : 100 + 100 * (k % 2)] = True
        areas.add(mask)
    assert draft({CURVED}, areas) is None


def test_areas_of_several_layouts_give_no_draft_though_they_overlap():
    areas = Areas((200, 200))
    for k in range(LEAST_SEEN):
        areas.add(np.pad(np.ones((100 + 60 * (k % 2), 100), bool), ((20, 80 - 60 * (k % 2)), (50, 50))))
    assert draft({CURVED}, areas) is None


def test_the_draft_keeps_what_nearly_all_areas_have_in_common():
    areas = Areas((200, 200))
    for k in range(LEAST_SEEN):
        areas.add(np.pad(np.ones((100 + k % 3, 100), bool), ((50, 50 - k % 3), (50, 50))))
    found = draft({CURVED}, areas)
    assert found and found.mask[50:150, 50:150].all() and found.mask.sum() == 100 * 100


def test_a_draft_that_a_person_has_signed_loads(tmp_path):
    areas = Areas(SIZE)
    for k in range(LEAST_SEEN):
        areas.add(decision(k).mask)
    found = draft({CURVED}, areas)
    assert found and "polygons: [[[" in found.text
    (tmp_path / "ge.yaml").write_text(found.text)
    with pytest.raises(ConfigError):
        load_templates(tmp_path)
    signed = found.text.replace("reviewed_by: ''", "reviewed_by: data protection officer")
    signed = signed.replace("reviewed_on: ''", "reviewed_on: 2026-01-31").replace("images_seen: 0", "images_seen: 20")
    (tmp_path / "ge.yaml").write_text(signed)
    assert load_templates(tmp_path).find(CURVED, SIZE) is not None


def test_a_draft_is_for_any_software_if_the_pictures_are_of_several():
    areas = Areas((200, 200))
    for _ in range(LEAST_SEEN):
        areas.add(np.pad(np.ones((100, 100), bool), 50))
    found = draft({CURVED, Device("ge", "logiq e9", "7")}, areas)
    assert found and yaml.safe_load(found.text)["templates"][0]["software"] is None


def test_a_mask_that_was_scaled_down_counts_at_the_size_of_the_source():
    areas = Areas((200, 400))
    areas.add(np.pad(np.ones((50, 100), bool), ((25, 25), (50, 50))))
    [mask] = areas.masks()
    assert mask.shape == (200, 400) and mask[50:150, 100:300].all() and mask.sum() == 100 * 200


@pytest.mark.parametrize("kind, word", [("curved", "sector"), ("linear", "rectangle"), ("steered", "trapezoid")])
def test_the_shape_of_an_area_is_named(kind, word):
    assert kind_of(draw_screen(kind, 3, (400, 500), clip=False).truth) == word


# --- where it is written ----------------------------------------------------------------------------------------------


def test_the_page_and_its_folder_are_the_owners_alone(tmp_path):
    page = write_page(review_of(decision(1)), tmp_path / "area" / "review", tmp_path / "source")
    assert page.name == FILE
    assert page.stat().st_mode & 0o777 == 0o600 and page.parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in page.parent.iterdir()] == [FILE]


def test_a_second_page_replaces_the_first(tmp_path):
    for number in (1, 2):
        page = write_page(review_of(decision(number)), tmp_path / "review", tmp_path / "source")
    assert f"{2:032x}" in page.read_text() and f"{1:032x}" not in page.read_text()


@pytest.mark.parametrize("sign", ["lake.json", ".git", ".dvc", "deep.dvc"])
def test_nothing_is_written_in_a_lake_a_git_work_tree_or_a_folder_of_dvc(tmp_path, sign):
    shared = tmp_path / "shared"
    (shared / "deep").mkdir(parents=True)
    (shared / sign).touch() if "." in sign[1:] else (shared / sign).mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="nothing was written"):
        write_page(review_of(decision(1)), shared / "deep" / "review", tmp_path / "source")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_work_tree_is_found_as_git_makes_it_for_a_linked_one(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path / "repo"], check=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".git").write_text("gitdir: ../repo/.git/worktrees/linked\n")
    for place in ("repo", "linked"):
        with pytest.raises(ConfigError, match="git work tree"):
            private_folder(tmp_path / place / "review")


def test_a_link_into_a_lake_is_followed_before_it_is_judged(tmp_path):
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "lake.json").touch()
    (tmp_path / "innocent").symlink_to(tmp_path / "lake")
    with pytest.raises(ConfigError, match="in a lake"):
        private_folder(tmp_path / "innocent" / "review")


def test_nothing_is_written_among_the_patients_files(tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(ConfigError, match="among the source files"):
        private_folder(tmp_path / "source" / "review", tmp_path / "source")


def test_a_folder_that_others_can_look_into_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ConfigError, match="Others can look into"):
        private_folder(tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o755


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is no folder"):
        private_folder(tmp_path / "file")


def test_a_link_in_place_of_the_page_is_replaced_not_followed(tmp_path):
    place, elsewhere = private_folder(tmp_path / "review"), tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    (place / FILE).symlink_to(elsewhere)
    write_private(place / FILE, b"page")
    assert elsewhere.read_text() == "untouched" and not (place / FILE).is_symlink()


def test_a_page_that_can_not_be_written_leaves_nothing_behind(tmp_path):
    place: Path = private_folder(tmp_path / "review")
    (place / FILE).mkdir()
    with pytest.raises(ConfigError, match="Can't write"):
        write_private(place / FILE, b"page")
    assert [entry.name for entry in place.iterdir()] == [FILE]


# --- files ------------------------------------------------------------------------------------------------------------

FOLDER = "Xaverina_Quorbeltal"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three drawn examinations, one cut off, a text and a link that leads nowhere. Tests only read it."""
    world = World(tmp_path_factory.mktemp("site"))
    for number in range(3):
        ultrasound(f"review {number}").write(world.source / FOLDER / f"IM{number}.dcm")
    whole = (world.source / FOLDER / "IM0.dcm").read_bytes()
    (world.source / FOLDER / "half.dcm").write_bytes(whole[: len(whole) // 2])
    (world.source / "list of Quorbeltal.txt").write_text("Quorbeltal")
    (world.source / "gone.dcm").symlink_to("nowhere")
    return world


def looked_at(world: World, **options: Any) -> Reviewed:
    card = private_card(SITE)
    rules = rules_of(card, world.key, source=world.source, area=world.area)
    return review_files(card, world.source, rules, **options)


def test_the_verdicts_are_those_of_an_ingest(site, tmp_path):
    card = private_card(SITE)
    rules = rules_of(card, site.key, source=site.source, area=site.area)
    report = ingest(card, site.source, Lake.create(tmp_path / "lake"), rules=rules)
    review = looked_at(site).review
    counts = review.counts()
    assert counts["items"] == 6 and counts["accepted"] == report.counts.samples == 3
    assert Counter(line.reason for line in review.lines if line.reason) == report.reasons


def test_items_are_asked_for_by_the_first_digits_of_their_keys(site):
    wanted = [site.identity().source(f"{FOLDER}/IM{number}.dcm") for number in (1, 2)]
    found = looked_at(site, keys=[wanted[0][:8], wanted[1].upper()], show_paths=True)
    assert sorted(line.key for line in found.review.lines) == sorted(wanted) and found.seen == 6
    page = found.review.page(seen=found.seen)
    assert f"{FOLDER}/IM1.dcm" in page and "items looked at, of 6" in page and "IM0.dcm" not in page


@pytest.mark.parametrize("key", ["0" * 32, "12345", "IM0.dcm", ""])
def test_a_key_that_fits_no_item_is_refused_without_being_repeated(site, key):
    with pytest.raises(ConfigError, match="One of the keys fits no item") as caught:
        looked_at(site, keys=[key])
    assert key == "" or key not in str(caught.value)


def test_the_first_items_are_those_of_the_lowest_keys(site):
    everything = sorted(line.key for line in looked_at(site).review.lines)
    some = looked_at(site, first=2)
    assert [line.key for line in some.review.lines] == everything[:2] and some.seen == 6


def test_the_verb_writes_into_the_private_area_and_prints_no_name(site):
    where = ["--from", str(site.source), "--name", SITE, "--key-file", str(site.key), "--area", str(site.area)]
    run = command(site, ["deid-review", *where, "--workers", "2", "--show-paths"])
    page = site.area / SITE / "review" / FILE
    assert run.code == 0, run.stderr
    said = (run.stdout + run.stderr).decode()
    assert "6 items: 3 accepted, 2 quarantined, 1 rejected" in said and str(page) in said.replace("\n", "")
    assert "Quorbeltal" not in said and FOLDER in page.read_text()
    assert [path.name for path in site.area.rglob("*") if path.is_file() and path.suffix != ".jsonl"] == [FILE]

    (site.root / "shared").mkdir()
    (site.root / "shared" / "lake.json").touch()
    refused = command(site, ["deid-review", *where, "--out", str(site.root / "shared" / "review")])
    assert refused.code == 1 and b"lies in a lake" in refused.stderr
    assert [path.name for path in (site.root / "shared").iterdir()] == ["lake.json"]
