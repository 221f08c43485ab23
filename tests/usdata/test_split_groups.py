"""Groups that a split must not part, and what of them stays when a lake grows."""

import numpy as np
import pytest
from fakes.split_rows import links
from hypothesis import given, settings
from hypothesis import strategies as st

from usdata.errors import ConfigError
from usdata.split_assign import LEFT_OUT, Settings, assign, fold_shares, parse_ratios
from usdata.split_groups import KINDS, blank_pixels, group_images, places
from usdata.split_leaks import find_leaks
from usdata.split_report import stratum_rows

KEYS = tuple(KINDS.values())
DEFAULTS = Settings()


def a_row(number, prefix=""):
    """Strategy of an image whose keys are drawn from few, so that chains come about."""
    few = st.none() | st.integers(0, 5)
    return st.fixed_dictionaries(dict.fromkeys(KEYS, few) | {"dataset": st.sampled_from("ab")}).map(
        lambda row: {"id": f"{prefix}{number}"} | {k: v if v is None else f"{k}{v}" for k, v in row.items()}
    )


def some_rows(n, prefix=""):
    return st.integers(1, n).flatmap(lambda size: st.tuples(*(a_row(i, prefix) for i in range(size)))).map(list)


def parted(rows):
    """The connected groups by plain search, as sets of ids."""
    left, found = list(rows), []
    while left:
        group = [left.pop()]
        for one in group:
            near = [r for r in left if any(r[k] is not None and r[k] == one[k] for k in KEYS)]
            group += near
            left = [r for r in left if r not in near]
        found.append(frozenset(r["id"] for r in group))
    return set(found)


def words_of(rows, earlier=None, settings=DEFAULTS, on_leaks="keep"):
    """Id -> word, ids in groups that are fixed in two splits, and the leaks."""
    found = links([row | {"split": (earlier or {}).get(row["id"])} for row in rows])
    groups = group_images(found)
    made = assign(found, groups, settings, on_leaks)
    words = {row["id"]: made.words[code] for row, code in zip(rows, made.codes.tolist(), strict=True)}
    return words, {row["id"] for row, at in zip(rows, groups.of, strict=True) if made.parted[at]}


@given(some_rows(14))
@settings(max_examples=30, deadline=None)
def test_groups_are_the_connected_ones_and_no_two_share_a_name(rows):
    found = links(rows)
    groups = group_images(found)
    sets = [
        frozenset(r["id"] for r, g in zip(rows, groups.of, strict=True) if g == number) for number in range(len(groups))
    ]
    assert set(sets) == parted(rows)
    assert len(set(groups.names.to_pylist())) == len(groups)
    assert list(dict.fromkeys(groups.of.tolist())) == list(range(len(groups)))  # numbered by first appearance


def test_a_group_is_named_by_a_patient_if_it_has_one():
    rows = [
        {"id": "x1", "patient": "p", "clip": "c"},
        {"id": "x2", "clip": "c"},
        {"id": "x3", "clip": "alone"},
        {"id": "x4", "study": "s"},
        {"id": "x5"},
    ]
    assert group_images(links(rows)).names.to_pylist() == ["patient:p", "clip:alone", "study:s", "image:x5"]


def test_data_sets_of_the_same_patients_share_their_groups():
    rows = [
        {"id": "c", "dataset": "camus", "patient": "camus-7"},
        {"id": "t", "dataset": "ted_camus", "patient": "camus-7"},
    ]
    assert group_images(links(rows)).of.tolist() == [0, 0]


def test_images_of_one_grey_value_tie_no_patients():
    black = blank_pixels()[0]
    rows = [{"id": "a", "patient": "p", "pixel_xxh": black}, {"id": "b", "patient": "q", "pixel_xxh": black}]
    rows += [{"id": "c", "patient": "r", "pixel_xxh": "f" * 32}, {"id": "d", "patient": "s", "pixel_xxh": "f" * 32}]
    assert group_images(links(rows)).of.tolist() == [0, 1, 2, 2]


def test_the_order_of_the_rows_changes_no_group_s_name():
    rows = [{"id": f"x{i}", "patient": f"p{i // 2}", "duplicate_group": f"d{i % 5}"} for i in range(40)]
    there = dict(zip([r["id"] for r in rows], group_images(links(rows)).of.tolist(), strict=True))
    assert len(set(there.values())) == 1
    assert group_images(links(rows[::-1])).names.to_pylist() == group_images(links(rows)).names.to_pylist()


# --- what stays -------------------------------------------------------------------------------------------------------


