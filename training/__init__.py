"""From a cohort to weights and scores: recipes, one trainer, probes and downstream tasks. Imports usdata only.

Importing the package imports nothing; `training.models` makes timm safe to import before it does.
"""
