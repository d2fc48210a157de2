"""The learning rate as a function of the budget that is spent: a rise, a plateau or none, a fall.

The share of the budget decides, not the step. So budgets of steps, bytes and seconds are alike, and a run that is
given more follows the longer curve. ``cosine`` falls from the end of the warm-up on. ``wsd`` (warm-up, stable, decay)
keeps the peak until the last ``train.decay_fraction``: a checkpoint of its plateau can be trained on, to any budget,
as if that budget had been asked for at the beginning.
"""

import math

from bytelm.config import BUDGETS, TrainConfig
from bytelm.errors import ConfigError


def budget_spent(train: TrainConfig, step: int, bytes_seen: int, elapsed_s: float) -> float:
    """Share of the budget that is spent, which may pass 1 in the last step.

    Raises:
        ConfigError: No budget is set.
    """
    if train.steps is not None:
        return step / train.steps
    if train.bytes is not None:
        return bytes_seen / train.bytes
    if train.time_budget_s is not None:
        return elapsed_s / train.time_budget_s
    raise ConfigError(f"no budget is set; set one of {', '.join(f'train.{name}' for name in BUDGETS)}")


def learning_rate(fraction: float, train: TrainConfig) -> float:
    """Learning rate at a point of the budget: a straight rise to the peak, then down to the final ratio.

    Args:
        fraction: Share of the budget that is spent, 0 … 1 (of steps, bytes or seconds alike); larger values, which a
            time budget reaches in its last step, count as 1.
        train: Schedule, peak, warm-up and final ratio; for ``wsd`` the share of the budget in which the rate falls.

    Returns:
        The rate, ``train.learning_rate`` at the end of the warm-up, ``final_learning_rate_ratio`` of it at 1.

    Source: ``cosine``: Loshchilov and Hutter 2017 (arXiv 1608.03983), §3, one cycle without restarts. ``wsd``: Hu et
        al. 2024 (arXiv 2404.06395), §4, with the fall of Hägele et al. 2024 (arXiv 2405.18392), §3: one minus the
        square root of the share of the fall that is done.

    Example:
        >>> learning_rate(1.0, TrainConfig(learning_rate=0.5, final_learning_rate_ratio=0.5))
        0.25
        >>> wsd = TrainConfig(schedule="wsd", learning_rate=0.5, final_learning_rate_ratio=0, decay_fraction=0.4)
        >>> [round(learning_rate(fraction, wsd), 6) for fraction in (0.6, 0.7, 1.0)]
        [0.5, 0.25, 0.0]
    """
    fraction = min(max(fraction, 0.0), 1.0)
    if fraction < train.warmup_fraction:
        return train.learning_rate * fraction / train.warmup_fraction
    if train.schedule == "cosine":
        angle = math.pi * (fraction - train.warmup_fraction) / (1.0 - train.warmup_fraction)
        left = 0.5 * (1.0 + math.cos(angle))
    else:
        fallen = (fraction - (1.0 - train.decay_fraction)) / train.decay_fraction
        left = 1.0 - math.sqrt(max(fallen, 0.0))
    ratio = train.final_learning_rate_ratio
    return train.learning_rate * (ratio + (1.0 - ratio) * left)
