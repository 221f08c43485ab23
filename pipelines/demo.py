"""The whole way in a few minutes: images, lake, SQL, balanced pretraining, scores, one page. Read `run_demo` first.

Each part tells the command that does the same, then does it. A second call does only what is missing.
"""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.card import get_card
from ingest.progress import show, tell
from ingest.run import ingest
from usdata.cohort import Cohort
from usdata.console import print_rows, say
from usdata.errors import LakeError, UsdataError
from usdata.files import read_json
from usdata.lake import Lake
from usdata.report import command_line, write_report
from usdata.sampling import sampling_plan

if TYPE_CHECKING:
    from training.config import RunConfig

REAL = {"busi": "busi", "hc18": "hc18", "usgra_seg": "usgra-seg", "covid_blues": "covid-blues"}  # data set -> folder
COUNTS = (
    "select organ, count(*) as images, count(distinct patient) as patients from samples "
    "group by organ order by images desc, organ"
)
_FEWEST = 4  # patients or near-copies that a class needs for a probe to be worth its name


@dataclass(frozen=True)
class Probe:
    """A question put to the encoder; `file` below the run's folder takes the answer."""

    sql: str
    label: str
    file: str


def run_demo(
    out: Path, real_data: Path | None = None, fresh: bool = False, *, images: int = 600, steps: int = 1200
) -> Path:
    """Ingest, count, balance, pretrain, score and report; what an earlier call left right is not done again.

    Args:
        out: folder for `lake`, `run` and `report.html`.
        real_data: a folder with any of busi, hc18, usgra-seg, covid-blues: they are ingested and used too.
        fresh: remove what an earlier demo left in `out` first.
        images: simulated ones.
        steps: of pretraining.

    Returns:
        The page.

    Raises:
        LakeError: `out` holds something of another making, or can't be written.
        UsdataError: `real_data` is no folder.
    """
    started = time.monotonic()
    place, run = out / "lake", out / "run"
    if real_data is not None and not real_data.is_dir():
        raise UsdataError(f"No folder {real_data}.", step="demo", hint="Set USDATA_REAL_DATA to a folder, or unset it.")
    if fresh:
        _clear(out)
    lake = _bring_in(place, real_data, images)
    _count_and_balance(lake, place)
    _pretrain(lake, place, run, steps)
    _probe(lake, place, run)
    page = out / "report.html"
    _part("A page of it all", "report", "-o", page, "--run", run, "--lake", place)
    write_report(lake, page, run=run)
    _farewell(place, page, run, time.monotonic() - started)
    return page


def _part(title: str, *command: object) -> None:
    say("", f"── {title}")
    _command(*command)


def _command(*words: object) -> None:
    say(f"$ {command_line('usdata', *words)}")


