"""The page docs/learns.md, out of docs/learns.json."""

from collections.abc import Mapping
from typing import Any

NAMES = {"d2mae": "D²MAE", "usfm": "USFM", "tusa": "TUSA", "arl": "ARL", "arl-null": "ARL, never told the organ"}
METRIC, TITLE = "macro_f1", "macro F1"

_HEAD = """<!-- Written by `python benchmarks/learns.py --page` out of docs/learns.json. Do not edit. -->

# It learns

A network that has learnt nothing is not worth nothing: a linear probe reads a good deal off random features. So every
recipe is compared with **its own beginning**: the same network, with the very weights that its training started from.

![Linear probes before and after pretraining](images/learns.png)
"""

_HOW = """## How this was measured

{pre_images:,} simulated images of {pre_patients} patients for pretraining, {images:,} of {patients} others for the
probes: no image or patient of the probes was seen in pretraining. Preset `micro` of each recipe, its defaults but for
the number of steps and what the table of runs names; runs of each recipe: {seeds}. A linear probe (logistic
regression, its penalty chosen inside the training folds) and kNN (k = 5) on frozen features, {folds} folds that part
no patient and no near-copies. Before and after are tested on the same folds and images. Intervals are 95 %, of
{resamples:,} resamples that draw patients and seeds, the same for both sides: the interval of the difference is
paired. {seed_note}

Four targets were tried, and all four are here: the organ; the organ with a tenth of the training patients' labels, as
the full number leaves random features little to miss; and two where one organ's images differ by a lesion.
{left_out}

**ARL is told the organ while it trains**, as its paper has it. For the probes the label is withheld (`mode="null"`,
what `encode` does when it is given no organ), or the probe would only read back what was put in. A trace of it can be
left all the same: the student, who is not always told, learns to agree with a teacher who is. `--recipes arl-null`
(`condition=null`) trains without labels; on the breast and the thyroid the organ's label says nothing in any case.
"""

_TRIED = """## What was tried before

- TUSA's preset had a learning rate of 1e-3. With it the contrast stayed at its start (3.4 of log 31 = 3.43) for 120 of
  200 steps, the effective rank of the features fell from 85 to 7, and the probe was no better than before on the organ
  (macro F1 0.86 → 0.80, seed 0; breast 0.30 → 0.40). With 3e-4, now the preset's, the contrast falls after 50 steps,
  the rank stays at 50, and the rows above came out.
- TUSA's third of five textures starts with weight 0 and has hardly moved (0.003): it stands for mid-grey, and its
  kernel, which is multiplied by that weight, has learnt nothing. In 200 steps no kernel has become more than a point.
- ARL's offsets are learnt at a tenth of the rate: after a few hundred steps another organ's label moves the points by
  0.05 pixels. That they are not 0 is all that the picture shows.
{arl}
"""
_ARL = """- **ARL did not gain here**, and why was looked into (runs of 50 to 700 steps, seed 0). Its distillation
  collapses within 80 steps: the loss goes to log 64 = 4.16, all outputs even, at learning rates of 1e-3 and 2e-4, with
  the pixel error summed or averaged. The teacher (momentum 0.996) then still is the untrained network, and too even.
  The rank falls from 12 to 4 with the pixel error alone too: it stands on a plateau (5.9), the mean grey of a hidden
  patch. USFM leaves such a plateau after some 400 steps of 32 images; ARL's 600 steps of 16 end before that, and the
  discriminator, weighted to pull as hard as the pixels, keeps it there. With 32 images, `teacher_momentum=0.98` and
  `adv_start=0.6` the distillation stays alive (1.9) and the plateau is left (5.0 after 450 steps), but the linear probe
  does not gain yet (organ -0.02 [-0.07, 0.03], breast +0.04 [-0.05, 0.11]; kNN on the breast +0.07 [0.01, 0.14]).
  Masked patches alone, 32 at a time, had reached 4.9 after 326 steps. Longer runs were not tried."""

_PICTURES = """## What they do

Networks of a few minutes on a CPU: blurred reconstructions are what to expect of them. Images of patients that no
training saw.

### D²MAE
![D²MAE rebuilds sharp images](images/recipe-d2mae.png)

### USFM
![USFM: masks in space and frequency](images/recipe-usfm.png)

### TUSA
![TUSA: textures](images/recipe-tusa.png)

### ARL
![ARL: where it looks](images/recipe-arl.png)

## Loss curves
![Loss curves](images/loss-curves.png)
"""


def page(results: Mapping[str, Any]) -> str:
    """Markdown of the results."""
    parts = [_HEAD, _verdict(results), _tables(results), _how(results), _runs(results), _tried(results), _PICTURES]
    parts.append(
        f"Measured with usdata {results['usdata']} on {results['machine']}; `make figures` draws the pictures.\n"
    )
    return "\n".join(parts)


