"""README.md beside the weights: what they were trained on, what its terms mean for them, and how to load them.

In Hugging Face's format: a YAML head that its hub reads, then text. The card is made from the files beside it alone
(config.json, the weights' metadata, log.jsonl, scores*.json), so it can be made again whenever one of them changes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from training.checkpoint import facts_of
from training.runlog import read
from usdata.errors import UsdataError
from usdata.files import explain_os_errors, read_json, replacing
from usdata.rights import Rights, is_stated

#: Names of licences on the hub; anything else is "other"
HUB_LICENCES: Mapping[str, str] = {
    name.lower(): name.lower()
    for name in ("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0")
} | {"cc-by-nc-3.0": "cc-by-nc-3.0", "apache-2.0": "apache-2.0", "mit": "mit"}

#: Words of `redistribution`, strictest first
STRICTEST = ("no", "unknown", "unmodified", "share_alike", "attribution", "yes")
_PASSING_ON = {
    "no": "at least one set forbids passing its images on",
    "unknown": "at least one set does not say whether its images may be passed on",
    "unmodified": "at least one set may be passed on only unchanged",
    "share_alike": "at least one set may be passed on only under its own licence",
    "attribution": "the sets may be passed on if their makers are named",
    "yes": "the sets may be passed on freely",
}
_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "macro_auroc": "roc_auc"}  # ours -> the hub's


def refresh(out: Path | str) -> Path:
    """Write OUT/README.md anew from what stands beside it.

    Raises:
        UsdataError: no weights there, or damaged ones.
        LakeError: `out` can't be written, or config.json or scores are damaged.
    """
    path = Path(out) / "README.md"
    text = card(Path(out))
    with explain_os_errors(path, step="model card"), replacing(path) as file:
        file.write(text.encode())
    return path


def card(out: Path) -> str:
    """The card's text; the same files give the same text.

    Raises:
        UsdataError, LakeError: see `refresh`.
    """
    facts = facts_of(out)
    if not (out / "config.json").is_file():
        raise UsdataError(f"{out} has weights but no config.json: nothing to write a card from.", step="model card")
    run = read_json(out / "config.json")
    rights = [Rights(**terms) for terms in run.get("datasets", [])]
    scores = {path.name: read_json(path) for path in sorted(out.glob("scores*.json"))}
    parts = [
        _head(run, rights, scores),
        _title(run, facts),
        _loading(run["config"]["recipe"], _timm(out)),
        _data(run, rights),
        _terms(rights),
        _training(run, facts, out),
        _scores(scores),
        _limits(),
    ]
    return "\n".join(part for part in parts if part)


def strictest(rights: Sequence[Rights]) -> dict[str, str]:
    """The terms that all images together leave: {"commercial_use": yes | no | unknown, "redistribution": a word}.

    What nobody states is "unknown", which is stricter than any permission.
    """
    if not rights:
        return {"commercial_use": "unknown", "redistribution": "unknown"}
    stated = [one if is_stated(one.licence) else None for one in rights]
    uses = [one.commercial_use if one else "unknown" for one in stated]
    use = "no" if "no" in [one.commercial_use for one in rights] else "yes" if set(uses) == {"yes"} else "unknown"
    words = [one.redistribution for one in rights] + ["unknown" for one in stated if one is None]
    ranks = [STRICTEST.index(word) if word in STRICTEST else STRICTEST.index("unknown") for word in words]
    return {"commercial_use": use, "redistribution": STRICTEST[min(ranks)]}


def hub_licence(rights: Sequence[Rights]) -> str:
    """The hub's name of the images' licence, if it is the same for all; else "other"."""
    names = {one.licence.lower() for one in rights}
    return HUB_LICENCES.get(names.pop(), "other") if len(names) == 1 else "other"


def _timm(out: Path) -> bool:
    """Whether timm loads the exported encoder."""
    from safetensors import safe_open

    path = out / "encoder.safetensors"
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("model_name", "null") not in ("null", "")


def _head(run: dict[str, Any], rights: Sequence[Rights], scores: Mapping[str, Any]) -> str:
    recipe, licence = run["config"]["recipe"], hub_licence(rights)
    head: dict[str, Any] = {
        "license": licence,
        "library_name": "usdata",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["ultrasound", "medical-imaging", "self-supervised", recipe],
        "datasets": sorted({one.dataset for one in rights}),
    }
    if licence == "other":
        head["license_name"] = "terms-of-the-training-images"
        head["license_link"] = "README.md#terms"
    results = [result for found in scores.values() for result in _results(found)]
    if results:
        head["model-index"] = [{"name": recipe, "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def _results(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The trained encoder's numbers in the hub's form; [] for scores of another kind."""
    lines = [line for line in found.get("scores", []) if line.get("encoder") == "trained"]
    return [
        {
            "task": {"type": "image-classification", "name": f"{found.get('label')}, {line.get('method')}"},
            "dataset": {"type": "usdata", "name": found.get("cohort", {}).get("sql", "unknown")},
            "metrics": [
                {"type": hub, "value": round(line[ours]["value"], 4)}
                for ours, hub in _METRICS.items()
                if line.get(ours, {}).get("value") is not None
            ],
        }
        for line in lines
    ]


