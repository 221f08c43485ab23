"""Pretrain a tiny D2MAE, load its encoder with timm, score it. Run: python examples/03_pretrain_and_score.py"""

import json
import tempfile
from pathlib import Path

import timm
from safetensors import safe_open

from ingest.card import get_card
from ingest.run import ingest
from training.config import resolve
from training.downstream.classify import probe_cohort, rows_of
from training.train import pretrain
from usdata import Lake


def main() -> None:
    """The whole example."""
    folder = Path(tempfile.mkdtemp())
    lake = Lake.create(folder / "lake")
    ingest(get_card("phantom"), None, lake, count=160, workers=2)

    result = pretrain(lake.cohort("all"), resolve("d2mae", "micro", None, ["steps=40"]), folder / "run")
    print(f"{result.step} steps, loss {result.last['loss']:.3f}")

    weights = folder / "run" / "encoder.safetensors"
    with safe_open(weights, "pt") as file:
        facts = file.metadata()
    encoder = timm.create_model(facts["model_name"], **json.loads(facts["model_args"]), checkpoint_path=str(weights))
    print(type(encoder).__name__, sum(p.numel() for p in encoder.parameters()))

    for row in rows_of(probe_cohort(lake.cohort("organ = 'breast'"), folder / "run", label="label")):
        print(row)


if __name__ == "__main__":  # worker processes import this file anew
    main()