@given(some_rows(12), some_rows(12, "new"), st.booleans())
@settings(max_examples=40, deadline=None)
def test_whatever_comes_later_no_image_of_an_earlier_split_moves(old, new, balanced):
    how = Settings(balanced=balanced, shares=(("a", 0.5), ("b", 0.5)))  # as many links between two parts as can be
    before, _ = words_of(old, settings=how)
    after, linked = words_of(old + new, before, settings=how)
    assert {i: after[i] for i in before} == before
    for group in parted(old + new):
        fixed = {before[i] for i in group & before.keys()}
        assert (len(fixed) > 1) == bool(group & linked)  # two published groups tied by new images: said, not moved
        assert len({after[i] for i in group} - {LEFT_OUT}) == max(1, len(fixed))
        if len(fixed) > 1:
            assert {after[i] for i in group - before.keys()} <= {LEFT_OUT}


@given(some_rows(12), some_rows(12, "new"))
@settings(max_examples=30, deadline=None)
def test_without_an_earlier_split_a_patient_moves_only_if_another_patient_is_tied_to_it(old, new):
    before, _ = words_of(old)
    after, _ = words_of(old + new)
    patient = {row["id"]: row["patient"] for row in old + new}
    groups_before, groups_after = parted(old), parted(old + new)
    for group in groups_before:
        whole = next(g for g in groups_after if group <= g)
        mine, all_of_it = {patient[i] for i in group} - {None}, {patient[i] for i in whole} - {None}
        if mine and mine == all_of_it:  # new images, clips, copies without a patient: as many as they like
            assert {after[i] for i in whole} == {before[i] for i in group}


def test_a_new_data_set_moves_nothing_even_if_the_earlier_split_is_lost():
    old = [{"id": f"x{i}", "dataset": "a", "patient": f"p{i // 3}", "label": f"{i % 2}"} for i in range(300)]
    new = [{"id": f"y{i}", "dataset": "b", "patient": f"q{i}", "label": f"{i % 2}"} for i in range(500)]
    for how in (Settings(), Settings(balanced=True)):
        before, after = words_of(old, settings=how)[0], words_of(new + old, settings=how)[0]
        assert {i: after[i] for i in before} == before


def test_a_place_depends_on_seed_and_name_alone_and_is_the_same_everywhere():
    names = group_images(links([{"id": "x", "patient": "busi-1"}, {"id": "y"}])).names
    assert places(names, "usdata").tolist() == pytest.approx([0.4750324617499845, 0.8805993037218455], abs=1e-15)
    assert places(names, "other").tolist() != places(names, "usdata").tolist()


# --- words that are fixed ---------------------------------------------------------------------------------------------


def test_published_words_stay_and_their_copies_elsewhere_follow():
    rows = [
        {"id": "a1", "dataset": "a", "official_split": "test", "pixel_xxh": "1" * 32},
        {"id": "b1", "dataset": "b", "patient": "b-1", "pixel_xxh": "1" * 32},
        {"id": "b2", "dataset": "b", "patient": "b-1"},
    ]
    assert words_of(rows)[0] == {"a1": "test", "b1": "test", "b2": "test"}
    ignored = words_of(rows, settings=Settings(official="ignore", shares=(("x", 0.5), ("y", 0.5))))[0]
    assert set(ignored.values()) < {"x", "y"} and len(set(ignored.values())) == 1


LINKED = [
    {"id": "tr", "official_split": "train", "patient": "p"},
    {"id": "te", "official_split": "test", "patient": "p"},
    {"id": "va", "official_split": "val", "patient": "p"},
    {"id": "no", "patient": "p"},
]


def test_of_a_group_in_two_published_splits_the_test_images_stay_and_the_others_are_left_out():
    kept, linked = words_of(LINKED)
    assert kept == {"tr": "train", "te": "test", "va": "val", "no": LEFT_OUT} and linked == set(kept)
    assert words_of(LINKED, on_leaks="drop")[0] == {"tr": LEFT_OUT, "te": "test", "va": LEFT_OUT, "no": LEFT_OUT}


def test_an_image_that_was_left_out_stays_out():
    dropped = words_of(LINKED, on_leaks="drop")[0]
    again, linked = words_of([*LINKED, {"id": "more", "patient": "p"}], dropped, on_leaks="refuse")
    assert {i: again[i] for i in dropped} == dropped and not linked
    assert again["more"] == "test"  # it follows the images that are left


def test_folds_are_of_all_but_the_published_test_images():
    rows = [{"id": f"x{i}", "official_split": ("train", "val", "test")[i % 3]} for i in range(300)]
    words, _ = words_of(rows, settings=Settings(shares=fold_shares(5)))
    assert {words[f"x{i}"] for i in range(2, 300, 3)} == {"test"}
    rest = [words[f"x{i}"] for i in range(300) if i % 3 != 2]
    assert set(rest) == {f"fold{i}" for i in range(5)}


