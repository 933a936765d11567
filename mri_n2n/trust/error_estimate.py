"""The mean squared error of a complex image from a second acquisition that had no part in it, with an interval.

e = F S x' - s, of an image x' and the second acquisition s = M (F S x + n), drawn with probability p: as |e|^2 - v on average over
the noise is |F S (x' - x)|^2, sum M / p (|e|^2 - v) / N is on average over masks and noise the mean squared error of the k-space, and
with sum |S|^2 = 1 that of the image (Parseval). The variance is that of Horvitz and Thompson (JASA 47, 1952), of lines
drawn to a number that of Hajek (Ann. Math. Stat. 35, 1964), and of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mri_n2n.trust.design import Design

CONFIDENCE = 0.95
# Samples that a noise level is told from, at least.
FEWEST = 100


@dataclass(frozen=True)
class Estimate:
    """A value and its interval, of `CONFIDENCE`. The value can be negative where the error is small beside its uncertainty."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """An estimate said in three ways. mse: of the complex image, in squared intensity; psnr: dB, by the image's own largest
    magnitude; nmse: over the image's own energy."""

    mse: Estimate
    psnr: Estimate
    nmse: Estimate


@dataclass(frozen=True)
class Terms:
    """Of samples (y, x), summed over what was drawn together with them (coils, and slices that share a mask): error: on average
    |F S (x' - x)|^2; noise: on average the variance that noise gives it."""

    error: Tensor
    noise: Tensor

    def __add__(self, other: Terms) -> Terms:
        return Terms(self.error + other.error, self.noise + other.noise)

    def times(self, factor: float) -> Terms:
        return Terms(factor * self.error, factor**2 * self.noise)


def terms_of(residual: Tensor, mask: Tensor, variance: float | Tensor) -> Terms:
    """Of a residual F S x' - s (coils, y, x) with noise of a variance E|n|^2 in each sample (a number, or (coils, 1, 1)), where a
    mask (y, x) has samples."""
    square = residual.abs().double().square()
    error, noise = (square - variance).sum(dim=0), (variance * (2 * square - variance)).sum(dim=0)
    return Terms(mask * error, mask * noise)


@dataclass(frozen=True)
class Level:
    """The noise variance E|n|^2 of each coil (coils, 1, 1) float64, and how many samples it was told from; None: it is known."""

    variance: Tensor
    samples: int | None = None

    @property
    def doubt(self) -> float:
        """The variance that this gives an estimate, a pixel: as sum M / p / N is nearly 1, that of the sum over coils."""
        return 0.0 if self.samples is None else self.variance.square().sum().item() / self.samples


def level_of_two(differences: Sequence[Tensor]) -> Level | None:
    """From s2 - s3, (coils, samples) where both have samples, of each slice: E|s2 - s3|^2 = 2 v. None where there are few."""
    joined = torch.cat(list(differences), dim=1)
    if joined.shape[1] < FEWEST:
        return None
    return Level(joined.abs().double().square().mean(dim=1)[:, None, None] / 2, joined.shape[1])


@dataclass(frozen=True)
class Total:
    """A sum over all of k-space, the variance that chance gives it, and the degrees of freedom that this was told from; infinitely many
    where nothing but noise was left to chance."""

    value: float
    variance: float
    freedom: float


def total(parts: Sequence[tuple[Terms, Design]]) -> Total:
    """sum M / p error, from terms of one or several masks that were drawn each by itself."""
    value, spread, freedom, left_to_chance = 0.0, 0.0, 0, False
    for terms, design in parts:
        drawn, chance = design.drawn, design.probability
        error, noise = design.totals(terms.error)[drawn], design.totals(terms.noise)[drawn]
        chance = chance[drawn]
        value += (error / chance).sum().item()
        spread += (noise / chance).sum().item()
        by_chance, draws = _by_chance(error / chance, chance, None if design.group is None else design.group[drawn])
        spread, freedom, left_to_chance = spread + by_chance, freedom + draws, left_to_chance or by_chance > 0
    return Total(value, max(spread, 0.0), max(freedom, 1) if left_to_chance else math.inf)


def estimate(parts: Sequence[tuple[Terms, Design]], pixels: int, doubt: float = 0.0) -> Estimate:
    """The mean squared error of all pixels of slices, from terms of one or several masks that were drawn each by itself. doubt:
    of the noise level, see `Level`."""
    from scipy.special import stdtrit  # here, as most uses do without it and it takes 0.2 s

    found = total(parts)
    quantile = stdtrit(found.freedom, 0.5 + CONFIDENCE / 2)
    reach = float(quantile) * math.sqrt(found.variance + pixels**2 * doubt)
    return Estimate(found.value / pixels, (found.value - reach) / pixels, (found.value + reach) / pixels)


def psnr_of(mse: Estimate, peak: float) -> Estimate:
    """10 log10(peak^2 / MSE) in dB; infinite where the mean squared error cannot be told from zero, NaN of an image without intensity."""
    if not peak > 0:
        return Estimate(math.nan, math.nan, math.nan)
    in_db = lambda value: 10 * math.log10(peak**2 / value) if value > 0 else math.inf  # noqa: E731
    return Estimate(in_db(mse.value), in_db(mse.high), in_db(mse.low))


def quality_of(mse: Estimate, peak: float, energy: float) -> Quality:
    """peak: the image's largest magnitude; energy: its mean square."""
    over = lambda value: value / energy if energy > 0 else math.nan  # noqa: E731
    return Quality(
        mse,
        psnr_of(mse, peak),
        Estimate(*map(over, (mse.value, mse.low, mse.high))),
    )


def _by_chance(weighted: Tensor, chance: Tensor, group: Tensor | None) -> tuple[float, int]:
    """(variance of the sum of totals over probabilities (draws,), degrees of freedom) of what was left to chance."""
    if group is None:
        return ((1 - chance) * weighted.square()).sum().item(), int((chance < 1).sum())
    variance, freedom = 0.0, 0
    for number in group.unique():
        some = (group == number) & (chance < 1)
        count, left = int(some.sum()), 1 - chance[some]
        if count > 1:
            middle = (left * weighted[some]).sum() / left.sum()
            variance += (count / (count - 1) * left * (weighted[some] - middle).square()).sum().item()
            freedom += count - 1
    return variance, freedom
