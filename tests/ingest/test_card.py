"""Cards: what they may say, and how a wrong one is reported."""

import json
import re

import pytest

from ingest.card import Card, card_digest, get_card, load_card, registered
from usdata.errors import CardError

GOOD = """
name: mine
title: My images
citation: none
licence: CC0-1.0
commercial_use: yes
redistribution: yes
deid_profile: public
defaults: {organ: thyroid}
layout: {image: '(?P<label>a|b)/[^/]+\\.png'}
labels: {label: [a, b]}
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def test_all_75_cards_are_registered_under_their_own_names():
    assert len(registered()) >= 75
    assert all(get_card(name).name == name for name in registered())


def test_an_unknown_dataset_is_answered_with_the_nearest_name():
    with pytest.raises(CardError) as error:
        get_card("bussi")
    assert str(error.value).startswith(f"No dataset named 'bussi' ({len(registered())} are registered). Did you mean")
    assert "'busi'" in str(error.value) and "usdata datasets" in error.value.hint


def test_words_are_stored_as_the_catalog_spells_them(write):
    card = load_card(write(GOOD.replace("organ: thyroid", "organ: thyroid, mode: b_mode")))
    assert card.defaults.mode == "B-mode"
    assert card.constants()["organ_group"] == "neck"


def test_yes_and_no_are_words_not_booleans(write):
    card = load_card(write(GOOD.replace("commercial_use: yes", "commercial_use: no").replace("[a, b]", "[yes, no]")))
    assert (card.commercial_use, card.labels["label"]) == ("no", ("yes", "no"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("organ: thyroid", "organ: tyroid"), "defaults.organ: Unknown organ 'tyroid'. Did you mean 'thyroid'"),
        (("organ: thyroid", "organ: thyroid, probe: lineal"), "Unknown probe 'lineal'. Did you mean 'linear'"),
        (("licence:", "license:"), "license: unknown key. Did you mean 'licence'"),
        (("layout: {image:", "layout: {images:"), "layout.images: unknown key. Did you mean 'image'"),
        (("title: My images\n", ""), "title: Field required"),
        (("name: mine", "name: My-Images"), "name: String should match pattern"),
        (("name: mine", "name: mine\nname: yours"), "key 'name' is given twice"),
        (("(?P<label>a|b)", "(?P<label>a|b"), "not a regular expression"),
        (("redistribution: yes", "redistribution: perhaps"), "redistribution: Input should be"),
        (("deid_profile: public\n", ""), "deid_profile: Field required"),
        (("labels: {label: [a, b]}", ""), "no values are listed for 'label'"),
        (("labels: {label: [a, b]}", "labels: {label: [a, b], grade: ['1']}"), "no file fills 'grade'"),
        (("labels: {label: [a, b]}", "labels: {label: [a, a]}"), "labels.label: list each value once"),
        (("defaults: {organ: thyroid}", ""), "organ: give defaults.organ"),
        (("labels:", "fields: {view: pont}\nlabels:"), "fields.view: no image or video pattern has a group 'pont'"),
        (
            ("labels:", "fields: {veiw: stem}\nlabels:"),
            "'veiw' is not a column that files can fill. Did you mean 'view",
        ),
        (("labels:", "fields: {organ: {from: label, map: {a: knee, b: nee}}}\nlabels:"), "Unknown organ 'nee'"),
        (("labels:", "fields: {label: {from: label, map: {a: c}}}\nlabels:"), "label: maps to 'c', which"),
        (("labels:", "masks: {}\nlabels:"), "masks: neither layout.mask nor annotations give any"),
        (("labels:", "crop: [5, 5, 5, 9]\nlabels:"), "crop: x0, y0, x1, y1"),
        (("labels:", "frames: {stride: 0}\nlabels:"), "frames.stride: Input should be greater than or equal to 1"),
        (("labels:", "target: ef\nlabels:"), "nothing fills 'targets.ef'"),
        (("layout: {image: '(?P<label>a|b)/[^/]+\\.png'}", ""), "layout: missing"),
        (("citation: none", "citation: *none"), "not a card"),
        (("citation: none", "citation: !!python/name:os.system"), "not a card"),
        (("citation: none", "citation: [[["), "not a card"),
    ],
)
def test_a_wrong_card_is_refused_naming_file_key_and_problem(write, change, message):
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(CardError) as error:
        load_card(write(text))
    assert "mine.yaml" in error.value.message and message in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ("{kind: index, classes: [background, a], values: {1: b}}", "'b' is not among the classes"),
        ("{kind: colour, classes: [background, a]}", "colours: say which colour"),
        ("{kind: colour, classes: [background, a], colours: {'0,0,256': a}}", "numbers from 0 to 255"),
        ("{kind: binary, classes: [background, a, b]}", "two classes unless by_path"),
        ("{kind: binary, values: {1: foreground}}", "values has no meaning"),
        ("{kind: index, classes: [a, a]}", "different names"),
        ("{kind: polygon}", "masks.kind: Input should be"),
    ],
)
def test_masks_that_contradict_themselves_are_refused(write, masks, message):
    layout = "layout: {image: '(?P<label>a|b)/(?P<s>.)\\.png', mask: '(?P<label>a|b)/(?P<s>.)_m\\.png'}"
    text = re.sub("layout: .*", lambda _: f"{layout}\nmasks: {masks}", GOOD)
    with pytest.raises(CardError, match=re.escape(message)):
        load_card(write(text))


def test_a_mask_pattern_that_shares_no_group_with_the_image_pattern_is_refused(write):
    text = re.sub("layout: .*", r"layout: {image: '(?P<label>a|b)/.\\.png', mask: '.*_m\\.png'}\nmasks: {}", GOOD)
    with pytest.raises(CardError, match="nothing pairs masks with images"):
        load_card(write(text))


def test_a_missing_or_empty_card_file_is_one_message(tmp_path, write):
    with pytest.raises(CardError, match=r"Can't read the card .*none\.yaml: No such file"):
        load_card(tmp_path / "none.yaml")
    for text in ("", "- a list", "just words"):
        with pytest.raises(CardError, match="expected `key: value` lines"):
            load_card(write(text))
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(CardError, match="is not a card"):
        load_card(path)


def test_an_unverified_card_may_lack_a_layout_if_it_says_what_it_needs(write):
    text = re.sub("layout: .*\nlabels: .*", "needs: The folder of images and a pattern for it.", GOOD)
    assert load_card(write(text)).layout is None


def test_the_digest_follows_what_changes_bytes_and_nothing_else():
    card = get_card("hc18")
    digest = card_digest(card)
    assert re.fullmatch("[0-9a-f]{32}", digest)
    for same in ({"title": "x"}, {"citation": "x"}, {"verified": "layout"}, {"expect": {}}, {"defects": ("x",)}):
        assert card_digest(card.model_copy(update=same)) == digest
    for other in ({"licence": "CC0-1.0"}, {"crop": (0, 0, 9, 9)}, {"colour_limit": 0.5}, {"target": None}):
        assert card_digest(card.model_copy(update=other)) != digest


def test_a_card_survives_a_round_trip_through_json():
    card = get_card("covid_blues")
    assert Card.model_validate(json.loads(card.model_dump_json(by_alias=True))) == card
