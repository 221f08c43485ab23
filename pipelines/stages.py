"""The stages of dvc.yaml, from params.yaml: `python -m pipelines.stages STAGE`.

`lake`, `ingest NAME`, `private NAME`, `dedup`, `pretrain`, `downstream`: each is the verb of the same name with its
settings out of params.yaml, which says more than a shell line can: keys that are absent, lists. No Prefect here, so a
stage starts quickly.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from usdata.cli import run_app
from usdata.errors import ConfigError, LakeError, nearest
from usdata.files import read_json, write_json
from usdata.lake import Lake

if TYPE_CHECKING:
    from training.config import RunConfig
    from usdata.cohort import Cohort

PARAMS = Path("params.yaml")
INPUTS = Path("inputs")  # lists of private files, by `usdata deid-inputs`
METRICS = Path("scores.json")
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetParams(_Model):
    """One data set: its card, what its images are made from, and for a generated one how many."""

    card: Path
    source: Path
    images: int | None = None
    accept_terms: bool = False  # whether you accept the data set's terms of use


class PrivateParams(_Model):
    """One private data set, as the options of `usdata ingest private`. Its folder and the key: by the environment."""

    organ: str | None = None
    issuer: str | None = None
    templates: Path | None = None


class DedupParams(_Model):
    """The search for duplicates, as the options of `usdata dedup`."""

    threshold: float = 0.995
    recut: bool = True


class SplitParams(_Model):
    """The split, as the options of `usdata split`."""

    ratios: str | None = None
    folds: int | None = None
    seed: str | None = None
    official: Literal["keep", "ignore"] | None = None
    balanced: bool | None = None
    leaks: Literal["refuse", "drop", "keep"] = "refuse"
    anew: bool = False


class PretrainParams(_Model):
    """A pretraining run, as the options of `usdata pretrain`."""

    recipe: str
    preset: str | None = None
    cohort: str = "all"
    out: Path
    sets: tuple[str, ...] = ()


class DownstreamParams(_Model):
    """A probe, as the options of `usdata downstream probe`."""

    cohort: str = "all"
    label: str | None = None
    seed: int = 0
    split: bool = False


class Params(_Model):
    """All of params.yaml."""

    lake: Path
    interpolation: str = "bilinear-aa"
    datasets: dict[str, DatasetParams]
    private: dict[str, PrivateParams] = {}
    dedup: DedupParams = DedupParams()
    split: SplitParams = SplitParams()
    pretrain: PretrainParams
    downstream: DownstreamParams = DownstreamParams()


def read_params(path: Path = PARAMS) -> Params:
    """The checked content of params.yaml.

    Raises:
        ConfigError: missing, not YAML, an unknown key (with the nearest), or a wrong value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Params.model_validate(content)
    except OSError as error:
        raise ConfigError(f"Can't read {path}: {error.strerror}.", hint="Run it in the project's folder.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(map(_explain, error.errors(include_url=False)))}.") from error


def _explain(problem: Any) -> str:
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] != "extra_forbidden":
        return f"{place}: {problem['msg']}"
    models = (Params, DatasetParams, PrivateParams, DedupParams, SplitParams, PretrainParams, DownstreamParams)
    return f"{place}: unknown key.{nearest(str(problem['loc'][-1]), {k for m in models for k in m.model_fields})}"


@app.command()
def lake() -> None:
    """Make the lake, or see that it is one of the same interpolation."""
    params = read_params()
    Lake.create(params.lake, params.interpolation)


@app.command()
def ingest(name: str) -> None:
    """Bring one data set into the lake, as `usdata ingest`."""
    from ingest.card import load_card
    from ingest.cli import ingest as verb

    params = read_params()
    if name not in params.datasets:
        raise ConfigError(f"{PARAMS} lists no data set {name!r}.{nearest(name, params.datasets)}")
    chosen = params.datasets[name]
    card = load_card(chosen.card)
    if card.name != name:
        raise ConfigError(
            f"The card {chosen.card} is of {card.name!r}, not {name!r}.",
            step="ingest",
            hint=f"Use the card's name as the key in {PARAMS}.",
        )
    verb(
        dataset=None,
        source=None if card.generator else chosen.source,
        card=chosen.card,
        lake=str(params.lake),
        workers=None,
        images=chosen.images,
        interpolation=None,
        accept_terms=[name] if chosen.accept_terms else None,
        dry_run=False,
        json=False,
    )


