"""README.md beside the weights: what they were trained on, what its terms mean for them, and how to load them.

In Hugging Face's format: a YAML head that its hub reads, then text. The card is made from the files beside it alone
(config.json, the weights' metadata, log.jsonl, scores*.json), so it can be made again whenever one of them changes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from training.checkpoint import encoder_facts, facts_of
from training.model_card_code import foreign_code, own_code
from training.run_folder import explain_disk
from training.runlog import read
from usdata.errors import UsdataError
from usdata.files import read_json, replacing
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
    with explain_disk(path, step="model card"), replacing(path) as file:
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
        _intended(),
        _loading(run, encoder_facts(out) if (out / "encoder.safetensors").is_file() else {}),
        _conditions(facts),
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
    label, told = found.get("label"), _told(found)
    return [
        {
            "task": {"type": "image-classification", "name": f"{label}, {line.get('method')}{told}"},
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
    config, sets = run["config"], len(run.get("datasets", []))
    labels = "with their organs and no other label," if len(_known(facts)) > 1 else "without labels"
    return (
        f"# {config['recipe']} ({config['preset']}) for ultrasound\n\n"
        f"An encoder of ultrasound images, pretrained {labels} by the recipe `{config['recipe']}`: "
        f"{int(facts.get('steps', '0')):,} of {config['steps']:,} steps on {run['rows']:,} images of "
        f"{sets} data set{'' if sets == 1 else 's'}.\n"
    )


def _intended() -> str:
    return (
        "## Intended use\n\nResearch: features of B-mode images to compare, cluster, search or train a small model on, "
        "and weights to fine-tune. No clinical use: no diagnosis, no triage, no decision about a person.\n"
    )


def _known(facts: Mapping[str, str]) -> list[str]:
    """The conditions that the weights can encode under."""
    return [str(one) for one in json.loads(facts.get("conditions", '["null"]'))]


def _loading(run: dict[str, Any], exported: Mapping[str, str]) -> str:
    source = int(run["config"]["recipe_config"].get("source_size", 256))
    text = (
        "## Use\n\nRun in this folder, on a picture of yours that is cut to the scan area:\n\n"
        f"{_python(own_code(source))}"
    )
    if code := foreign_code(exported, source):
        maker = "timm" if "create_model" in code else "MONAI"
        text += f"\nThe same features by {maker} alone, without this package:\n\n{_python(code)}"
    if "create_model" in code:
        text += (
            '\nFor images of another size: `training.checkpoint.timm_encoder(".", image_size=...)` interpolates the '
            "positions.\n"
        )
    return text


def _python(code: str) -> str:
    return f"```python\n{code}```\n"


def _conditions(facts: Mapping[str, str]) -> str:
    """What an encoder that knows organs can be told."""
    known, classes = _known(facts), json.loads(facts.get("classes", "[]"))
    if len(known) < 2:
        return ""
    texts = {
        "null": "nothing; for images whose organ is not known for sure",
        "label": 'the organ: `encode(images, organ="' + str(classes[0] if classes else "heart") + '")`',
        "predict": 'its own guess, from a first pass: `encode(images, mode="predict")`',
        "wrong": "another organ, to measure what a wrong label does",
    }
    return (
        "## What the encoder is told\n\nIt was trained with the organ of each image, and can be told it again. "
        "`usdata embed` and `usdata downstream probe` take `--condition`:\n\n"
        + _table(["condition", "the encoder is told"], [[one, texts[one]] for one in known])
        + f"\nOrgans: {', '.join(classes)}. An image of none of them is told nothing. A score for the organ itself "
        "says little of this encoder: organs were its labels.\n"
    )


def _data(run: dict[str, Any], rights: Sequence[Rights]) -> str:
    rows = [[r.dataset, f"{r.images:,}", r.licence, r.commercial_use, r.redistribution] for r in rights]
    name = f" (saved as `{run['cohort_name']}`)" if run.get("cohort_name") else ""
    chosen = (
        f"that\n\n```sql\n{run['cohort_sql']}\n```\n\nselects" if run["cohort_sql"] != "all" else "of the whole lake"
    )
    return (
        f"## Training data\n\nThe cohort{name} of {run['rows']:,} images {chosen}; hash of its sample ids: "
        f"`{run['cohort_hash']}`.\n\n" + _table(["data set", "images", "licence", "commercial use", "passing on"], rows)
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
        f"Again: `usdata pretrain {run['config']['recipe']} --config config.json --cohort EXPR --out NEW`, with the "
        "cohort above.\n\n"
        f"<details><summary>All settings</summary>\n\n```yaml\n{settings}```\n\n</details>\n\n"
        + ("The last step and probe:\n\n" + _table(["", "value"], rows) if rows else "")
    )


def _told(found: Mapping[str, Any]) -> str:
    """What the encoder was told, if anything: a score that had help says so wherever it stands."""
    condition = found.get("condition", "null")
    return "" if condition == "null" else f" (told the organ: {condition})"


def _scores(scores: Mapping[str, Any]) -> str:
    """Tables of whatever has values with intervals."""
    parts = []
    for name, found in scores.items():
        lines = _lines(found)
        found_here = dict.fromkeys(key for line in lines for key, v in line.items() if isinstance(v, dict))
        measures = sorted(found_here, key=lambda key: [*_METRICS, key].index(key))
        words = list(dict.fromkeys(key for line in lines for key, v in line.items() if not isinstance(v, dict)))
        if not measures:
            continue
        rows = [[*(str(line.get(w, "")) for w in words), *(_interval(line.get(m)) for m in measures)] for line in lines]
        cohort = found.get("cohort", {}).get("sql", "")
        parts.append(
            f"`{name}`: {found.get('label') or 'score'}{_told(found)} on `{' '.join(cohort.split())}`, with 95 % "
            f"intervals over patients.\n\n{_table([*words, *measures], rows)}"
        )
    return "## Scores\n\n" + "\n".join(parts) if parts else "## Scores\n\nNone yet: `usdata downstream probe`.\n"


def _lines(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores, then differences of them."""
    lines = [line for line in found.get("scores", []) if isinstance(line, dict)]
    lines += [{"encoder": "trained - random", **line} for line in found.get("gain", [])]
    for line in found.get("told", []):
        rest = {key: value for key, value in line.items() if key != "condition"}
        lines.append({"encoder": f"{line['condition']} - {found.get('condition', 'null')}", **rest})
    return lines


def _limits() -> str:
    return (
        "## Limits\n\nNot a medical device; not tested for any diagnosis. Images of other machines, organs or patients "
        "than those above may be encoded badly without any sign of it. The sets above are not a sample of all people: "
        "scores differ between groups of patients, and nobody measured how much. Weights can keep "
        "traces of the images that they were trained on.\n"
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
