"""What a pixel itself says, put together with what its surroundings say of it.

A blind spot leaves the noisy value of a pixel out of its prediction. Where the level of the noise is known it need not stay out
(Laine, Karras, Lehtinen, Aila, NeurIPS 2019; Krull, Vicar, Prakash, Lalit, Jug, Frontiers in Computer Science 2, 2020): the
prediction is the mean of a prior, the noisy value a measurement.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

# Standard deviation, in pixels, of the Gaussian over which errors are averaged; chosen on a training subject.
WIDTH = 2.0
_RADIUS = 8


def with_own_pixels(noisy: Tensor, predicted: Tensor, variance: float | Tensor) -> tuple[Tensor, Tensor]:
    """(p + w (y - p), w (slices, 1, y, x)), the posterior mean of noisy values y of variance v > 0, whose predictions p have the error
    e = E(p - x)^2: w = e / (e + v).

    noisy, predicted: real (slices, channels, y, x), channels with noise of one variance each; variance: a number, or (slices, 1,
    y, x). As the prediction does not know the noise of y, E(y - p)^2 = e + v: e is the local mean of (y - p)^2 - v over the
    slice and channels, at least 0 (Lee, IEEE PAMI 2, 165-168, 1980, with a local mean as prediction). The pixel itself has
    no part in its own e: an outlier of noise would speak for itself.
    """
    excess = ((noisy - predicted).square() - variance).mean(dim=1, keepdim=True).double()
    around = ndimage.gaussian_filter(excess.numpy(), (0, 0, WIDTH, WIDTH), radius=(0, 0, _RADIUS, _RADIUS))
    bell = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * WIDTH**2))
    own = (bell[_RADIUS] / bell.sum()) ** 2
    error = ((torch.from_numpy(around) - own * excess) / (1 - own)).clamp_min(0)
    weight = (error / (error + variance)).float()
    return predicted + weight * (noisy - predicted), weight
