"""Learning rate and momentum over a training."""

from __future__ import annotations

import math

import torch

from mri_n2n.options import TrainOptions


def set_schedule(optimizer: torch.optim.Optimizer, options: TrainOptions, progress: float) -> None:
    """Learning rate, and for the 2018 recipe Adam's beta1, at `progress` in [0, 1) of the run.

    Recipe: cosine ramp-up over the first 10 of 300 epochs, squared cosine ramp-down over the last 30, in which beta1 goes
    0.9 -> 0.5.
    Default: `share_of_learning_rate`.
    """
    if options.protocol.recipe_2018:
        up = min(1.0, progress * 300 / 10)
        down = max(0.0, (progress - 0.9) * 10)
        falling = 0.5 + 0.5 * math.cos(math.pi * down)
        rate, beta1 = (0.5 - 0.5 * math.cos(math.pi * up)) * falling**2, 0.5 + 0.4 * falling
    else:
        rate, beta1 = share_of_learning_rate(progress), 0.9
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = options.learning_rate * rate, (beta1, 0.99)


def share_of_learning_rate(progress: float) -> float:
    """Linear ramp-up over the first 3 %, then a cosine to zero, which suits any budget."""
    return min(1.0, (progress + 1e-3) / 0.03) * (0.5 + 0.5 * math.cos(math.pi * progress))
