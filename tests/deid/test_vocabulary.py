import pytest
from pydicom.sr import codes
from pydicom.sr._snomed_dict import mapping

from ingest.deid import vocabulary as v
from usdata.schema import taxonomy, vocabulary

TABLES = ("devices", "probes", "anatomy", "views")


def leaves(table):
    """All keys and values of a table."""
    if isinstance(table, dict):
        for key, value in table.items():
            yield key
            yield from leaves(value)
    elif isinstance(table, list):
        for value in table:
            yield from leaves(value)
    else:
        yield table


# --- the tables themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_a_table_holds_text_only(name: str) -> None:
    """YAML reads `no`, `null` and 730 as something else unless they are quoted."""
    assert [leaf for leaf in leaves(v.load(name)) if not isinstance(leaf, str)] == []


def test_no_spelling_stands_for_two_words() -> None:
    devices, probes, anatomy = v.load("devices"), v.load("probes"), v.load("anatomy")
    names = {kind: [name for row in rows for name in row] for kind, rows in probes["names"].items()}
    for table in (devices["makers"], names, probes["types"], anatomy["body_parts"], anatomy["words"], anatomy["codes"]):
        owners: dict[str, set[str]] = {}
        for word, spellings in table.items():
            for spelling in spellings:
                owners.setdefault(v.key_of(spelling), set()).add(word)
        assert {key: words for key, words in owners.items() if len(words) > 1} == {}


def test_spellings_of_models_belong_to_listed_models_and_makers() -> None:
    devices = v.load("devices")
    assert set(devices["models"]) <= set(devices["makers"])
    for maker, spellings in devices["model_spellings"].items():
        assert set(spellings) <= set(devices["models"][maker])
    known = {model for models in devices["models"].values() for model in models}
    assert {model for models in devices["model_probes"].values() for model in models} <= known


def test_every_word_that_comes_out_is_in_the_catalogs_vocabulary() -> None:
    probes, anatomy, views = v.load("probes"), v.load("anatomy"), v.load("views")
    kinds = {*probes["names"], *probes["types"], *probes["geometry_codes"].values(), *probes["presets"].values()}
    assert kinds | set(probes["application_codes"].values()) <= vocabulary("probe")
    organs = {*anatomy["words"], *anatomy["body_parts"], *anatomy["codes"], *anatomy["presets"].values()}
    organs |= {*anatomy["in_a_fetus"].values(), *anatomy["fetal_words"], *anatomy["broad"], *anatomy["paired"]}
    assert organs <= vocabulary("organ")
    assert set(views["modes"]) <= vocabulary("mode")
    assert {*views["narrower"], *views["codes"]} <= set(views["names"])


def test_snomed_codes_are_those_of_the_standards_tables_in_both_forms() -> None:
    anatomy, views = v.load("anatomy"), v.load("views")
    rows = [row for table in (anatomy["codes"], views["codes"]) for rows in table.values() for row in rows]
    pairs = [row.split() for row in [*rows, *anatomy["laterality_codes"].values()]]
    assert [pair for pair in pairs if len(pair) == 2 and mapping["SRT"].get(pair[1]) != pair[0]] == []
    echo = {getattr(codes.cid12226, name).value for name in codes.cid12226.dir()}
    assert {row.split()[0] for rows in views["codes"].values() for row in rows} <= echo


