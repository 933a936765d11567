"""Error bars: how far images of the folds lie apart, scaled by how far held-out samples are from their predictions.

Split conformal prediction (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Lei et al., JASA 113, 2018) in bands
of spatial frequency: the score of a held-out sample is |e| / u, e = F S x' - s from the image x' without it, u the root mean square, over
locations of its band without samples, of F S (x'_j - mean of x'_j) over the images of all folds. q, the quantile of half the scores, makes
|e| <= q u hold for `CONFIDENCE` of the others, which are counted. The map is the root mean square over folds of the images'
differences from their mean, band by band times q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mri_n2n.fourier import fft2c, ifft2c

CONFIDENCE = 0.9
# Bands at most, and held-out samples of a band at least.
BANDS, FEWEST = 6, 200


@dataclass(frozen=True)
class Scores:
    """Of one slice: score, band and fold (samples,) of what was held out, and for each band the spread of images (bands, y, x), in
    their intensity."""

    score: Tensor
    band: Tensor
    fold: Tensor
    spread: Tensor


@dataclass(frozen=True)
class ErrorBars:
    """radius: (slices, y, x) float32, in the image's intensity. factors: q of each band. edges: of the bands, as shares of the largest
    frequency along an axis. coverage: of the samples that q was not found from, `tested` of them; None where there are none."""

    radius: Tensor
    factors: tuple[float, ...]
    edges: tuple[float, ...]
    coverage: float | None
    tested: int


def radii(shape: tuple[int, int]) -> Tensor:
    """The spatial frequency of each location (y, x), as a share of the largest along an axis."""
    ky, kx = (2 * (torch.arange(n, dtype=torch.float64) - n // 2) / n for n in shape)
    return (ky[:, None] ** 2 + kx[None, :] ** 2).sqrt()


def band_edges(held_out: Tensor) -> Tensor:
    """Inner edges of bands with as many held-out samples each; held_out (y, x) bool."""
    found = radii(tuple(held_out.shape))[held_out]
    count = max(1, min(BANDS, len(found) // FEWEST))
    return torch.quantile(found, torch.linspace(0, 1, count + 1, dtype=torch.float64)[1:-1])


def scores_of(
    images: Tensor, maps: Tensor | None, residual: Tensor, fold: Tensor, empty: Tensor, edges: Tensor
) -> Scores:
    """images: (folds, coils or 1, y, x) complex, of one slice; maps: (coils, y, x). residual: (coils, y, x), F S x' - s of what was held
    out. fold: (y, x), -1 where nothing was. empty: (y, x) bool, locations without samples."""
    apart = images.to(torch.complex128) - images.to(torch.complex128).mean(dim=0)
    spectrum = fft2c(apart)
    predicted = spectrum if maps is None else fft2c(maps * apart)
    spread = predicted.abs().square().sum(dim=1).mean(dim=0)
    band = torch.bucketize(radii(tuple(fold.shape)), edges, right=True)
    held, found, maps_of_bands = fold >= 0, [], []
    for number in range(len(edges) + 1):
        inside = band == number
        found.append(spread[inside & empty].mean().sqrt() if (inside & empty).any() else spread[inside].mean().sqrt())
        maps_of_bands.append(ifft2c(inside * spectrum).abs().square().sum(dim=1).mean(dim=0).sqrt().float())
    size = residual.abs().double().square().sum(dim=0).sqrt()
    score = size[held] / torch.stack(found)[band[held]]
    return Scores(score, band[held], fold[held], torch.stack(maps_of_bands))


def error_bars(slices: Sequence[Scores | None], shape: tuple[int, int], edges: Tensor) -> ErrorBars | None:
    """From the scores of all slices; None of a slice without samples. Even folds give the quantiles, odd ones are counted. None where a
    band has too few for a quantile."""
    there = [one for one in slices if one is not None]
    score, band, fold = (torch.cat([getattr(one, name) for one in there]) for name in ("score", "band", "fold"))
    factors, covered, tested = [], 0, 0
    for number in range(len(edges) + 1):
        calibrating, testing = (score[(band == number) & (fold % 2 == half)] for half in (0, 1))
        factors.append(conformal_quantile(calibrating))
        covered, tested = covered + int((testing <= factors[-1]).sum()), tested + len(testing)
    if not all(map(math.isfinite, factors)):
        return None
    squared = torch.tensor(factors, dtype=torch.float64).square()[:, None, None]
    maps = [
        torch.zeros(shape) if one is None else (squared * one.spread.double().square()).sum(dim=0).sqrt().float()
        for one in slices
    ]
    coverage = covered / tested if tested else None
    return ErrorBars(torch.stack(maps), tuple(factors), tuple(edges.tolist()), coverage, tested)


def conformal_quantile(scores: Tensor) -> float:
    """The ceil((n + 1) `CONFIDENCE`)-th smallest of n scores: a further one of their kind is at most that with this probability or
    a little more; infinite where n is too small for that."""
    rank = math.ceil((len(scores) + 1) * CONFIDENCE)
    return scores.sort().values[rank - 1].item() if rank <= len(scores) else math.inf
