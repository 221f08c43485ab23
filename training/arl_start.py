"""The weights that an ARL run starts from: a plain ViT's, or an earlier ARL encoder's, whatever its organs were."""

import json
from collections.abc import Sequence

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from training.organ_condition import pack_names, remap_classes
from usdata.errors import ConfigError

_LIST = "class_names"


def start_weights(path: str, classes: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file to start from.

    The encoder.safetensors of another ARL run names its organs: their columns follow their names into the new list, and
    a class that it does not know starts as the null class. By place alone one organ would be taken for another.

    Args:
        path: a plain ViT's weights, or the encoder.safetensors of an ARL run.
        classes: the organs of the run that starts.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        state = load_file(path)
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
        known = json.loads(facts.get("classes", "[]"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"Cannot read the weights to start from, {path}: {error}") from error
    if not known or tuple(known) == tuple(classes):
        return state
    moved = remap_classes({**state, _LIST: pack_names(known)}, classes)
    return {name: value for name, value in moved.items() if name != _LIST}