def _clear(out: Path) -> None:
    """Remove what a demo makes, and nothing else."""
    for name, sign in (("lake", "lake.json"), ("run", "config.json")):
        folder = out / name
        if folder.is_dir() and any(folder.iterdir()) and not (folder / sign).is_file():
            raise LakeError(f"{folder} is not of a demo's making (no {sign} there).", hint="Choose another --out.")
    for name in ("lake", "run"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    (out / "report.html").unlink(missing_ok=True)


def _bring_in(place: Path, real_data: Path | None, images: int) -> Lake:
    """Ingest the phantom, then each real set that is at hand."""
    sources: dict[str, Path | None] = {"phantom": None}
    if real_data is not None:
        sources |= {name: real_data / folder for name, folder in REAL.items() if (real_data / folder).is_dir()}
        if len(sources) == 1:
            say(f"None of {', '.join(REAL.values())} in {real_data}: going on with simulated images alone.")
    say("", f"── Images into the lake: {', '.join(sources)}")
    lake = Lake.create(place)
    for name, source in sources.items():
        wanted = ("--images", images) if source is None else ("--from", source)
        _command("ingest", name, *wanted, "--lake", place)
        count = images if source is None else None
        with show(name, quiet=False) as progress:
            report = ingest(get_card(name), source, lake, workers=_cores(), count=count, progress=progress)
        tell(report, lake)
    return lake


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _count_and_balance(lake: Lake, place: Path) -> None:
    _part("What is in it? Ask in SQL", "sql", COUNTS, "--lake", place)
    print_rows(lake.sql(COUNTS).to_pylist(), as_json=False)
    _part("How will training draw from it? Rare organs more often", "plan", "--gamma", "0.5", "--lake", place)
    cohort = lake.cohort("all")
    codes, names = cohort.groups("organ")
    print_rows(sampling_plan(codes, names, gamma=0.5, draws=cohort.rows).rows(), as_json=False)


# --- training and scores ----------------------------------------------------------------------------------------------


def _pretrain(lake: Lake, place: Path, run: Path, steps: int) -> None:
    """Pretrain on all images, or go on where an earlier demo was stopped."""
    cohort = lake.cohort("all")
    settings = [f"steps={steps}", f"batch_size={min(32, cohort.rows)}"]
    settings += [f"probe_every={max(1, steps // 6)}", f"pictures_every={steps}", "log_every=20"]
    words = [word for setting in settings for word in ("--set", setting)]
    command = ("pretrain", "d2mae", "--cohort", "all", "--preset", "micro", *words, "--lake", place, "--out", run)
    _part("Pretraining: D²MAE learns to rebuild sharp images from a quarter of a blurred one", *command)
    from training.config import resolve  # torch takes seconds to import: after the first results are on the screen
    from training.progress import Progress
    from training.train import pretrain

    cfg = resolve("d2mae", "micro", None, settings)
    state = _state_of(run, cfg, cohort)
    if state == "finished":
        say(f"{run}: these {steps:,} steps on these images are done.")
        return
    if state == "another":
        say(f"{run} is of other images or settings: it starts anew.")
        shutil.rmtree(run)
    with Progress(cfg, quiet=False) as progress:
        result = pretrain(cohort, cfg, run, resume=state == "begun", progress=progress.update)
    if not result.finished:
        raise UsdataError(
            f"Stopped by {result.stopped} after step {result.step:,} of {steps:,}; all is saved.",
            step="demo",
            hint="Go on:  the same command again",
        )
    say(f"{run}: {result.step:,} steps in {result.seconds:.0f} s, loss {result.last.get('loss', float('nan')):.3g}")


def _state_of(run: Path, cfg: "RunConfig", cohort: Cohort) -> str:
    """What stands in the run's folder: "" nothing, "finished" or "begun" of this very run, or "another" run.

    Raises:
        LakeError: files that are no run.
    """
    from training.checkpoint import facts_of

    if not run.exists() or not any(run.iterdir()):
        return ""
    if not (run / "config.json").is_file():
        raise LakeError(f"{run} is not of a demo's making (no config.json there).", hint="Choose another --out.")
    found = read_json(run / "config.json")
    if (found.get("config_hash"), found.get("cohort_hash")) != (cfg.hash, cohort.hash):
        return "another"
    if not (run / "checkpoint" / "last.pt").is_file():
        return "another"  # killed before the first checkpoint: there is nothing to go on from
    return "finished" if facts_of(run).get("steps") == str(cfg.steps) else "begun"


def _probe(lake: Lake, place: Path, run: Path) -> None:
    from training.checkpoint import facts_of
    from training.downstream.classify import probe_cohort, rows_of

    say("", "── What is the encoder worth? Beside random weights, thumbnails and the commonest class")
    facts = facts_of(run)
    for probe in _probes(lake):
        file = run / probe.file
        where = ("--cohort", probe.sql, "--label", probe.label, "--out", file, "--lake", place)
        _command("downstream", "probe", "--encoder", run, *where)
        cohort = lake.cohort(probe.sql)
        result = read_json(file) if file.is_file() else None
        if not result or result["cohort"]["hash"] != cohort.hash or not result["encoder"].items() >= facts.items():
            result = probe_cohort(cohort, run, label=probe.label, out=file)
        print_rows(rows_of(result), as_json=False)


def _probes(lake: Lake) -> list[Probe]:
    """Organs of the phantom, and benign against malignant against normal in breasts, simulated and real.

    A class with fewer than four patients (or images, where patients are unknown) is left out: no split could test it.
    """
    wanted = [
        ("dataset = 'phantom'", "organ", "scores.json"),
        ("dataset = 'phantom' and organ = 'breast'", "label", "scores-breast-phantom.json"),
        ("dataset = 'busi'", "label", "scores-breast-busi.json"),
    ]
    probes = []
    for sql, label, file in wanted:
        groups = lake.sql(
            f"""select {label} as class, count(distinct coalesce(patient, sample_id)) as n from samples
            where {sql} and {label} is not null group by {label} order by {label}"""
        ).to_pylist()
        some = [g["class"] for g in groups if g["n"] >= _FEWEST]
        if len(some) < 2:
            continue
        few = len(some) < len(groups)
        listed = ", ".join(f"'{word}'" for word in some)
        probes.append(Probe(f"{sql} and {label} in ({listed})" if few else sql, label, file))
    return probes


def _farewell(place: Path, page: Path, run: Path, seconds: float) -> None:
    say(
        "",
        f"Done in {seconds:.0f} s. Open {page} in a browser.",
        "",
        "Next, with images of your own (README: 'Your own data in five minutes'):",
        "  usdata datasets                                        which published sets are known, and their licences",
        f"  usdata ingest busi --from PATH --lake {place}",
        f"  usdata ingest --card my.yaml --from PATH --lake {place}",
        f"  usdata pretrain d2mae --cohort all --preset small --lake {place} --out {run.with_name('run-small')}",
    )