def test_the_taxonomys_own_codes_and_body_parts_are_all_known() -> None:
    for organ, facts in taxonomy()["organs"].items():
        for code in facts.get("snomed_ct", ()):
            assert v.organ_of_code(code, "SCT") == organ
        for part in facts.get("dicom_body_part", ()):
            assert v.organ_of_body_part(part) in (organ, "neck_other")  # NECK stands for several
    for probe, facts in taxonomy()["probes"].items():
        for kind in facts.get("dicom_transducer_type", ()):
            assert v.probe_of_type(kind) in (probe, "convex")  # CURVED LINEAR stands for two


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        *(
            ("GE Healthcare", "GE"),
            ("GE Vingmed Ultrasound", "GE"),
            ("G.E. Medical Systems", "GE"),
            ("KRETZTECHNIK", "GE"),
        ),
        *(
            ("Philips Medical Systems", "Philips"),
            ("PHILIPS HEALTHCARE", "Philips"),
            ("SIEMENS", "Siemens"),
            ("ACUSON", "Siemens"),
        ),
        *(("TOSHIBA_MEC_US", "Toshiba"), ("CANON_MEC", "Canon"), ("Canon Medical Systems Corporation", "Canon")),
        *(("ALOKA CO., LTD.", "Hitachi"), ("SAMSUNG MEDISON CO.,LTD.", "Samsung"), ("SonoSite, Inc.", "SonoSite")),
        *(("SuperSonic Imagine SA", "SuperSonic Imagine"), ("ESAOTE S.p.A.", "Esaote"), ("Mindray", "Mindray")),
        *(("Butterfly Network, Inc.", "Butterfly"), ("TERATECH", "Terason"), ("ＰＨＩＬＩＰＳ", "Philips")),
        *(
            ("Acme Products", "other"),
            ("GE Healthcare, Dr. Bergerdorff", "other"),
            ("Philips Smith", "other"),
            ("...", "other"),
        ),
    ],
)
def test_makers_are_found_in_their_spellings_and_never_in_a_part(text: str, maker: str) -> None:
    assert v.manufacturer_of(text) == maker


@pytest.mark.parametrize(
    ("maker", "text", "model"),
    [
        *(
            ("Philips", "EPIQ 7C", "EPIQ 7"),
            ("Philips", "iE33", "iE33"),
            ("Philips", "HD11 XE", "HD11"),
            ("Philips", "Philips CX50", "CX50"),
        ),
        *(
            ("GE", "Vivid E95", "Vivid E95"),
            ("GE", "VividE9", "Vivid E9"),
            ("GE", "GE LOGIQ E9", "LOGIQ E9"),
            ("GE", "LOGIQE10", "LOGIQ E10"),
        ),
        *(
            ("GE", "V730", "Voluson 730"),
            ("Siemens", "S2000", "ACUSON S2000"),
            ("Siemens", "SIEMENS ACUSON SC2000", "ACUSON SC2000"),
        ),
        *(
            ("Toshiba", "TUS-A500", "Aplio 500"),
            ("Canon", "Aplio i800", "Aplio i800"),
            ("Mindray", "DC-7", "DC-7"),
            ("Mindray", "TE7", "TE7"),
        ),
        *(("Samsung", "HM70A", "HM70A"), ("Esaote", "MyLab70XVG", "MyLab 70"), ("SonoSite", "M-Turbo", "M-Turbo")),
        *(("GE", "EPIQ 7C", "other"), ("GE", "LOGIQ E9 of Bergerdorff", "other"), ("Philips", "", "other")),
    ],
)
def test_models_are_looked_up_with_their_maker(maker: str, text: str, model: str) -> None:
    assert v.model_of(text, maker) == (maker, model)


