"""Values that change from step to step, as pure functions of the step: nothing to save, nothing to restore."""

import math


def warmup_cosine(step: int, *, steps: int, warmup_steps: int, peak: float, end: float = 0.0) -> float:
    """Linear rise from 0 to `peak`, then half a cosine down to `end`.

    Args:
        step: how many steps are done, 0 for the first update (whose rate is 0 if there is a warm-up).
        steps: length of the run; `end` is reached at `step == steps` and kept.
        warmup_steps: steps of the rise; 0 starts at `peak`.
        peak: highest value, dimensionless (a learning rate or a weight decay).
        end: last value.

    Source: MAE's `lr_sched.py`, with steps in the place of fractional epochs.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * done))


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at `step == steps`, kept from there; it may rise or fall.

    Source: DINO's `cosine_scheduler` (weight decay 0.04 to 0.4, momentum 0.996 to 1), with steps for iterations.
    """
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, steps))))
