"""Learning-rate schedules: a factor for each step, a function of the step's number alone, so that a resumed run goes on exactly.

| name | factor at step t of T, with s = t / T |
|---|---|
| ``constant`` | 1 |
| ``cosine`` | (1 + cos πs) / 2 (Loshchilov & Hutter 2017, without restarts) |
| ``one_cycle`` | from 0.04 up to 1 over the first 30 % and down to 0.0004, both along half a cosine (Smith & Topin 2018) |
"""

from __future__ import annotations

import math

from scatterdp.config import Schedule


def lr_factor(schedule: Schedule, step: int, steps: int, *, warmup: int = 0) -> float:
    """What the learning rate is multiplied with at step ``step`` (from 0) of ``steps``.

    The first ``warmup`` steps rise in a straight line, 1/warmup to 1; the schedule has the others.

    >>> [round(lr_factor("one_cycle", step, 10), 2) for step in (0, 3, 9)]
    [0.04, 1.0, 0.05]

    Raises:
        ValueError: an unknown schedule.
    """
    if step < warmup:
        return (step + 1) / warmup
    s = (step - warmup) / (steps - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + math.cos(math.pi * s)) / 2
    if schedule == "one_cycle":
        if s < 0.3:
            return _between(0.04, 1.0, s / 0.3)
        return _between(1.0, 0.0004, (s - 0.3) / 0.7)
    raise ValueError(f"schedule={schedule!r}: expected constant, cosine or one_cycle")


def _between(first: float, last: float, part: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2
