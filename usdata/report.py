"""One HTML page about a lake, and about a training run on it: counts, balance, images, curves, scores.

Read `write_report` first. The page needs no network and no other file, and the same inputs give the same bytes: there
is no time, host or absolute path in it. Everything that comes from data is escaped by the template.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from jinja2 import Environment, StrictUndefined

from usdata import __version__
from usdata.cohort import Cohort
from usdata.errors import ConfigError, QueryError
from usdata.files import explain_os_errors, file_xxh, replacing
from usdata.lake import Lake
from usdata.reader import ShardReader
from usdata.report_figures import colour_of, outlines, png_uri
from usdata.report_run import METRICS, STAGES, Run, caveats, charts, read_run
from usdata.rights import FREE, Purpose, check_purpose, is_stated
from usdata.sampling import sampling_plan

GAMMA = 0.5  # of the plan that is shown: USFM's weight 1/sqrt(N) per image
TILES = 8  # images per organ on the contact sheet
_TILE_SIDE = 192  # pixels: sharp on a screen of twice the density, half the bytes of the stored 256
_EXAMPLES = 3  # of each reason in the quarantine
_COLUMNS = (
    *("sample_id", "dataset", "organ", "label", "probe", "patient", "clip", "has_mask", "mask_classes", "synthetic"),
    *("licence", "commercial_use", "redistribution"),
)
_DATASETS = """
    select dataset, count(*) as images, count(distinct patient) as patients, count(distinct clip) as clips,
        count(*) filter (has_mask) as masks, count(*) filter (synthetic) as simulated,
        list(distinct organ order by organ) filter (organ is not null) as organs,
        list(distinct licence order by licence) as licences,
        list(distinct commercial_use order by commercial_use) as commercial_use,
        list(distinct redistribution order by redistribution) as redistribution
    from (select * replace (
        coalesce(licence, 'unstated') as licence, coalesce(commercial_use, 'unknown') as commercial_use,
        coalesce(redistribution, 'unknown') as redistribution) from chosen)
    group by dataset order by dataset"""
# Turn by turn: a data set of the organ, in it a label, in it a patient. The hash in the sample id makes the order
# within them look random, and the same everywhere.
_SHEET = f"""
    with known as (
        select row, dataset, sample_id, coalesce(organ, 'unknown') as organ, coalesce(label, '') as label,
            coalesce(patient, clip, sample_id) as patient from chosen),
    a as (select *, row_number() over (partition by organ, dataset, label, patient order by sample_id) as p from known),
    b as (select *, row_number() over (partition by organ, dataset, label order by p, sample_id) as l from a),
    c as (select *, row_number() over (partition by organ, dataset order by l, label, sample_id) as d from b),
    e as (select *, row_number() over (partition by organ order by d, dataset, sample_id) as place from c)
    select row, organ from e where place <= {TILES} order by organ, dataset, label, sample_id"""
_QUARANTINE = f"""
    with numbered as (
        select *, row_number() over (partition by dataset, stage, reason order by source_id, frame) as k
        from quarantine)
    select dataset, stage, reason, count(*) as n,
        list({{'item': source_id, 'frame': frame, 'detail': detail}} order by k) filter (k <= {_EXAMPLES}) as examples
    from numbered group by dataset, stage, reason order by n desc, dataset, stage, reason"""


def write_report(
    lake: Lake, out: Path, cohort: str = "all", run: Path | None = None, purpose: Purpose = "research"
) -> Path:
    """Write the page and return its path.

    Args:
        lake: what to report on.
        out: the HTML file; replaced whole or not at all.
        cohort: SQL condition or saved name: the images to report on.
        run: the OUT of `usdata pretrain`; its curves, pictures and `scores*.json` come on the page too.
        purpose: what the page is for; research stays with whoever writes it.

    Raises:
        QueryError: the cohort is refused.
        ConfigError: a licence that forbids the purpose.
        LakeError: damage in the lake, or `out` can't be written.
        UsdataError: no run in `run`.
    """
    chosen = lake.cohort(cohort)
    if purpose != "research":
        check_purpose(chosen, purpose)
    read = None if run is None else read_run(run)
    if read is not None and purpose != "research":
        _check_run(lake, read, purpose)
    page = render(lake, chosen, read, out.name)
    with explain_os_errors(out, step="report"), replacing(out) as file:
        file.write(page.encode("utf-8"))
    return out


def render(lake: Lake, cohort: Cohort, run: Run | None = None, file_name: str = "report.html") -> str:
    """The page as text; `file_name` is what its command to reproduce calls it."""
    table = _table(cohort)
    quarantine = lake.sql(_QUARANTINE).to_pylist()
    with duckdb.connect() as con:
        con.register("chosen", table)
        datasets = con.sql(_DATASETS).to_arrow_table().to_pylist()
        sheet = con.sql(_SHEET).to_arrow_table().to_pylist()
        con.unregister("chosen")
    _complete(datasets, quarantine)
    private = [d for d in datasets if d["private"]]
    return _template().render(
        name=lake.root.resolve().name,
        cohort=cohort,
        totals=_totals(table, datasets),
        datasets=datasets,
        private=private,
        balance=_balance(cohort),
        gamma=GAMMA,
        sheet=_sheet(cohort, table, sheet, {d["dataset"] for d in private}),
        quarantine=quarantine,
        run=None if run is None else _run_facts(lake, cohort, run),
        metrics=METRICS,
        provenance=_provenance(lake, cohort),
        commands=_commands(lake, cohort, datasets, run, file_name),
    )


def _check_run(lake: Lake, run: Run, purpose: Purpose) -> None:
    """Refuse the pictures of a run whose images may not be used for `purpose`, or whose images nobody can tell.

    Raises:
        ConfigError: what is refused, and why.
    """
    own = _own(lake, run)
    if own is None:
        raise ConfigError(
            f"The images of the run {run.name} are not those of this lake: nobody can tell what they may be used for.",
            hint="Leave --run away, or report on the lake that the run was made with.",
        )
    check_purpose(own, purpose)


def _own(lake: Lake, run: Run) -> Cohort | None:
    """The images that a run was made with, if the lake has them still."""
    return _find(lake, str(run.facts.get("cohort_sql", "all")), str(run.facts.get("cohort_hash", "")))


def _table(cohort: Cohort) -> pa.Table:
    """The columns of interest and `row`, each sample's number in the cohort; dictionaries decoded."""
    table = cohort.table(_COLUMNS)
    plain = [pc.cast(c, c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in table.columns]
    return pa.table(dict(zip(table.column_names, plain, strict=True))).append_column("row", pa.array(range(len(table))))


def _complete(datasets: list[dict[str, Any]], quarantine: list[dict[str, Any]]) -> None:
    """Add to each data set how many items are quarantined, and whether its images are for private use only."""
    known = {d["dataset"] for d in datasets}
    lost = {q["dataset"]: 0 for q in quarantine}
    for q in quarantine:
        lost[q["dataset"]] += q["n"]
    empty = {"images": 0, "patients": 0, "clips": 0, "masks": 0, "simulated": 0, "organs": []}
    rights: dict[str, list[str]] = {"licences": [], "commercial_use": [], "redistribution": []}
    datasets += [{"dataset": name, **empty, **rights} for name in sorted(lost.keys() - known)]
    for d in datasets:
        d["quarantined"] = lost.get(d["dataset"], 0)
        d["unstated"] = _unstated(d["licences"])
        d["private"] = d["unstated"] or any(word not in FREE for word in d["redistribution"])


def _unstated(licences: Iterable[str | None]) -> bool:
    return not all(map(is_stated, licences))


def _totals(table: pa.Table, datasets: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": len(table),
        "simulated": sum(d["simulated"] for d in datasets),
        "patients": sum(d["patients"] for d in datasets),  # a patient's name counts within its data set
        "clips": sum(d["clips"] for d in datasets),
        "datasets": sum(d["images"] > 0 for d in datasets),
        "organs": len({organ for d in datasets for organ in d["organs"]}),
        "masks": sum(d["masks"] for d in datasets),
        "licences": sorted({licence for d in datasets for licence in d["licences"]}),
    }


def _balance(cohort: Cohort) -> dict[str, Any]:
    """A row per organ: images, share of the images, share of the draws, draws per image and epoch."""
    if not cohort.rows:
        return {"rows": [], "most": 0, "widest": 0.0, "effective": 0.0}
    codes, names = cohort.groups("organ")
    plan = sampling_plan(codes, names, gamma=GAMMA, draws=cohort.rows)
    rows = plan.rows()
    return {
        "rows": rows,
        "most": max(row["images"] for row in rows),
        "widest": max(max(row["share"], row["expected"]) for row in rows),
        "effective": plan.effective_groups,
    }


@dataclass(frozen=True)
class Tile:
    """An image on the contact sheet; `classes` are (colour, name) of the outlines drawn on it."""

    uri: str
    outline: str
    classes: list[tuple[int, str]]
    dataset: str
    label: str | None
    probe: str | None
    simulated: bool
    private: bool


def _sheet(cohort: Cohort, table: pa.Table, chosen: list[dict[str, Any]], private: set[str]) -> dict[str, list[Tile]]:
    """The tiles of each organ. Every second image that has a mask gets its outlines."""
    if not chosen:
        return {}
    rows = np.array([one["row"] for one in chosen], np.int64)
    reader = ShardReader(cohort.index(mask=True))
    images = reader.images(rows)
    masks, _ = reader.masks(rows)
    facts, sheet, seen = table.take(rows).to_pylist(), dict[str, list[Tile]](), dict[str, int]()
    for one, fact, image, mask in zip(chosen, facts, images, masks, strict=True):
        organ = one["organ"]
        if mask.any():
            seen[organ] = seen.get(organ, 0) + 1
        drawn, classes = outlines(mask) if mask.any() and seen[organ] % 2 else ("", [])
        sheet.setdefault(organ, []).append(
            Tile(
                uri=png_uri(image, _TILE_SIDE),
                outline=drawn,
                classes=[(colour_of(k - 1), _class_name(fact["mask_classes"], k)) for k in classes],
                dataset=fact["dataset"],
                label=fact["label"],
                probe=fact["probe"],
                simulated=bool(fact["synthetic"]),
                private=fact["dataset"] in private,
            )
        )
    return sheet


def _class_name(names: list[str] | None, k: int) -> str:
    return names[k] if names and k < len(names) else f"class {k}"


def _run_facts(lake: Lake, cohort: Cohort, run: Run) -> dict[str, Any]:
    """What the template tells of a run. Its own cohort is looked up in the lake, for the rights of its pictures."""
    sql, wanted = str(run.facts.get("cohort_sql", "all")), str(run.facts.get("cohort_hash", ""))
    own = _own(lake, run)
    rights = [] if own is None else own.table(["synthetic", "dataset", "redistribution", "licence"]).to_pylist()
    private = {r["dataset"] for r in rights if r["redistribution"] not in FREE or not is_stated(r["licence"])}
    scored = [_find(lake, score["cohort_sql"] or "all", score["cohort_hash"]) for score in run.scores]
    seen = own is not None and any(pc.any(pc.is_in(s.ids, own.ids.combine_chunks())).as_py() for s in scored if s)
    config = run.config
    shown = ("recipe", "preset", "steps", "batch_size", "lr", "gamma", "by", "seed", "precision")
    return {
        "name": run.name,
        "facts": {"steps done": run.steps_done, **{key: config[key] for key in shown if config.get(key) is not None}},
        "cohort": {"sql": sql, "hash": wanted, "rows": run.facts.get("rows")},
        "other_cohort": wanted != cohort.hash,
        "config_hash": str(run.facts.get("config_hash", "")),
        "code_version": str(run.facts.get("code_version", "unknown")),
        "torch": next((str(r["torch"]) for r in run.of_kind("start") if "torch" in r), "unknown"),
        "settings": sorted(_flat(config)),
        "charts": charts(run),
        "pictures": run.pictures,
        "private": sorted(private) if own is not None else ["data sets that are not in this lake"],
        "stages": STAGES.get(str(config.get("recipe")), ()),
        "scores": run.scores,
        "caveats": caveats(run, sum(bool(r["synthetic"]) for r in rights), len(rights), seen),
        "notes": run.notes,
    }


def _find(lake: Lake, sql: str, wanted: str) -> Cohort | None:
    """The cohort of that condition, if the lake still gives the very samples of that hash."""
    try:
        cohort = Cohort(lake, sql)
    except QueryError:  # of a lake with other columns
        return None
    return cohort if cohort.hash == wanted else None


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", str(value))]
    return found


def _provenance(lake: Lake, cohort: Cohort) -> dict[str, Any]:
    return {
        "usdata": __version__,
        "duckdb": duckdb.__version__,
        "pyarrow": pa.__version__,
        "numpy": np.__version__,
        "format": lake.info["format"],
        "created_by": str(lake.info.get("created_by", "unknown")),
        "interpolation": lake.info["interpolation"],
        "catalog": xxhash.xxh3_128("".join(file_xxh(p) for p in lake.catalog_files()).encode()).hexdigest(),
        "cohort": cohort.hash,
    }


def _commands(lake: Lake, cohort: Cohort, datasets: list[dict[str, Any]], run: Run | None, file_name: str) -> list[str]:
    """What to type for the same page, in the folder that holds the lake."""
    place = ["--lake", lake.root.resolve().name]
    lines = []
    for d in datasets:
        drawn = d["dataset"] == "phantom"  # the one that is made, not read
        source = ["--images", str(d["images"])] if drawn else ["--from", f"PATH/TO/{d['dataset']}"]
        lines.append(["ingest", d["dataset"], *source, *place])
    page = ["report", "-o", file_name, *place]
    if cohort.sql != "all":
        page += ["--cohort", cohort.name or cohort.sql]
    if run is not None:
        sql = str(run.facts.get("cohort_name") or run.facts.get("cohort_sql", "all"))
        config = ["--config", f"{run.name}/config.json"]
        recipe = str(run.config.get("recipe", "d2mae"))
        lines.append(["pretrain", recipe, *config, "--cohort", sql, "--out", f"{run.name}-again", *place])
        for score in run.scores:
            wanted = ["--cohort", score["cohort_sql"] or "all", "--label", score["label"]]
            lines.append(["downstream", "probe", "--encoder", run.name, *wanted, *place])
        page += ["--run", run.name]
    return [command_line("usdata", *line) for line in [*lines, page]]


def command_line(*words: object) -> str:
    """Words as one would type them in a shell: quoted where needed, by double quotes where that reads better."""
    typed = []
    for word in map(str, words):
        quoted = shlex.quote(word)
        plain = not any(sign in word for sign in '"$`\\!\n')
        typed.append(f'"{word}"' if quoted != word and plain else quoted)
    return " ".join(typed)


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["n"] = lambda value: f"{value:,}"
    environment.filters["percent"] = _percent
    environment.filters["words"] = lambda word: str(word).replace("_", " ")
    return environment.from_string(files("usdata").joinpath("report.html.j2").read_text("utf-8"))


def _percent(share: float) -> str:
    """`0.1234` as `12 %`, small ones with a digit more."""
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"