def _title(run: dict[str, Any], facts: Mapping[str, str]) -> str:
    config = run["config"]
    return (
        f"# {config['recipe']} ({config['preset']}) for ultrasound\n\n"
        f"An encoder of ultrasound images, pretrained without labels by the recipe `{config['recipe']}`: "
        f"{int(facts.get('steps', '0')):,} of {config['steps']:,} steps on {run['rows']:,} images of "
        f"{len(run.get('datasets', []))} data sets.\n"
    )


def _loading(recipe: str, timm: bool) -> str:
    text = (
        "## Use\n\n```python\nfrom training.checkpoint import load_encoder\n\n"
        'encoder = load_encoder("DIR")  # this folder\n'
        "features = encoder.encode(images)  # uint8 (B, 1, 256, 256) -> float32 (B, D)\n```\n"
    )
    if not timm:
        return text
    return (
        text + "\nOr with timm alone, without this package:\n\n```python\nimport json\n\nimport timm\n"
        "from safetensors import safe_open\n\n"
        'with safe_open("DIR/encoder.safetensors", framework="pt") as file:\n    facts = file.metadata()\n'
        'model = timm.create_model(facts["model_name"], **json.loads(facts["model_args"]), '
        'checkpoint_path="DIR/encoder.safetensors")\n```\n'
        "\n`mean`, `std` and `input_size` in the same metadata say what the model wants to see.\n"
    )


def _data(run: dict[str, Any], rights: Sequence[Rights]) -> str:
    rows = [[r.dataset, f"{r.images:,}", r.licence, r.commercial_use, r.redistribution] for r in rights]
    name = f" (saved as `{run['cohort_name']}`)" if run.get("cohort_name") else ""
    return (
        f"## Training data\n\nThe cohort{name} of {run['rows']:,} images that\n\n```sql\n{run['cohort_sql']}\n```\n\n"
        f"selects; hash of its sample ids: `{run['cohort_hash']}`.\n\n"
        + _table(["data set", "images", "licence", "commercial use", "passing on"], rows)
    )


def _terms(rights: Sequence[Rights]) -> str:
    if not rights:
        return "## Terms\n\nThe terms of the training images were not recorded: take none for granted.\n"
    found = strictest(rights)
    silent = sorted({one.dataset for one in rights if not is_stated(one.licence)})
    uses = {
        "yes": "allowed by every set",
        "no": "**forbidden** by " + ", ".join(sorted({r.dataset for r in rights if r.commercial_use == "no"})),
        "unknown": "not known to be allowed: at least one set does not say",
    }
    lines = [
        f"- commercial use: {uses[found['commercial_use']]}",
        f"- passing on: {_PASSING_ON[found['redistribution']]}",
        *([f"- without a stated licence: {', '.join(silent)}"] if silent else []),
    ]
    return (
        "## Terms\n\nThe strictest terms of the images, as their cards state them, taken together:\n\n"
        + "\n".join(lines)
        + "\n\nWhether they bind weights that were trained on the images is for a lawyer to say. Who takes them to do "
        "so is on the safe side. What a set does not state is not taken as allowed.\n"
    )


def _training(run: dict[str, Any], facts: Mapping[str, str], out: Path) -> str:
    log = out / "log.jsonl"
    last = {kind: read(log, kind)[-1:] if log.is_file() else [] for kind in ("step", "probe")}
    drop = ("kind", "images_per_s", "data_wait")
    rows = [
        [name, f"{value:.5g}" if isinstance(value, float) else str(value)]
        for records in last.values()
        for record in records
        for name, value in record.items()
        if name not in drop
    ]
    settings = yaml.safe_dump(run["config"], sort_keys=False, allow_unicode=True)
    return (
        f"## Training\n\nusdata {facts.get('code_version', 'unknown')}; hash of the settings: `{run['config_hash']}`. "
        "Again: `usdata pretrain` with `--config config.json` and the cohort above.\n\n"
        f"<details><summary>All settings</summary>\n\n```yaml\n{settings}```\n\n</details>\n\n"
        + ("The last step and probe:\n\n" + _table(["", "value"], rows) if rows else "")
    )


def _scores(scores: Mapping[str, Any]) -> str:
    """Tables of whatever has values with intervals."""
    parts = []
    for name, found in scores.items():
        lines = [line for line in found.get("scores", []) if isinstance(line, dict)]
        measures = list(dict.fromkeys(key for line in lines for key, v in line.items() if isinstance(v, dict)))
        words = list(dict.fromkeys(key for line in lines for key, v in line.items() if not isinstance(v, dict)))
        if not measures:
            continue
        rows = [[*(str(line.get(w, "")) for w in words), *(_interval(line.get(m)) for m in measures)] for line in lines]
        cohort = found.get("cohort", {}).get("sql", "")
        parts.append(
            f"`{name}`: {found.get('label') or 'score'} on `{' '.join(cohort.split())}`, with 95 % intervals over "
            f"patients.\n\n{_table([*words, *measures], rows)}"
        )
    return "## Scores\n\n" + "\n".join(parts) if parts else "## Scores\n\nNone yet: `usdata downstream probe`.\n"


def _limits() -> str:
    return (
        "## Limits\n\nFor research. Not a medical device, not tested for any diagnosis. Images of other machines, "
        "organs or patients than those above may be encoded badly without any sign of it.\n"
    )


def _interval(value: Any) -> str:
    if not isinstance(value, dict) or value.get("value") is None:
        return ""
    low, high = value.get("low"), value.get("high")
    return f"{value['value']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [names, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(names), *lines[1:]]) + "\n"
