"""Sampling masks. Each draw returns the mask AND the probability with which every location is sampled.

To add a mask: write a function that draws points (y, x) or lines (1, x), with their probability, and add one line to
`MASKS`. Line masks are constant along y and vary along x (the fastMRI convention: the last axis is undersampled).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Tensor

from mri_n2n.errors import OptionError
from mri_n2n.fourier import mirror_axes

Shape = tuple[int, int]


@dataclass(frozen=True)
class Sampling:
    """mask: (y, x) float32 of 0 and 1; probability: E[mask], (y, x) float32, positive wherever a sample can be."""

    mask: Tensor
    probability: Tensor


def draw_mask(
    kind: str,
    shape: Shape,
    acceleration: float,
    generator: Generator,
    *,
    hermitian: bool = False,
    center_fraction: float | None = None,
) -> Sampling:
    """Draw one mask of a `kind` in `MASKS`; its expected number of samples is y * x / acceleration.

    hermitian: keep k and -k together (joint probability p), as the k-space of a real image needs.
    center_fraction: share of the lines fully sampled around DC by the line masks; default 0.32 / acceleration.
    Errors: OptionError (a ValueError) for an unknown kind or an acceleration that cannot be met.
    """
    if kind not in MASKS:
        raise OptionError(f"unknown mask {kind!r}; choose one of {', '.join(MASKS)}")
    if acceleration == 1:
        return Sampling(torch.ones(shape), torch.ones(shape))
    if not 1 < acceleration < min(shape[1], math.prod(shape) / 4):
        raise OptionError(f"acceleration {acceleration} cannot be met on a {shape[0]}x{shape[1]} matrix")
    if center_fraction is not None and not 0 <= center_fraction <= 1 / acceleration:
        raise OptionError(
            f"center_fraction must lie in [0, 1/acceleration = {1 / acceleration:.3f}]; got {center_fraction}"
        )
    fraction = 0.32 / acceleration if center_fraction is None else center_fraction
    center = max(1, round(shape[1] * fraction))
    if hermitian:  # an even number of lines is not symmetric about DC
        center -= center % 2 == 0
    if center_fraction is not None and center >= shape[1] / acceleration:
        raise OptionError(f"center_fraction {center_fraction} leaves no line to draw at acceleration {acceleration}")
    sampling = MASKS[kind](shape, acceleration, center, generator)
    mask = mirror(sampling.mask) if hermitian else sampling.mask
    return Sampling(mask.expand(shape).contiguous(), sampling.probability.expand(shape).contiguous())


def radius(shape: Shape) -> Tensor:
    """Distance from the k-space centre over the half-width, per axis: hypot(ky/ky_max, kx/kx_max), (y, x) float64 on the CPU."""
    away = lambda n: torch.arange(n, dtype=torch.float64, device="cpu") - n // 2  # noqa: E731
    ky, kx = ((away(n) / max(n // 2, 1)).abs() for n in shape)
    return torch.hypot(ky[:, None], kx[None, :])


def mirror(mask: Tensor) -> Tensor:
    """Make a mask (y, x), or lines (1, x), Hermitian-symmetric: of k and -k, the first in memory order decides for both.

    On even sizes the first row and column (the Nyquist frequency) are their own mirror images.
    """
    index = torch.arange(mask.numel()).reshape(mask.shape)
    return mask.flatten()[torch.minimum(index, mirror_axes(index, (-2, -1)))]


def is_along(mask: Tensor, axis: int) -> bool:
    """Whether a mask (..., y, x) does not vary along `axis`: lines along it were sampled, or everything or nothing."""
    return torch.equal(mask, mask.narrow(axis, 0, 1).expand_as(mask))


def has_lines_along_x(mask: Tensor) -> bool:
    """Whether a mask (..., y, x) is one of lines along x, which networks do not know: they are turned to lines along y."""
    return is_along(mask, -1) and not is_along(mask, -2)


def mask_from_samples(sampled: np.ndarray) -> np.ndarray:
    """Masks (1 or slices, y, x) of a scan without a stored one, from where its slices (slices, y, x) are not zero.

    One mask for all slices, the locations where any slice has a sample, as long as every slice that is not empty has
    99 % of them: fewer zeros are chance. Else slices were sampled differently and each has a mask of its own.
    """
    union, counts = sampled.any(axis=0), sampled.sum(axis=(1, 2))
    same = (counts[counts > 0] >= 0.99 * union.sum()).all()
    return union[None] if same else sampled


def roulette_probability(shape: Shape, edge: float = 0.025) -> Tensor:
    """p(r) = edge ** r: Russian roulette of Lehtinen et al. 2018, section 3.4; edge 0.025 keeps 10.4 % of 255x255."""
    return edge ** radius(shape)


def _roulette(shape: Shape, acceleration: float, _: int, generator: Generator) -> Sampling:
    return _bernoulli(_roulette_probability(shape, acceleration), generator)


@lru_cache(maxsize=64)
def _roulette_probability(shape: Shape, acceleration: float) -> Tensor:
    r = radius(shape)
    # mean(edge ** r) falls monotonically as -log(edge) rises from 0 (everything) towards infinity (DC alone).
    decay = _solve(lambda decay: torch.exp(-decay * r).mean().item(), 1 / acceleration, low=0.0, high=1e4)
    return torch.exp(-decay * r)


def _gaussian_points(shape: Shape, acceleration: float, _: int, generator: Generator) -> Sampling:
    return _bernoulli(_gaussian_probability(shape, acceleration), generator)


@lru_cache(maxsize=64)
def _gaussian_probability(shape: Shape, acceleration: float) -> Tensor:
    """min(1, 2 exp(-(r/w)^2/2)), never below a tenth of the mean; w from the mean. The centre, r < 1.18 w, is always
    sampled: a fixed width would at high accelerations miss the samples that hold most of the image."""
    r, floor = radius(shape), 0.1 / acceleration
    profile = lambda width: (2 * torch.exp(-((r / width) ** 2) / 2)).clamp(floor, 1.0)  # noqa: E731
    return profile(_solve(lambda narrow: profile(1 / narrow).mean().item(), 1 / acceleration, low=0.1, high=1e3) ** -1)


def _gaussian_lines(shape: Shape, acceleration: float, center_lines: int, generator: Generator) -> Sampling:
    return _lines(_gaussian_line_probability(shape[1], acceleration, center_lines), generator)


@lru_cache(maxsize=64)
def _gaussian_line_probability(x: int, acceleration: float, center_lines: int) -> Tensor:
    center = _center_lines(x, center_lines)
    r = ((torch.arange(x, dtype=torch.float64) - x // 2) / (x // 2)).abs()
    outside = (x / acceleration - center_lines) / (x - center_lines)
    probability = torch.ones(1, x, dtype=torch.float64)
    probability[:, ~center] = _gaussian(r[~center], 1 / outside, width=0.4)
    return probability


def _lines(probability: Tensor, generator: Generator) -> Sampling:
    """Draw lines (1, x), as many as their probabilities add up to: on each side of DC at most one more or less.

    Systematic sampling in random order (Madow 1949): every line is met with its own probability exactly.
    """
    lines, index = torch.zeros_like(probability[0]), torch.arange(probability.shape[1])
    first = index <= mirror_axes(index[None], (-1,))[0]  # what `mirror` keeps is drawn to number too
    for side in (first, ~first):
        order = index[side][torch.randperm(int(side.sum()), generator=generator)]
        total = probability[0, order].cumsum(0) + torch.rand((), generator=generator, dtype=torch.float64)
        lines[order] = (total.floor() > (total - probability[0, order]).floor()).to(lines.dtype)
    lines[probability[0] == 1] = 1
    return Sampling(lines[None].float(), probability.float())


def _random_lines(shape: Shape, acceleration: float, center_lines: int, generator: Generator) -> Sampling:
    center = _center_lines(shape[1], center_lines)
    outside = (shape[1] / acceleration - center.sum()) / (shape[1] - center.sum())
    return _lines(torch.where(center, 1.0, outside.double())[None], generator)


def _equispaced_lines(shape: Shape, acceleration: float, center_lines: int, generator: Generator) -> Sampling:
    x = shape[1]
    center = _center_lines(x, center_lines)
    # Lines at floor(offset + i * spacing) with a uniform real offset: every line is met with probability 1 / spacing.
    spacing = (x - center.sum().item()) / (x / acceleration - center.sum().item())
    offset = torch.rand((), generator=generator, dtype=torch.float64).item() * spacing
    lines = center.clone()
    lines[torch.arange(offset, max(offset, x), spacing, dtype=torch.float64).long()] = True
    probability = torch.where(center, 1.0, 1 / spacing)
    return Sampling(lines[None].float(), probability[None].float())


MASKS: dict[str, Callable[[Shape, float, int, Generator], Sampling]] = {
    "roulette": _roulette,
    "gaussian-points": _gaussian_points,
    "random-lines": _random_lines,
    "equispaced-lines": _equispaced_lines,
    "gaussian-lines": _gaussian_lines,
}


def _center_lines(x: int, count: int) -> Tensor:
    first = x // 2 - count // 2
    lines = torch.zeros(x, dtype=torch.bool)
    lines[first : first + count] = True
    return lines


def _gaussian(r: Tensor, acceleration: float, width: float) -> Tensor:
    """min(1, a exp(-(r/width)^2/2)), never below a tenth of the mean (no frequency stays unseen), a from the mean."""
    profile = torch.exp(-((r / width) ** 2) / 2)
    floor = 0.1 / acceleration
    clipped = lambda log_a: (math.exp(log_a) * profile).clamp(floor, 1.0)  # noqa: E731
    log_a = _solve(lambda value: -clipped(value).mean().item(), -1 / acceleration, low=-20.0, high=400.0)
    return clipped(log_a)


def _solve(decreasing: Callable[[float], float], target: float, *, low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > target else (low, middle)
    return (low + high) / 2


def _bernoulli(probability: Tensor, generator: Generator) -> Sampling:
    drawn = torch.rand(probability.shape, generator=generator, dtype=torch.float64) < probability
    return Sampling(drawn.float(), probability.float())
