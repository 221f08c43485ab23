"""Typed values from a source's text: what does not parse is dropped."""

import math
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.valuerep import IS, DSdecimal, DSfloat

from ingest.deid.values import age_between, age_years, name_components, normalise, number, parse_date, sex_word

DAY = date(2020, 1, 31)


@pytest.mark.parametrize(
    "text",
    [
        *("20200131", "20200131 ", "20200131\0", " 20200131", "2020.01.31", "20200131101500", "20200131101500.123456"),
        *("20200131+0100", "2020013110-0500", "202001311015+1400", "20200131235960", "20200131101500.1-1200 "),
    ],
)
def test_dates_and_date_times_of_dicom_are_read(text):
    assert parse_date(text) == DAY


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "2007",
            "200703",
            "2020013",
            "202001311",
            "20200230",
            "20210229",
            "20200001",
            "20201301",
            "20200132",
        ),
        *("2020.1.31", "2020.01", "2020-01-31", "31.01.2020", "20200131-20200201", "20200131\\20200201", "-20200131"),
        *(
            "２０２００１３１",
            "٢٠٢٠٠١٣١",
            "2020013１",
            "20200131x",
            "Mueller^Anna",
            "20200131Mueller",
            "20200131 10:15",
        ),
        *("2020013125", "202001311060", "20200131101561", "20200131101500.", "20200131101500.1234567", "20200131+1500"),
        *("20200131+0160", "20200131-1300", "00000000", "99999999", "20200131\n20200131", "2020013110:15"),
    ],
)
def test_what_is_no_whole_date_is_dropped(text):
    assert parse_date(text) is None


@pytest.mark.parametrize("value", [None, 20200131, 20200131.0, b"20200131", ["20200131"], DAY])
def test_only_text_is_a_date(value):
    assert parse_date(value) is None


def test_the_29th_of_february_exists_in_leap_years_only():
    assert parse_date("20000229") == date(2000, 2, 29)
    assert parse_date("19000229") is None and parse_date("20230229") is None


def test_days_out_of_the_believable_range_are_dropped():
    assert parse_date("19000101") == date(1900, 1, 1) and parse_date("18991231") is None
    assert parse_date("20200131", last=DAY) == DAY and parse_date("20200201", last=DAY) is None
    assert parse_date("20200131", first=date(2020, 2, 1)) is None


@settings(deadline=None)  # the machine may be busy
@given(st.dates(date(1900, 1, 1), date(2099, 12, 31)))
def test_every_day_survives_writing_and_reading(day):
    assert parse_date(day.strftime("%Y%m%d")) == parse_date(day.strftime("%Y.%m.%d")) == day


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=30))
def test_no_text_makes_a_parser_fail(text):
    assert parse_date(text) is None or len(text) >= 8
    assert age_years(text) is None or text.strip(" \0")[-1] in "DWMY"
    assert sex_word(text) in (None, "male", "female", "other")
    found = number(text, -1e6, 1e6, 5)
    assert found is None or -1e6 <= found <= 1e6
    name_components(text)


@pytest.mark.parametrize(
    "text, years",
    [
        *(("034Y", 34), ("018M", 1), ("18M", 1), ("006W", 0), ("120D", 0), ("053W", 1), ("052W", 0), ("366D", 1)),
        *(
            ("364D", 0),
            ("000Y", 0),
            ("088Y", 88),
            ("089Y", 89),
            ("090Y", 90),
            ("101Y", 90),
            ("130Y", 90),
            ("034Y ", 34),
        ),
    ],
)
def test_ages_are_whole_years_and_90_stands_for_90_and_above(text, years):
    assert age_years(text) == years


@pytest.mark.parametrize(
    "text", ["", "Y", "034", "34", "034y", "34 Y", "-34Y", "+34Y", "0034Y", "3.5Y", "131Y", "999Y", "034Y034Y"]
)
def test_what_is_no_age_is_dropped(text):
    assert age_years(text) is None


@pytest.mark.parametrize("value", [34, None, b"034Y", ["034Y"], "٠٣٤Y", "Mueller", "19600504"])
def test_an_age_is_text_with_a_unit(value):
    assert age_years(value) is None


def test_an_age_counts_whole_years_up_to_the_day():
    born = date(1960, 5, 4)
    assert age_between(born, date(2020, 5, 3)) == 59 and age_between(born, date(2020, 5, 4)) == 60
    assert age_between(date(2000, 2, 29), date(2001, 2, 28)) == 0
    assert age_between(date(2000, 2, 29), date(2001, 3, 1)) == 1
    assert age_between(born, born) == 0 and age_between(born, date(1960, 5, 3)) is None
    assert age_between(date(1930, 1, 1), date(2019, 12, 31)) == 89
    assert age_between(date(1930, 1, 1), date(2020, 1, 1)) == 90
    assert age_between(date(1905, 1, 1), date(2020, 1, 1)) == 90
    assert age_between(date(1850, 1, 1), date(2020, 1, 1)) is None


