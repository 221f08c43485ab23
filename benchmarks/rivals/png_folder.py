"""A folder of PNG files behind torch's DataLoader.

The data set gives whole batches (`BatchSampler`, `batch_size=None`), which spares it the loader's collating of samples.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from rivals.contender import Contender, Source


class _Folder(Dataset[Tensor]):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: list[int]) -> Tensor:
        images = [cv2.imread(self.paths[row], cv2.IMREAD_GRAYSCALE) for row in rows]
        return torch.from_numpy(np.stack(images))


def _batches(source: Source, folder: Path, batch: int, workers: int) -> Iterator[Tensor]:
    data = _Folder(source.pngs())
    sampler = BatchSampler(RandomSampler(data), batch, drop_last=True)
    loader = DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader


CONTENDERS = (Contender("PNG folder, cv2.imread", _batches, stored="png"),)