def test_a_model_without_a_maker_is_found_if_only_one_has_it() -> None:
    assert v.model_of("iE33", None) == ("Philips", "iE33")
    assert v.model_of("HDI 5000", None) == (None, "other")  # ATL's and Philips'


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("convex", "C5-1 C5_1 C9-2 C1-5-D C1-6 4C RAB6 6C1 4C1 PVT-375BT C60x SC6-1 3C5A CA1-7A CA541 SC5-1U"),
        (
            "linear",
            "L12-3 L12-5 9L ML6-15 ML6-15-D 9L4 14L5 18L6 PLT-704SBT PLT-1005BT L14-5 L14-6Ns L38x HFL38x LA523 SL15-4 "
            "eL18-4 L15-7io",
        ),
        ("phased", "S5-1 X5-1 M5S M5Sc-D 3Sp 4V1 4V1c PST-30BT P21x P4-2s PA240 P2-4BA S4-1"),
        ("endocavity", "C10-3v E8C RIC5-9 RIC5-9-D EV8C4 PVT-661VT 6CV1s ICTx V5-9 C9-4v IC5-9-D SE12-3"),
        ("transesophageal", "X7-2t X8-2t 6Tc 6VT-D V5Ms PET-512MC TEEx"),
        ("micro_convex", "C8-5 8C C11x CA123"),
    ],
)
def test_probes_are_known_by_their_makers_names(kind: str, names: str) -> None:
    assert {name: v.probe_of_name(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_a_serial_number_behind_a_probes_name_is_not_looked_at() -> None:
    assert v.probe_of_name("C5-1,01234567") == "convex"
    assert v.probe_of_name("C5-1 Bergerdorff") is None and v.probe_of_name("") is None


# --- descriptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "organ"),
    [
        *(
            ("US BREAST LEFT", "breast"),
            ("Schilddrüse", "thyroid"),
            ("SCHILDDRUESE bds.", "thyroid"),
            ("échographie du foie", "liver"),
        ),
        *(
            ("Ecografía de riñón", "kidney"),
            ("ecografia tiroide", "thyroid"),
            ("echo nier links", "kidney"),
            ("USG wątroby", "liver"),
        ),
        *(
            ("甲状腺超声", "thyroid"),
            ("心エコー", "heart"),
            ("腹部超音波検査", "abdomen_other"),
            ("胎児心エコー", "fetal_heart"),
        ),
        *(
            ("fetal heart", "fetal_heart"),
            ("Fetal echo, 22 weeks", "fetal_heart"),
            ("heart of the fetus", "fetal_heart"),
        ),
        *(
            ("OB 2nd trimester", "fetal_body"),
            ("fetal kidney", "fetal_abdomen"),
            ("OB: fetal head, femur", "fetal_body"),
        ),
        *(("gall bladder", "gallbladder"), ("gallbladder and bladder", "abdomen_other"), ("abdomen: liver", "liver")),
        *(
            ("neck, thyroid", "thyroid"),
            ("thyroid and carotid", "neck_other"),
            ("Transesophageal Echocardiogram", "heart"),
        ),
        *(
            ("liver and heart", None),
            ("breast and thyroid", None),
            ("Mr Liverpool", None),
            ("delivery", None),
            ("", None),
        ),
        *(("heart rate 70", None), ("heart failure, lung", "lung"), ("John Smith 4711", None)),
    ],
)
def test_organs_of_descriptions(text: str, organ: str | None) -> None:
    assert v.organ_of_text(text) == organ


@pytest.mark.parametrize(
    ("text", "view"),
    [
        *(
            ("Apical 4 chamber", "A4C"),
            ("A4C", "A4C"),
            ("4CH", "A4C"),
            ("PLAX", "PLAX"),
            ("parasternal long axis", "PLAX"),
        ),
        *(
            ("PSAX AV", "PSAX_AV"),
            ("psax short axis", "PSAX"),
            ("subcostal 4 chamber", "subcostal"),
            ("apical long axis", "A3C"),
        ),
        *(
            ("breast TRANS 3 o'clock", "transverse"),
            ("thyroid long", "longitudinal"),
            ("SAG", "sagittal"),
            ("quer", "transverse"),
        ),
        *(
            ("trans vaginal", "transvaginal"),
            ("transthalamic plane", "transthalamic"),
            ("trans and long", None),
            ("A4C A2C", None),
        ),
        *(("Transylvania", None), ("", None)),
    ],
)
def test_views_of_descriptions(text: str, view: str | None) -> None:
    assert v.view_of_text(text) == view


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("LT breast", "left"),
        ("Mamma rechts", "right"),
        ("left and right", "both"),
        ("bilateral", "both"),
        ("leftover", None),
    ],
)
def test_sides_of_descriptions(text: str, side: str | None) -> None:
    assert v.laterality_of_text(text) == side


def test_what_no_side_is_has_no_letter() -> None:
    assert [v.laterality_of_letter(text) for text in ("L", "r", "B", "U", "Lee", "")] == [
        "left",
        "right",
        "both",
        None,
        None,
        None,
    ]


def test_codes_need_their_scheme() -> None:
    assert v.organ_of_code("T-62000", "SRT") == v.organ_of_code("T-62000", "SNM3") == "liver"
    assert v.organ_of_code("10200004", "SRT") is None and v.organ_of_code("T-62000", "SCT") is None


# --- the self-check's list --------------------------------------------------------------------------------------------


def test_every_stored_word_is_allowed_in_outputs() -> None:
    allowed = v.allowed_words()
    assert {word.lower() for word in v.stored_words()} <= allowed
    assert {"gallbladder", "philips", "epiq 7", "patient_known", "colour_doppler"} <= allowed


def test_probe_names_and_spellings_are_never_stored() -> None:
    assert not {"c5-1", "philips medical systems", "schilddrüse"} & {word.lower() for word in v.stored_words()}