def test_sexes_are_three_words():
    assert [sex_word(t) for t in ("M", "f ", "O", "Female", "MALE")] == ["male", "female", "other", "female", "male"]
    assert all(sex_word(t) is None for t in ("", "X", "M F", "Mueller", "W", None, 1, b"M"))


@pytest.mark.parametrize(
    "value",
    [
        *(12.5, "12.5", " 12.5 ", "+12.5", "1.25e1", "1.25E+01", "12.50000", Decimal("12.5"), DSfloat("12.5")),
        *(DSdecimal("12.5"), np.float32(12.5), np.float64(12.5), "12.5\0"),
    ],
)
def test_numbers_are_read_from_every_kind_of_number(value):
    found = number(value, 0, 100, 5)
    assert found == 12.5 and type(found) is float


def test_whole_numbers_become_floats():
    assert number(IS("12"), 0, 100, 3) == number(np.int16(12), 0, 100, 3) == number("12", 0, 100, 3) == 12.0


@pytest.mark.parametrize(
    "value",
    [
        *(
            float("nan"),
            float("inf"),
            -math.inf,
            "nan",
            "inf",
            "-Infinity",
            "1_0",
            "0x1A",
            "",
            " ",
            "1,5",
            "1.2.3",
            "12 5",
        ),
        *(
            "१२",
            "１２",
            "12mm",
            "Mueller",
            True,
            False,
            None,
            [12.5],
            (12.5,),
            {12.5},
            b"12.5",
            np.array([12.5]),
            1 + 2j,
        ),
        *(
            "1234567890123456",
            "0000000000012345",
            10**400,
            Decimal("NaN"),
            Decimal("sNaN"),
            Decimal("Infinity"),
            "1e999",
        ),
        *("12.5\\13.5", "--1", "e5", ".", "1e", "12.5\n12.5"),
    ],
)
def test_what_is_no_plain_number_is_dropped(value):
    assert number(value, -1e30, 1e30, 5) is None


def test_the_range_is_inclusive_and_nothing_is_clipped():
    assert number(5, 5, 400, 3) == 5.0 and number(400, 5, 400, 3) == 400.0
    assert number(4.99, 5, 400, 3) is None and number(401, 5, 400, 3) is None


def test_a_record_number_does_not_fit_into_a_rounded_number():
    assert number("0.1234567890123", 0, 1, 4) == 0.1235
    assert number("12345.678", 0, 50_000, 4) == 12350.0
    assert number("-0.0", -1, 1, 4) == 0.0 and math.copysign(1, number("-0.0", -1, 1, 4) or 0.0) == 1


@settings(deadline=None)  # the machine may be busy
@given(st.floats(-1e9, 1e9), st.integers(1, 8))
def test_a_number_keeps_no_more_than_its_significant_digits(value, digits):
    found = number(value, -1e10, 1e10, digits)
    assert found is not None
    assert number(found, -1e10, 1e10, digits) == found
    assert len(f"{Decimal(repr(found)).normalize():e}".split("e")[0].replace(".", "").strip("-0")) <= digits


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=40))
def test_normalising_twice_is_normalising_once(text):
    once = normalise(text)
    assert normalise(once) == once and once == once.strip() and "  " not in once


@pytest.mark.parametrize(
    "text, same",
    [
        *(
            ("MÜLLER", "mu\u0308ller"),
            ("STRASSE", "straße"),
            ("Ａｎｎａ", "anna"),
            ("a\u00a0b", "A  B"),
            ("ﬁsh", "FISH"),
        ),
        *(("a\x00b", "a b"), ("so\u00adft", "soft"), ("\u202eabc", "abc"), ("ΣΑΣ", "σας"), ("line\r\nend", "line end")),
    ],
)
def test_spellings_of_one_text_become_one(text, same):
    assert normalise(text) == normalise(same)


def test_a_name_falls_into_its_groups_components_and_words():
    assert name_components("Garcia Lopez^Ana^^Dr.=山田^太郎=やまだ^たろう") == (
        ["garcia lopez", "ana", "dr.", "山田", "太郎", "やまだ", "たろう", "garcia", "lopez", "dr"]
    )
    assert name_components("Smith, John") == ["smith, john", "smith", "john"]
    assert name_components("") == name_components("^^==^") == []
    assert name_components("A^A") == ["a"]