@app.command()
def private(name: str) -> None:
    """Bring one private data set into the lake, as `usdata ingest private`, if its files are those of its list.

    No path of a private file is in params.yaml, dvc.yaml or DVC's files: $USDATA_PRIVATE_DIR/NAME holds the files, and
    $USDATA_DEID_KEY_FILE names the key.
    """
    from ingest.cli import cores
    from ingest.deid.inputs import check_inputs, find_source
    from ingest.deid.private import private_card, rules_of
    from ingest.progress import show, tell
    from ingest.run import ingest as run

    params = read_params()
    if name not in params.private:
        raise ConfigError(f"{PARAMS} lists no private data set {name!r}.{nearest(name, params.private)}")
    chosen = params.private[name]
    card = private_card(name, chosen.organ)
    source = find_source(None, name)
    rules = rules_of(card, None, source=source, issuer=chosen.issuer, templates=chosen.templates)
    check_inputs(INPUTS / f"{name}.json", card, source, rules)
    opened = Lake(params.lake)
    with show(name, quiet=False) as progress:
        report = run(card, source, opened, workers=cores(), rules=rules, progress=progress)
    tell(report, opened)
    if not report.counts.samples:
        raise LakeError("Not one image got in.", dataset=name, step="build", hint=f"usdata deid-review --name {name}")


@app.command()
def dedup() -> None:
    """Note which samples are copies or near-copies of each other, as `usdata dedup`."""
    from usdata.cli import dedup as verb

    params = read_params()
    verb(
        cohort="all",
        threshold=params.dedup.threshold,
        recut=params.dedup.recut,
        sheet=None,
        pairs=None,
        dry_run=False,
        workers=None,
        lake=str(params.lake),
        json=False,
    )


@app.command()
def split() -> None:
    """Place what has no split yet, as `usdata split`; what has one stays."""
    from usdata.split import asked_for, make_split
    from usdata.split_tell import tell_split

    params = read_params()
    chosen = params.split
    changes = asked_for(chosen.ratios, chosen.folds, chosen.seed, chosen.official, chosen.balanced)
    made = make_split(Lake(params.lake), changes, on_leaks=chosen.leaks, anew=chosen.anew)
    tell_split(made, as_json=False)


@app.command()
def pretrain() -> None:
    """Train the encoder, as `usdata pretrain`; a run that was interrupted goes on, any other is replaced."""
    from training.cli import pretrain as verb
    from training.config import resolve

    params = read_params()
    chosen = params.pretrain
    cfg = resolve(chosen.recipe, chosen.preset, None, chosen.sets)
    resume = interrupted(chosen.out, cfg, Lake(params.lake).cohort(chosen.cohort))
    if not resume and (chosen.out / "config.json").is_file():  # only a folder that is a run's
        shutil.rmtree(chosen.out)
    verb(
        recipe=chosen.recipe,
        cohort=chosen.cohort,
        out=chosen.out,
        preset=chosen.preset,
        config=None,
        set_=list(chosen.sets),
        lake=str(params.lake),
        resume=resume,
        max_hours=None,
        json=False,
    )


def interrupted(out: Path, cfg: "RunConfig", cohort: "Cohort") -> bool:
    """Whether `out` holds the beginning of just this run: same settings, images and code, and steps left to do."""
    from training import checkpoint

    facts, state = out / "config.json", out / "checkpoint" / "last.pt"
    if not (facts.is_file() and state.is_file()):
        return False
    then, now = read_json(facts), {"config_hash": cfg.hash, "cohort_hash": cohort.hash}
    if {key: then.get(key) for key in now} != now or then.get("code_version") != checkpoint.code_version():
        return False
    return bool(checkpoint.load_state(state)["step"] < cfg.steps)


@app.command()
def downstream() -> None:
    """Score the encoder, as `usdata downstream probe`, and write the numbers alone to scores.json for `dvc metrics`."""
    from training.cli import probe as verb

    params = read_params()
    chosen, encoder = params.downstream, params.pretrain.out
    full = encoder.with_name(f"{encoder.name}-scores.json")
    verb(
        encoder=encoder,
        cohort=chosen.cohort,
        label=chosen.label,
        out=full,
        seed=chosen.seed,
        split=chosen.split,
        lake=str(params.lake),
        json=False,
    )
    write_json(METRICS, flat_scores(read_json(full)))


def flat_scores(scores: dict[str, Any]) -> dict[str, Any]:
    """What `dvc metrics show` can show: encoder -> method -> metric -> value."""
    flat: dict[str, Any] = {}
    for line in scores["scores"]:
        named = {name: found["value"] for name, found in line.items() if isinstance(found, dict)}
        flat.setdefault(line["encoder"], {})[line["method"]] = named
    return flat


def main() -> None:
    """Entry point of `python -m pipelines.stages`."""
    run_app(app)


if __name__ == "__main__":
    main()