# --- leaks ------------------------------------------------------------------------------------------------------------


@given(some_rows(12), st.lists(st.sampled_from(["train", "test", None]), min_size=12, max_size=12))
@settings(max_examples=30, deadline=None)
def test_every_key_in_two_splits_is_a_leak_and_nothing_else_is(rows, words):
    found = links(rows)
    given_words = dict(zip((r["id"] for r in rows), words, strict=False))
    names = ["test", "train"]
    codes = np.array(
        [-1 if given_words[r["id"]] is None else names.index(given_words[r["id"]]) for r in rows], np.int32
    )
    leaks = list(find_leaks(found, group_images(found), names, codes))
    wanted, told = set(), set()
    for kind, column in KINDS.items():
        for key in {r[column] for r in rows} - {None}:
            members = [r["id"] for r in rows if r[column] == key]
            if len({given_words[i] for i in members} - {None}) > 1:
                wanted.add((kind, key))
                told |= set(members)
    assert {(leak.kind, leak.key) for leak in leaks if leak.kind != "group"} == wanted
    chains = [g for g in parted(rows) if len({given_words[i] for i in g} - {None}) > 1 and not g & told]
    assert len([leak for leak in leaks if leak.kind == "group"]) == len(chains)
    assert len(leaks) == len(find_leaks(found, group_images(found), names, codes))


# --- shares -----------------------------------------------------------------------------------------------------------


def test_by_hash_alone_a_share_is_off_by_chance_as_coins_would_be():
    rows = [{"id": f"x{i}", "label": str(i % 4), "organ": "breast", "dataset": "a"} for i in range(8_000)]
    found = links(rows)
    groups = group_images(found)
    made = assign(found, groups, Settings())
    cells = [row["test"] for row in stratum_rows(found, groups, made, Settings())]
    assert [cell["expected"] for cell in cells] == [0.1] * 4
    assert all(abs(cell["got"] - 0.1) < 4 * (0.1 * 0.9 / 2_000) ** 0.5 for cell in cells)  # four standard deviations


@pytest.mark.parametrize("per_patient", [1, 7])
def test_balanced_meets_each_stratum_s_shares_to_two_groups(per_patient):
    rows = [
        {"id": f"x{i}", "patient": f"p{i // per_patient}", "label": str(i // 700), "organ": "breast", "dataset": "a"}
        for i in range(2_800)
    ]
    found, how = links(rows), Settings(balanced=True)
    groups = group_images(found)
    for row in stratum_rows(found, groups, assign(found, groups, how), how):
        assert all(abs(row[word]["got"] - share) * row["images"] <= 2 * per_patient for word, share in how.shares)


def test_balanced_fills_up_what_an_earlier_split_lacks():
    how = Settings(balanced=True, shares=(("a", 0.5), ("b", 0.5)))
    old = [{"id": f"x{i}", "dataset": "a"} for i in range(40)]
    before = dict.fromkeys((row["id"] for row in old), "a")  # as unlucky as can be
    after, _ = words_of(old + [{"id": f"y{i}", "dataset": "a"} for i in range(60)], before, settings=how)
    assert sum(word == "a" for word in after.values()) == 50
    assert all(after[i] == "a" for i in before)


def test_small_strata_do_not_all_round_to_train():
    rows = [{"id": f"x{i}", "dataset": "a", "label": str(i // 2)} for i in range(2_000)]  # a thousand strata of two
    words, _ = words_of(rows, settings=Settings(balanced=True))
    assert 0.07 < sum(word == "test" for word in words.values()) / 2_000 < 0.13


# --- settings ---------------------------------------------------------------------------------------------------------


NONSENSE = ["", "train", "train=x", "train=0.5", "train=0.5,val=0.6", "train=0.5,train=0.5", "train=1.5,test=-0.5"]
NONSENSE += ["a=nan,b=0.5", "a=inf,b=0.5", "Train=0.5,test=0.5", "a b=0.5,c=0.5", "left_out=0.5,a=0.5", "a=0,b=1"]


@pytest.mark.parametrize("text", [*NONSENSE, "a=80,b=20"])
def test_ratios_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigError):
        Settings(shares=parse_ratios(text))


def test_settings_come_back_from_their_record():
    for how in (Settings(), Settings("7", fold_shares(3), "ignore", True)):
        assert Settings.of_record(how.record()) == how
        assert parse_ratios(how.ratios()) == how.shares
    assert Settings("x", fold_shares(3)).folds and not Settings().folds
    for folds in (1, 0, -1, 101):
        with pytest.raises(ConfigError):
            fold_shares(folds)
    for seed in ("", "a\nb"):
        with pytest.raises(ConfigError):
            Settings(seed=seed)
