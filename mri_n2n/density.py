"""The sampling probability of scans that store only masks: how often each k-space location is sampled, smoothed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from mri_n2n.errors import InputError


def estimate_probability(masks: Iterable[Tensor]) -> Tensor:
    """Sampling probability (y, x) float32 from masks (y, x): how often each location is sampled, smoothed.

    Locations that all of at least 8 masks have stay at 1 and out of the smoothing, so that a fully sampled centre keeps
    its edge. The rest is averaged with a Gaussian window (along x alone for line masks) just wide enough to hold about
    50 samples. Zero where nothing was sampled, in a location or in a whole row or column, although the locations around
    led to expect 12 samples (e^-12: not by chance on any matrix), or where there is nothing around either.
    Where several masks are all the same it is that mask: what it leaves out is never sampled.
    Warns, because an estimate is less than the design, and says where it is zero. InputError without any sample.
    """
    count, total = 0, None
    for mask in masks:
        sampled = (mask > 0).double()
        total = sampled if total is None else total + sampled
        count += 1
    if total is None or not total.any():
        raise InputError("the sampling probability cannot be estimated: there is no sample in any training scan")
    frequency = total / count
    if count > 1 and ((total == 0) | (total == count)).all():
        if not total.all():
            warnings.warn("all scans have one mask; what it leaves out is never sampled", stacklevel=2)
        return frequency.float()
    lines = bool((frequency == frequency[:1]).all())
    rest = ((frequency < 1) | (count < 8)).double()
    mean = ((frequency * rest).sum() / rest.sum().clamp_min(1)).item()
    needed = 50 / max(count * mean, 1e-9)  # locations that hold 50 samples; a Gaussian counts 2 sqrt(pi) sigma per axis
    sigma = needed / (2 * math.pi**0.5) if lines else (needed / (4 * math.pi)) ** 0.5
    probability = torch.where(rest > 0, _gaussian_mean(frequency, rest, max(sigma, 0.3), lines), frequency).clamp(0, 1)
    # A narrow window sees little but the location itself; what to expect there, its neighbours tell.
    expected = count * _gaussian_mean(frequency, rest, max(sigma, 1.5), lines)
    never = (total == 0) & ((expected > 12) | (probability == 0))
    if not lines:  # where single locations are too rare to tell, whole rows and columns are not
        for axis in (0, 1):
            never |= (total.sum(dim=axis, keepdim=True) == 0) & (expected.sum(dim=axis, keepdim=True) > 12)
    probability[never] = 0
    where = f"; never sampled: {_describe(never)}" if never.any() else ""
    warnings.warn(
        f"the scans do not store their sampling probability; it was estimated from {count} masks{where}", stacklevel=2
    )
    return probability.float()


def _gaussian_mean(value: Tensor, known: Tensor, sigma: float, lines: bool) -> Tensor:
    """Mean of the values (y, x) around every location, of those where known is 1; Gaussian weights up to 3 sigma."""

    def blur(image: Tensor) -> Tensor:
        for axis in (1,) if lines else (0, 1):
            size = image.shape[axis]
            width = min(sigma, size / 16)
            position = torch.arange(size, dtype=torch.float64)
            distance = (position[:, None] - position[None, :]).abs() / width
            kernel = torch.where(distance <= 3, torch.exp(-(distance**2) / 2), 0.0)
            image = torch.tensordot(kernel, image, dims=([1], [axis])).movedim(0, axis)
        return image

    return blur(value * known) / blur(known).clamp_min(1e-12)


def _describe(never: Tensor) -> str:
    """Which locations of a boolean (y, x) are set: their share, and the whole columns (x) and rows (y) among them."""
    parts = [f"{100 * never.double().mean():.1f} % of k-space"]
    for name, axis in (("x", 0), ("y", 1)):
        whole = never.all(dim=axis).nonzero().flatten().tolist()
        runs: list[list[int]] = []
        for index in whole:
            if runs and index == runs[-1][1] + 1:
                runs[-1][1] = index
            else:
                runs.append([index, index])
        if runs:
            shown = ", ".join(f"{a}..{b}" if b > a else f"{a}" for a, b in runs[:4])
            parts.append(f"all of {name} = {shown}{' ...' if len(runs) > 4 else ''}")
    return ", ".join(parts)
