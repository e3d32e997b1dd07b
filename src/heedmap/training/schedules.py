"""Learning-rate schedules: functions of the progress of training."""

import math

WARM_UP = 0.2  # of one-cycle
SHORT_WARM_UP = 0.05  # of cosine: for fresh normalisations to settle
FLOOR = 1e-3  # of the highest rate, so that the last steps are not lost


def one_cycle(progress: float) -> float:
    """Return the factor in (0, 1] at a progress in [0, 1]: linearly up, then linearly down (Smith 2018)."""
    factor = progress / WARM_UP if progress < WARM_UP else (1 - progress) / (1 - WARM_UP)
    return max(factor, FLOOR)


def cosine(progress: float) -> float:
    """Return the factor in (0, 1] at a progress in [0, 1]: a short warm-up, then half a cosine down."""
    if progress < SHORT_WARM_UP:
        return max(progress / SHORT_WARM_UP, FLOOR)
    return max(0.5 * (1 + math.cos(math.pi * (progress - SHORT_WARM_UP) / (1 - SHORT_WARM_UP))), FLOOR)


SCHEDULES = {"one-cycle": one_cycle, "cosine": cosine}