def _tried(results: Mapping[str, Any]) -> str:
    """What did not work, the part on ARL as long as it is true."""
    arl = results["scores"].get("arl", {}).values()
    gained = any(found["linear"]["gain"][METRIC]["low"] > 0 for found in arl)
    return _TRIED.format(arl="" if gained else _ARL)


def _verdict(results: Mapping[str, Any]) -> str:
    """One line per recipe: on which targets the linear probe gained beyond the interval, and on which it did not."""
    lines = [f"Linear probe, {TITLE}: on which targets the difference lies above 0 with its whole interval.\n"]
    for name, found in results["scores"].items():
        gains = {target: methods["linear"]["gain"][METRIC] for target, methods in found.items()}
        better = [f"{target} ({_signed(gain)})" for target, gain in gains.items() if gain["low"] > 0]
        worse = [f"{target} ({_signed(gain)})" for target, gain in gains.items() if gain["high"] < 0]
        open_ = [f"{target} ({_signed(gain)})" for target, gain in gains.items() if gain["low"] <= 0 <= gain["high"]]
        said = [f"better on {'; '.join(better)}"] if better else ["better on none"]
        said += [f"no difference beyond the interval on {'; '.join(open_)}"] if open_ else []
        said += [f"**worse** on {'; '.join(worse)}"] if worse else []
        lines.append(f"- **{NAMES[name]}**: {'. '.join(part[0].upper() + part[1:] for part in said)}.")
    return "\n".join(lines) + "\n"


def _signed(gain: Mapping[str, float]) -> str:
    return f"{gain['value']:+.2f}"


def _tables(results: Mapping[str, Any]) -> str:
    out = []
    for target, task in results["tasks"].items():
        classes = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in task["classes"].items())
        labels = round(sum(task["labels"]) / len(task["labels"]))
        out.append(f"## {target[0].upper()}{target[1:]}\n")
        out.append(f"Images: {classes}; {task['groups']} patients; about {labels} labelled images to learn from.\n")
        out.append("| recipe | probe | before | after | difference | each seed | AUROC before | after | difference |")
        out.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for name, found in results["scores"].items():
            out += [_row(NAMES[name], method, found[target][method]) for method in ("linear", "knn")]
        out.append("")
    return "\n".join(out)


def _row(name: str, method: str, found: Mapping[str, Any]) -> str:
    f1 = [_shown(found[kind][METRIC]) for kind in ("random", "trained")]
    auroc = [f"{found[kind]['macro_auroc']['value']:.3f}" for kind in ("random", "trained")]
    gain = found["gain"][METRIC]
    difference = f"**{_shown(gain)}**" if gain["low"] > 0 else _shown(gain)
    seeds = ", ".join(f"{value:+.3f}" for value in found["seeds"][METRIC])
    cells = [name, method, *f1, difference, seeds, *auroc, _shown(found["gain"]["macro_auroc"])]
    return f"| {' | '.join(cells)} |"


def _shown(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _how(results: Mapping[str, Any]) -> str:
    images, runs = results["images"], list(results["runs"].values())
    seeds = sorted({len(run["seeds"]) for run in runs})
    rare = [
        f"Left out of {target!r}, with too few patients to fold: {', '.join(task['left_out'])}.".replace("_", " ")
        for target, task in results["tasks"].items()
        if task["left_out"]
    ]
    note = (
        "With few seeds the spread between runs is only roughly in it, with one not at all; each seed's gain is given."
    )
    return _HOW.format(
        pre_images=images["pretraining"]["images"],
        pre_patients=images["pretraining"]["patients"],
        images=images["probing"]["images"],
        patients=images["probing"]["patients"],
        folds=images["folds"],
        resamples=images["resamples"],
        seeds=" or ".join(str(count) for count in seeds),
        seed_note=note,
        left_out="\n".join(rare),
    )


def _runs(results: Mapping[str, Any]) -> str:
    out = [
        "| run | steps × batch | image | parameters | lr | loss, first → last 10 steps | effective rank before → after "
        "(of) | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, run in results["runs"].items():
        losses = ", ".join(f"{loss['first']:.3g} → {loss['last']:.3g}" for loss in run["loss"])
        rank = run["effective_rank"]
        ranks = ", ".join(f"{a} → {b}" for a, b in zip(rank["random"], rank["trained"], strict=True))
        seconds = ", ".join("?" if value is None else f"{value:.0f}" for value in run["seconds"])
        shape = (
            f"{run['steps']:,} × {run['batch_size']} | {run['image_size']} px | {run['parameters']:,} | {run['lr']:g}"
        )
        beside = "".join(f", `{setting}`" for setting in run.get("settings", ()))
        out.append(f"| {NAMES[name]}{beside} | {shape} | {losses} | {ranks} ({run['features']}) | {seconds} |")
    out.append(
        "\nARL's loss is no measure of progress: its adversarial part is weighted anew in every step. "
        "Seconds are of a machine with other work on it: up to three times too many.\n"
    )
    return "\n".join(out)
