"""From a cohort to weights and scores: recipes, one trainer, probes and downstream tasks. Imports usdata only."""

from training._tvcompat import ensure_torchvision

ensure_torchvision()
