"""The page docs/recipes.md: what each recipe is, and which test holds each check of its paper."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests" / "training"
_CHECK = re.compile(r"^def test_check_(\d+)_(\w+)\(", re.M)

RECIPES = {
    "d2mae": "D²MAE (Kang et al., MICCAI 2025): rebuild the sharp image from a quarter of a blurred one's patches.",
    "usfm": "USFM (Jiao et al., MedIA 2024): fill blocks with the image's mean, cut rings out of its spectrum, and "
    "rebuild the image; L1 and 0.4 × focal frequency loss; BEiT encoder with relative positions.",
    "tusa": "TUSA (Grutman et al., arXiv 2602.01444): four views through a 2-D SwinUNETR, an image made of K learnt "
    "textures; contrast, consistency and likeness of the views.",
    "arl": "ARL (ICLR 2026): a ViT whose blocks look where the organ says (ACDT); masked patches, a discriminator and "
    "self-distillation.",
}
_INTRO = """# Recipes

`usdata pretrain RECIPE --cohort EXPR --preset micro|small|paper --out DIR`. Every key of a recipe, with its default,
its meaning and the mark `ours` where the paper leaves it open, is in [settings](settings.md); the step with the loss
is in `training/recipes/<recipe>.py`. Weights: `encoder.safetensors` (timm's or MONAI's names), `README.md` the model
card, `usdata embed --encoder DIR --cohort EXPR -o FILE.parquet` the features by sample id.

## Collapse

Every `probe_every` steps the log has the effective rank of the features and a kNN score. A rank near 1, or a message
that features collapse, means that all images get the same code: lower the learning rate, look at the terms in
`log.jsonl` (TUSA's contrast then stands still at log(4 B - 1)), and at the pictures of the run.

## Accumulation and ranks

D²MAE and USFM give the gradient of the whole batch however it is cut. TUSA's contrast and channel usage gather over
ranks but see only a micro-batch under `accumulate`; ARL's adaptive λ is one number per micro-batch. For these two a cut
batch is another (smaller) batch.
"""


def page() -> str:
    """The text of the page, from the names of the tests."""
    out = [_INTRO]
    for name, about in RECIPES.items():
        file = TESTS / f"test_{name}_checks.py"
        checks = sorted((int(n), words) for n, words in _CHECK.findall(file.read_text("utf-8")))
        out += [
            f"\n## {name}\n",
            f"{about}\n",
            "| check | test in `tests/training/" + file.name + "` |",
            "| --- | --- |",
        ]
        out += [f"| {number} | {words.replace('_', ' ')} |" for number, words in checks]
    return "\n".join(out) + "\n"
