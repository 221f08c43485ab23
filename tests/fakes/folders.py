"""A user's own data: folders of small PNGs in class subfolders, a CSV of labels, and the card that reads them."""

import hashlib
from pathlib import Path

import cv2
import numpy as np

CARD = """
name: mine
title: A user's own images
citation: none
licence: CC0-1.0
commercial_use: "yes"
redistribution: "yes"
deid_profile: public
defaults: {organ: thyroid, probe: linear}
layout:
  image: 'images/(?P<label>benign|malignant)/(?P<stem>[^/]+)\\.(?:png|jpg)'
  mask: 'masks/(?P<stem>[^/]+)\\.png'
tables:
  - {file: 'labels\\.csv', key: file, match: name, every_item: true, columns: {patient: patient, targets.size_mm: size}}
labels: {label: [benign, malignant]}
target: size_mm
masks: {kind: binary, classes: [background, nodule]}
"""

ORGANS = ("breast", "heart", "lung", "thyroid")
ORGANS_CARD = """
name: NAME
title: A user's own images of several organs
citation: none
licence: CC0-1.0
commercial_use: "yes"
redistribution: "yes"
deid_profile: public
layout:
  image: 'images/(?P<organ>[a-z]+)/(?P<stem>[^/]+)\\.png'
"""


def write_image(path: Path, seed: int, side: int = 48) -> None:
    """A grey speckle image of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).rayleigh(50, (side, side + 16)).clip(0, 255).astype(np.uint8)
    assert cv2.imwrite(str(path), pixels)


def write_folder(root: Path, images: int = 8) -> Path:
    """`images` PNGs with masks in two class folders, two of each patient, and labels.csv; mine.yaml beside."""
    lines = ["file,patient,size"]
    for i in range(images):
        label = ("benign", "malignant")[i % 2]
        write_image(root / "images" / label / f"n{i:03d}.png", seed=i)
        mask = np.zeros((48, 64), np.uint8)
        mask[10:20, 10 : 20 + i % 8] = 255
        (root / "masks").mkdir(exist_ok=True)
        assert cv2.imwrite(str(root / "masks" / f"n{i:03d}.png"), mask)
        lines.append(f"n{i:03d}.png,p{i // 2},{5 + i / 10}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    (root.parent / "mine.yaml").write_text(CARD)
    return root


def write_organs(root: Path, images: int, seed: int = 0, name: str = "mine") -> Path:
    """`images` PNGs in folders of four organs, so that an ingest builds four shards; <name>.yaml beside."""
    for i in range(images):
        write_image(root / "images" / ORGANS[i % len(ORGANS)] / f"n{i:03d}.png", seed=1000 * seed + i)
    (root.parent / f"{name}.yaml").write_text(ORGANS_CARD.replace("NAME", name))
    return root


def tree_digest(root: Path) -> dict[str, str]:
    """Hash of every file below `root`, but for what is no part of the data: duckdb's views and the locks."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix not in (".duckdb", ".lock")
    }
