"""What the steps measured, kept on the device until it is looked at, so that no step waits for it."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.data import Feed
from training.distributed import World


@dataclass
class Measured:
    """What one step measured, and where the data stood before it."""

    step: int
    epoch: int
    rates: dict[str, float]  # learning rates and, if it changes, weight decay
    names: list[str]  # of the values
    values: Tensor  # (k,) float32, on the device: gradient norms, then the terms
    data: dict[str, Any]


@dataclass
class Reading:
    """A step's numbers, fetched, and the speed of the stretch it was in."""

    measured: Measured
    values: dict[str, float]
    speed: dict[str, float]

    @property
    def wrong(self) -> dict[str, float]:
        """The numbers that are not finite: of the raw terms; else of the losses, their sums; else of the gradients."""
        found = {name: value for name, value in self.values.items() if not finite(value)}
        depth = {name: {"loss": 1, "grad_norm": 2}.get(name.split("/")[0], 0) for name in found}
        return {name: value for name, value in found.items() if depth[name] == min(depth.values())}

    def record(self) -> dict[str, Any]:
        """As the log has it."""
        one = self.measured
        return {"step": one.step, "epoch": one.epoch, **one.rates, **self.values, **self.speed}


class Meter:
    """Collects what steps measure, and the time between looks at it."""

    def __init__(self, peers: World, batch_size: int, feed: Feed) -> None:
        self.peers, self.batch_size, self.feed = peers, batch_size, feed
        self.pending: list[Measured] = []
        self.restart()

    def restart(self) -> None:
        """Count time and waiting from now on: what lay between was no training."""
        self.since, self.feed.waited = time.perf_counter(), 0.0

    def fetch(self) -> list[Reading]:
        """The steps since the last look, means over the ranks; waits for the device.

        The speed is that of the whole stretch: "images_per_s" over all ranks, and "data_wait", the share of the time
        that was spent waiting for the loader.
        """
        if not self.pending:
            return []
        pending, self.pending = self.pending, []
        numbers = self.peers.mean(torch.cat([one.values for one in pending])).cpu().tolist()
        seconds = max(time.perf_counter() - self.since, 1e-9)
        speed = {
            "images_per_s": self.batch_size * len(pending) / seconds,
            "data_wait": self.feed.waited / seconds,
        }
        readings, at = list[Reading](), 0
        for one in pending:
            values = dict(zip(one.names, numbers[at : at + len(one.names)], strict=True))
            readings.append(Reading(one, values, speed))
            at += len(one.names)
        self.restart()
        return readings


def finite(value: float) -> bool:
    """Neither NaN nor infinite."""
    return value - value == 0.0
