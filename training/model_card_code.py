"""The lines of Python that a model card prints: from a picture to features, with this package and without it.

What is printed computes what `encode` does, to 1e-5: a test runs it as it stands.
"""

import json
import math
from collections.abc import Mapping

STORED = 256  # pixels per side of a stored image

_TIMM = """\
import json

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import safe_open

with safe_open("encoder.safetensors", framework="pt") as file:
    facts = file.metadata()
arguments = json.loads(facts["model_args"])
model = timm.create_model(facts["model_name"], **arguments, checkpoint_path="encoder.safetensors").eval()
"""
_MONAI = """\
import json

import numpy as np
import torch
from monai.networks.nets import SwinUNETR
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

with safe_open("encoder.safetensors", framework="pt") as file:
    facts = file.metadata()
model = SwinUNETR(**json.loads(facts["arch_args"])).swinViT.eval()
model.load_state_dict(load_file("encoder.safetensors"))
"""
_PARTS = {"cls": "tokens[:, 0]", "mean": "tokens[:, 1:].mean(1)"}
_LATENTS = {
    "gap": "maps[-1].mean((2, 3))",
    "gap_max": "torch.cat([maps[-1].mean((2, 3)), maps[-1].amax((2, 3))], 1)",
    "multi": "torch.cat([one.mean((2, 3)) for one in maps[1:]], 1)",
}


def own_code(source: int = STORED) -> str:
    """From `image.png` to features with this package; to be run in the weights' folder."""
    return f"""\
import numpy as np
import torch
from PIL import Image
from training.checkpoint import load_encoder

encoder = load_encoder(".")
{_stored(source)}
images = torch.from_numpy(np.array(image))[None, None]  # uint8 (1, 1, {source}, {source})
with torch.inference_mode():
    features = encoder.encode(images)  # float32 (1, D)
"""


def foreign_code(facts: Mapping[str, str], source: int = STORED) -> str:
    """The same by timm or MONAI alone; "" where neither has such a network.

    Args:
        facts: metadata of encoder.safetensors.
        source: pixels per side of a stored image.
    """
    if facts.get("model_name", "null") not in ("", "null"):
        start, pooled = _TIMM, _timm_features(facts.get("pool", ""))
    elif facts.get("arch") == "monai.networks.nets.SwinUNETR" and facts.get("latent") in _LATENTS:
        start, pooled = _MONAI, f"    maps = model((x - mean) / std)\n    features = {_LATENTS[facts['latent']]}\n"
    else:
        return ""
    view = _view(json.loads(facts["input_size"])[-1], float(facts["crop_pct"]), source)
    if not view:
        return ""
    return f"""\
{start}
{_stored(source)}
{view}
x = torch.from_numpy(np.array(image)).clamp(0, 255)[None, None] / 255
mean, std = (torch.tensor(json.loads(facts[name])).view(-1, 1, 1) for name in ("mean", "std"))
with torch.inference_mode():
{pooled}"""


def _stored(source: int) -> str:
    size = f"({source}, {source})"
    return f'image = Image.open("image.png").convert("L").resize({size}, Image.BILINEAR)  # grey, as the lake stores it'


def _timm_features(pool: str) -> str:
    if not pool:
        return "    features = model((x - mean) / std)  # the mean over the patches, (1, D)\n"
    parts = [_PARTS[name] for name in pool.split("+")]
    joined = parts[0] if len(parts) == 1 else f"torch.cat([{', '.join(parts)}], 1)"
    return f"    tokens = model.forward_features((x - mean) / std)\n    features = {joined}\n"


def _view(size: int, share: float, source: int) -> str:
    """Cut out the central `share` and resize it to `size`, with the pixels around it in sight of the filter."""
    if share == 1.0:
        return f'image = image.convert("F").resize(({size}, {size}), Image.BICUBIC)'
    side = source * share
    start, scale = (source - side) / 2, side / size
    if scale == 1 and start == int(start):
        first, last = int(start), int(start + side)
        return f'image = image.convert("F").crop(({first}, {first}, {last}, {last}))'
    rim = math.ceil(2 * max(1.0, 1 / scale))  # half the filter, in pixels of the result
    low, high = start - rim * scale, start + side + rim * scale
    if low < 0:
        return ""
    whole, box = size + 2 * rim, (low, low, high, high)
    cut = (rim, rim, rim + size, rim + size)
    return f'image = image.convert("F").resize(({whole}, {whole}), Image.BICUBIC, box={box}).crop({cut})'
