"""What compressed sensing holds against an image: total variation, and the l1 norm of its wavelets.

With K below, R(x) is for total variation the sum over pixels of the length of (K x), a vector of two, and for wavelets the sum
over levels of 2^-level |K_level x|_1, which is the mean of the orthonormal transform's l1 norm over all shifts.
Sources: Block, Uecker, Frahm, MRM 57, 2007 (total variation); Lustig, Donoho, Pauly, MRM 58, 2007 (wavelets); Coifman, Donoho,
Translation-invariant de-noising, 1995; Daubechies, CPAM 41, 1988.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 16  # pixels along the shorter side that the coarsest wavelets leave, as BART

_ROOT3 = math.sqrt(3.0)
# Daubechies' filters of four taps over sqrt(2): without decimation these are a tight frame.
LOW = tuple(tap / 8 for tap in (1 + _ROOT3, 3 + _ROOT3, 3 - _ROOT3, 1 - _ROOT3))
HIGH = (LOW[3], -LOW[2], LOW[1], -LOW[0])


def differences(image: Tensor) -> Tensor:
    """K of total variation: (batch, 1, y, x) -> (batch, 2, y, x), differences along y and along x."""
    return torch.cat((image - image.roll(1, -2), image - image.roll(1, -1)), dim=1)


def differences_adjoint(field: Tensor) -> Tensor:
    """The adjoint of `differences`: (batch, 2, y, x) -> (batch, 1, y, x)."""
    along_y, along_x = field[:, :1], field[:, 1:]
    return along_y - along_y.roll(-1, -2) + along_x - along_x.roll(-1, -1)


def differences_gram(shape: tuple[int, int]) -> Tensor:
    """What K^H K multiplies each frequency with, (y, x) float32."""
    along = (2 - 2 * torch.cos(2 * torch.pi * (torch.arange(n, dtype=torch.float64) - n // 2) / n) for n in shape)
    y, x = along
    return (y[:, None] + x).float()


def wavelet_levels(shape: tuple[int, int]) -> int:
    """As many as leave `SMALLEST_SCALE` pixels along the shorter side."""
    return max(0, int(math.log2(max(1, min(shape) / SMALLEST_SCALE))))


def wavelets(image: Tensor) -> Tensor:
    """K of wavelets: (batch, 1, y, x) -> (batch, 3 levels + 1, y, x), from fine to coarse, K^H K = 1.

    All coefficients of all shifts, each over 2^level: the share it has in the mean over shifts. Circular at any size;
    they are those of decimated wavelets where 2^levels divides the sides.
    """
    bands, low = [], image
    for level in range(wavelet_levels(tuple(image.shape[-2:]))):
        rows = [_filtered(low, taps, 2**level, -1) for taps in (LOW, HIGH)]
        low, *details = (_filtered(row, taps, 2**level, -2) for row in rows for taps in (LOW, HIGH))
        bands += details
    return torch.cat((*bands, low), dim=1)


def wavelets_adjoint(bands: Tensor) -> Tensor:
    """The adjoint of `wavelets`, and its inverse."""
    low = bands[:, -1:]
    for level in reversed(range(wavelet_levels(tuple(bands.shape[-2:])))):
        quarter = (low, *bands[:, 3 * level : 3 * level + 3].split(1, dim=1))
        rows = (
            _filtered(quarter[i], LOW, -(2**level), -2).add_(_filtered(quarter[i + 1], HIGH, -(2**level), -2))
            for i in (0, 2)
        )
        low = sum(_filtered(row, taps, -(2**level), -1) for row, taps in zip(rows, (LOW, HIGH), strict=True))
    return low


def _filtered(image: Tensor, taps: tuple[float, ...], spacing: int, axis: int) -> Tensor:
    """Circular correlation with taps that lie `spacing` pixels apart; with -spacing its adjoint."""
    found = taps[0] * image
    for number, tap in enumerate(taps[1:], start=1):
        found.add_(image.roll(-number * spacing, axis), alpha=tap)
    return found


def difference_sizes(field: Tensor) -> tuple[Tensor, Tensor]:
    """What R sums of K x: sizes (batch, 1, y, x), and their weights."""
    return torch.linalg.vector_norm(field, dim=1, keepdim=True), field.real.new_ones(1)


def wavelet_sizes(bands: Tensor) -> tuple[Tensor, Tensor]:
    """The same of wavelets: (batch, bands, y, x), and weights (bands, 1, 1): a coefficient over 2^level is one of 4^level."""
    levels = wavelet_levels(tuple(bands.shape[-2:]))
    weights = [0.5 ** (band // 3 + 1) for band in range(3 * levels)] + [0.5**levels]
    return bands.abs(), torch.tensor(weights, device=bands.device)[:, None, None]


@dataclass(frozen=True)
class Penalty:
    """R(x) = sum of weights * sizes of K x.

    gram: (y, x) -> what K^H K multiplies each frequency with, (y, x). sizes: K x -> sizes and weights.
    """

    analysis: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    gram: Callable[[tuple[int, int]], Tensor]
    sizes: Callable[[Tensor], tuple[Tensor, Tensor]]

    def of(self, image: Tensor) -> Tensor:
        """R (batch,) of images (batch, 1, y, x)."""
        sizes, weights = self.sizes(self.analysis(image))
        return (weights * sizes).sum(dim=(1, 2, 3))

    def shrink(self, values: Tensor, threshold: float) -> Tensor:
        """The proximal map of threshold * weighted sizes: sizes less threshold * weight, none below zero."""
        sizes, weights = self.sizes(values)
        return values * (1 - threshold * weights / sizes.clamp_min(1e-30)).clamp_min_(0)


PENALTIES = {
    "tv": Penalty(differences, differences_adjoint, differences_gram, difference_sizes),
    "wavelet": Penalty(wavelets, wavelets_adjoint, torch.ones, wavelet_sizes),
}
