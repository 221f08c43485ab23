from pathlib import Path

import pytest
from fakes.us_headers import header, nested, raw, region, saved
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ingest.deid.elements import decode, encodings_of, numbers, peek, strings, vr_of
from ingest.deid.reasons import Reason, Refusal
from ingest.deid.walk import DEEPEST, Action, action_of, walk


def actions(dataset: Dataset) -> list[Action]:
    return [action_of(leaf) for leaf in walk(dataset)]


def test_every_element_at_any_depth_is_met_once() -> None:
    dataset = nested(4, header())
    leaves = list(walk(dataset))
    assert [leaf.depth for leaf in leaves] == [0, 1, 2, 3, 4, 4, 4, 4]
    assert len(leaves) == sum(1 for _ in dataset.iterall())


def test_private_elements_are_private_at_any_depth_and_so_is_what_is_in_them() -> None:
    item = region()
    item.private_block(0x0019, "MAKER", create=True).add_new(1, "SQ", Sequence([header()]))
    dataset = header(SequenceOfUltrasoundRegions=Sequence([item]))
    found = actions(dataset)
    assert found.count(Action.PRIVATE_REMOVED) == 2 + 4  # creator, sequence and the four elements in it


def test_curves_overlays_and_file_meta_are_told_apart() -> None:
    dataset = header()
    for tag in (0x50000005, 0x50020010, 0x60000010, 0x60023000, 0x601E4000):
        raw(dataset, tag, "LO", b"x")
    dataset.file_meta.ImplementationVersionName = "X"
    found = actions(dataset)
    assert found.count(Action.GRAPHICS_REMOVED) == 5 and found.count(Action.META_REMOVED) == 1


def test_a_file_with_undecoded_sequences_is_walked(tmp_path: Path) -> None:
    dataset = header()
    dataset.update(nested(4, header()))
    path = saved(dataset, tmp_path / "a.dcm")
    assert max(leaf.depth for leaf in walk(dcmread(path))) == 4


def test_nesting_beyond_the_limit_is_refused_and_not_recursed() -> None:
    assert max(leaf.depth for leaf in walk(nested(DEEPEST, header()))) == DEEPEST
    with pytest.raises(Refusal) as caught:
        list(walk(nested(DEEPEST + 1, header())))
    assert caught.value.reason == Reason.DEEP_NESTING


def test_a_sequence_that_is_none_is_counted_and_passed_over() -> None:
    dataset = header()
    raw(dataset, 0x00081115, "SQ", b"\x01\x02")
    raw(dataset, 0x00081140, "SQ", b"")
    assert actions(dataset).count(Action.UNREADABLE_REMOVED) == 1


def test_a_leaf_shows_no_value() -> None:
    leaf = next(iter(walk(header(StudyInstanceUID=None, SOPInstanceUID=None, StudyDate=None))))
    assert "4711" not in repr(leaf)


# --- single elements --------------------------------------------------------------------------------------------------


def value(vr: str | None, data: bytes, tag: int = 0x00101010, little: bool = True):
    dataset = Dataset()
    raw(dataset, tag, vr, data, little)
    return peek(dataset, tag)


def test_the_vr_of_implicit_and_unknown_elements_is_the_dictionarys() -> None:
    assert vr_of(value(None, b"", 0x00280010)) == vr_of(value("UN", b"", 0x00280010)) == "US"
    assert vr_of(value("UN", b"", 0x00191001)) == "UN"


@pytest.mark.parametrize(
    ("vr", "data", "expected"),
    [
        *(("DS", b"1.5", (1.5,)), ("DS", b"1\\2", (1, 2)), ("IS", b" 7 ", (7,)), ("DS", b"1e3", (1000,))),
        *(("US", b"\x02\x01", (258,)), ("SS", b"\xff\xff", (-1,)), ("FD", b"\0" * 6 + b"\xf0\x3f", (1.0,))),
        *(
            ("DS", b"Smith^John", ()),
            ("DS", b"1\\Smith", ()),
            ("DS", b"nan", ()),
            ("DS", b"1_0", ()),
            ("IS", b"1.5", ()),
        ),
        *(("US", b"\x02", (8194,)), ("UL", b"ab", ()), ("FD", b"\0" * 6 + b"\xf8\x7f", ()), ("FD", b"Smith^", ())),
        *(("PN", b"7", ()), ("LO", b"7", ()), ("OB", b"77", ()), ("DS", "٣".encode(), ()), ("DS", b"", ())),
    ],
)
def test_numbers_are_numbers_or_nothing(vr: str, data: bytes, expected: tuple[float, ...]) -> None:
    assert numbers(value(vr, data)) == expected


def test_big_endian_numbers_are_read_as_such() -> None:
    assert numbers(value("US", b"\x01\x02", little=False)) == (258,)


@pytest.mark.parametrize(
    ("charset", "codec", "name"),
    [
        ("ISO_IR 100", "latin-1", "Müller^Jörg"),
        ("ISO_IR 144", "iso8859_5", "Иванов^Иван"),
        ("GB18030", "gb18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "utf-8", "Wang^XiaoDong=王^小东=ワン"),
        ("iso-ir 192", "utf-8", "王^小东"),
        ("ISO 2022 IR 6\\ISO 2022 IR 87", "iso2022_jp", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("", "utf-8", "Müller^Jörg"),
    ],
)
def test_names_are_decoded_in_their_character_set(charset: str, codec: str, name: str) -> None:
    dataset = Dataset()
    raw(dataset, 0x00080005, "CS", charset.encode())
    raw(dataset, 0x00100010, "PN", name.encode(codec))
    assert strings(peek(dataset, 0x00100010), encodings_of(dataset)) == (name,)


def test_bytes_of_no_character_set_raise_nothing_and_warn_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    for data in (b"\xff\xfe\xfa", b"\x1b$B\xff\xff\x1b", b"\x1b$)C\xa1", b"\x81"):
        for codec in ("utf-8", "gb18030", "iso2022_jp", "euc_kr", "iso8859"):
            assert isinstance(decode(data, [codec]), str)
    assert not recwarn.list
