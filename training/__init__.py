"""From a cohort to weights and scores: recipes, one trainer, probes and downstream tasks. Imports usdata only.

Importing the package imports nothing heavy, but arranges that timm can be imported beside a CPU torch afterwards.
"""

from training._tvcompat import guard_torchvision

guard_torchvision()
