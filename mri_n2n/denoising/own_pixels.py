"""What a pixel itself says, put together with what its surroundings say of it.

A blind spot leaves the noisy value of a pixel out of its prediction. Where the level of the noise is known it need not stay out
(Laine, Karras, Lehtinen, Aila, NeurIPS 2019; Krull, Vicar, Prakash, Lalit, Jug, Frontiers in Computer Science 2, 2020): the
prediction is the mean of a prior, the noisy value a measurement.
"""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor

# Standard deviation, in pixels, of the Gaussian over which errors are averaged; chosen on a training subject.
WIDTH = 2.0


def with_own_pixels(noisy: Tensor, predicted: Tensor, variance: float | Tensor) -> Tensor:
    """The posterior mean p + e / (e + v) (y - p) of noisy values y of variance v, whose predictions p have the error e = E(p - x)^2.

    noisy, predicted: real (slices, channels, y, x), channels with noise of one variance each; variance: a number, or (slices, 1,
    y, x). As the prediction does not know the noise of y, E(y - p)^2 = e + v: e is the local mean of (y - p)^2 over the
    slice and channels, less v, and at least 0 (Lee, IEEE PAMI 2, 165-168, 1980, with a local mean as prediction).
    """
    square = (noisy - predicted).square().mean(dim=1, keepdim=True)
    local = torch.from_numpy(ndimage.gaussian_filter(square.numpy(), (0, 0, WIDTH, WIDTH)))
    variance = torch.as_tensor(variance, dtype=local.dtype).expand_as(local)
    error = (local - variance).clamp_min(0)
    weight = torch.where(variance > 0, error / (error + variance).clamp_min(torch.finfo(local.dtype).tiny), 1.0)
    return predicted + weight * (noisy - predicted)
