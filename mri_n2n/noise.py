"""The level of the noise in k-space, from the samples themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.masks import radius

# Samples farther out than this share of the half-width are taken for noise alone.
OUTSIDE = 0.9
# Fewer of them tell nothing.
FEWEST = 16


def noise_variance_at_most(kspace: Tensor, mask: Tensor) -> Tensor:
    """E|n|^2 of one complex sample of k-space (batch, coils, y, x), as the outermost samples say, (batch, 1, 1, 1) float64;
    nan where they are too few.

    |n|^2 of white noise is exponential: its median is E|n|^2 log 2. What signal there is so far out adds to it, so it is
    an upper bound; without noise it is that signal.
    """
    far = (radius(tuple(kspace.shape[-2:])) > OUTSIDE).to(mask.device)
    if not far.any():  # of a single sample
        return torch.full((len(kspace), 1, 1, 1), math.nan, dtype=torch.float64, device=kspace.device)
    told = (far & (mask > 0)).expand(len(kspace), -1, -1, -1)
    squared = kspace[..., far].abs().double().square()
    told = told[..., far].expand_as(squared) & (squared > 0)  # exact zeros were never acquired
    median = torch.where(told, squared, math.nan).nanmedian(dim=-1).values.mean(dim=1)
    enough = told.sum(dim=-1).amin(dim=1) >= FEWEST
    return torch.where(enough, median / math.log(2), math.nan)[:, None, None, None]


def noise_variance(acquisition: Acquisition) -> Tensor:
    """v of one sample, (batch or 1, 1, 1, 1) float64, whatever the unit: the scan's, or what its outermost samples say; 0
    where they do not."""
    variance = acquisition.noise_variance
    if variance is None:
        return noise_variance_at_most(acquisition.kspace, acquisition.mask).nan_to_num(0.0)
    return torch.as_tensor(variance, dtype=torch.float64, device=acquisition.kspace.device).reshape(-1, 1, 1, 1)
