"""Private data with a card of its own: what layout and tables say is stored in listed words, or not at all."""

import pyarrow.parquet as pq
import pytest
from fakes.deid_bench import Bench, left_over
from fakes.deid_dicom import ultrasound
from fakes.deid_media import plain
from fakes.deid_run import SITE, World, command
from fakes.deid_secrets import Secret, digits, word

CARD = f"""
name: {SITE}
title: A hospital's own
citation: none
licence: private
commercial_use: "no"
redistribution: "no"
deid_profile: private
defaults: {{organ: thyroid, probe: linear}}
layout:
  image: '(?P<patient>[^/]+)/(?P<label>[^/]+)/(?P<stem>[^/]+)\\.(?:png|dcm)'
tables:
  - {{file: 'notes\\.csv', key: file, match: stem, columns: {{label: label, patient: patient}}}}
labels: {{label: [benign, malignant]}}
"""


def filled(world: World, card: str, table: str | None = None) -> Bench:
    """Folders named after patients, one label that no list has, files named after people; a table with their names."""
    bench = Bench(world)
    places = [f"card/{kind} {n}" for kind in ("patient", "file", "label") for n in range(3)]
    bench.everywhere = [Secret(place, (word(place),), word(place)) for place in places]
    bench.everywhere += [Secret("card/table", (word("card/table"), digits("card/table")), "")]
    for number in range(3):
        patient, file = word(f"card/patient {number}"), word(f"card/file {number}")
        for label in ("benign", word(f"card/label {number}")):
            folder = world.source / patient / label
            folder.mkdir(parents=True)
            ultrasound(f"card/{number} {label}").write(folder / f"{file}.dcm")
            (folder / f"{file} 2.png").write_bytes(plain("png"))
    (world.source / word("card/patient 0") / "stray.txt").write_text(word("card/table"))
    (world.source / "notes.csv").write_text(table or _table())
    (world.root / "card.yaml").write_text(card)
    return bench


def _table() -> str:
    lines = ["file,name,patient,label", f"{word('card/file 0')},x,{word('card/table')},{word('card/table')}"]
    return "\n".join([*lines, f"{word('card/file 1')},{word('card/table')},{digits('card/table')},benign"]) + "\n"


def ran(world: World, *more: str):
    words = [
        "ingest",
        "--card",
        str(world.root / "card.yaml"),
        "--from",
        str(world.source),
        "--key-file",
        str(world.key),
    ]
    return command(world, [*words, "--lake", str(world.lake), "--area", str(world.area), "--workers", "1", *more])


BY_TABLE = CARD.replace("(?P<patient>[^/]+)/(?P<label>[^/]+)/", "[^/]+/[^/]+/")
CARDS = {
    "layout": CARD.replace(CARD[CARD.index("tables:") : CARD.index("labels:")], ""),
    "table": BY_TABLE,
    "a table's column that is not there": BY_TABLE.replace("label: label", "label: diagnosis"),
    "filled twice": CARD,
    "labels of any kind": CARD[: CARD.index("tables:")],
    "a pattern that fits nothing": BY_TABLE.replace("(?:png|dcm)", "nothing"),
}


@pytest.mark.deid
@pytest.mark.parametrize("name", CARDS)
def test_no_name_comes_out_through_a_card(world, name):
    bench = filled(world, CARDS[name])
    runs = [ran(world, "--json"), ran(world), ran(world, "--dry-run"), ran(world, "--dry-run", "--json")]
    leaks = bench.leaks(*runs)
    for run in runs:
        print(run.code, run.stdout.decode()[-600:], run.stderr.decode()[-600:])
    assert not leaks, [str(leak) for leak in leaks[:20]]
    assert not left_over(world) and all(b"Traceback" not in run.stderr for run in runs)


@pytest.mark.deid
def test_patients_of_a_layout_are_pseudonyms_and_group_their_files(world):
    filled(world, CARDS["layout"])
    run = ran(world, "--json")
    part = pq.read_table(world.lake / "catalog" / "samples" / f"{SITE}.parquet")
    patients = part.column("patient").to_pylist()
    assert run.code == 0 and len(set(patients)) <= 3 and all(len(p) == 32 for p in patients)
    assert set(part.column("label").to_pylist()) == {"benign"}


@pytest.mark.deid
def test_a_broken_table_is_not_quoted(world):
    broken = f'file,name,patient,label\n"{word("card/table")},{digits("card/table")}\n\0{word("card/table")}\n'
    bench = filled(world, BY_TABLE, broken)
    runs = [ran(world, "--json"), ran(world)]
    assert not bench.leaks(*runs), [str(leak) for leak in bench.leaks(*runs)[:10]]
