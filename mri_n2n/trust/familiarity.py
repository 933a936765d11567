"""Is a scan like those that a network was trained on? Distances of statistics, calibrated by scans of other subjects.

Two kinds, each judged by itself: of the image (quantiles of its grey values, how much of the field of view it fills, how fine it is) and of the
acquisition (how well held-out samples are predicted in three bands of spatial frequency, acceleration, lines or points). A scan's
statistics are the mean over some of its slices; its distance is that to the nearest training scan, in units of the scatter
within volumes (image) or over all (acquisition). Calibration: the distance of each training scan from those of other
subjects; the share of these that are as large, (1 + number) / (1 + all), is a conformal p-value (Vovk, Gammerman, Shafer, 2005; Laxhammar,
Falkman, COPA 2010) for scans exchangeable with the training's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import InputError
from mri_n2n.fourier import fft2c
from mri_n2n.masks import is_along
from mri_n2n.trust.error_bars import radii
from mri_n2n.trust.folds import divide

KINDS = ("image", "acquisition")
# Pixels above this share of the 99.5 % quantile are the object; its quantiles.
OBJECT, QUANTILES = 0.1, (0.1, 0.25, 0.5, 0.75, 0.9)
# Bands of held-out samples, as shares of the largest frequency.
BANDS = ((0.12, 0.5), (0.5, 0.75), (0.75, 2.0))
# A scan is unlike where at most this share of training scans is as far from the others, of either kind, which takes 39 of them. Of fewer
# than `FEWEST` nothing is kept.
ALARM, FEWEST = 0.025, 10
SLICES = 3  # of a scan
TENSORS = ("transform", "centre", "scans", "distances")  # of `Known`


@dataclass(frozen=True)
class Statistics:
    """image (7,), acquisition (5,): float64; what could not be told is NaN."""

    image: Tensor
    acquisition: Tensor


@dataclass(frozen=True)
class Known:
    """Of one kind: how many subjects the scans are of (None: weights do not say), transform (statistics, axes) to the units of distances, centre (statistics,),
    scans (n, axes) already in them, and the calibration's distances (n,), ascending."""

    subjects: int | None
    transform: Tensor
    centre: Tensor
    scans: Tensor
    distances: Tensor


@dataclass(frozen=True)
class Unlike:
    """distance: from the nearest training scan; share: of training scans as far from those of other subjects, or farther, this one
    counted. alarm: whether that is too few."""

    distance: float
    share: float
    alarm: bool


def looked_at(slices: int) -> list[int]:
    """The slices a quarter, a half and three quarters through a scan."""
    return sorted({slices * part // (SLICES + 1) for part in range(1, SLICES + 1)})


def statistics_of(acquisition: Acquisition, image_of: Callable[[Acquisition], Tensor]) -> Statistics:
    """Of one slice, with its maps if it has several coils; image_of: -> complex (1, 1, y, x) on the CPU. A tenth of its samples is held
    out where it can be."""
    mask = acquisition.mask[0, 0].cpu()
    chance = None if acquisition.probability is None else acquisition.probability[0, 0].cpu()
    maps = acquisition.sensitivity_maps
    divided = divide(mask, chance, with_maps=maps is not None, draw=Generator().manual_seed(0))
    out = torch.zeros_like(mask, dtype=torch.bool) if divided is None else divided.fold == 0
    left = (~out).to(acquisition.mask)
    image = image_of(replace(acquisition, kspace=left * acquisition.kspace, mask=left * acquisition.mask)).cpu()
    wrong = fft2c(image if maps is None else maps.cpu() * image) - acquisition.kspace.cpu()
    wrong, size = (value[0].abs().double().square().sum(dim=0) for value in (wrong, acquisition.kspace.cpu()))
    radius, predicted = radii(tuple(mask.shape)), []
    for low, high in BANDS:
        band = out & (radius >= low) & (radius < high)
        there = bool(band.any()) and bool(size[band].sum() > 0)
        predicted.append(torch.log10(wrong[band].sum() / size[band].sum()).item() if there else math.nan)
    lines = is_along(mask, -1) != is_along(mask, -2)
    rows, columns = (int((mask > 0).any(dim=axis).sum()) for axis in (1, 0))  # beyond these may be padding
    share = (mask > 0).sum().item() / max(rows * columns, 1)
    of_acquisition = [*predicted, -math.log2(max(share, 1e-9)), float(lines)]
    return Statistics(_of_image(image[0, 0].abs().double()), torch.tensor(of_acquisition, dtype=torch.float64))


def _of_image(size: Tensor) -> Tensor:
    """Of a magnitude image (y, x); NaN where it is empty."""
    top = size.flatten().sort().values[int(0.995 * (size.numel() - 1))]
    if not top > 0:
        return torch.full((len(QUANTILES) + 2,), math.nan, dtype=torch.float64)
    inside = size[size > OBJECT * top] / top
    levels = torch.quantile(inside, torch.tensor(QUANTILES, dtype=torch.float64))
    return torch.cat(
        [levels, torch.stack([(size > OBJECT * top).double().mean(), size.diff(dim=0).abs().mean() / size.mean()])]
    )


def mean_of(slices: Sequence[Statistics]) -> Statistics:
    """Of a scan, from some of its slices."""
    return Statistics(*(torch.stack([getattr(one, kind) for one in slices]).nanmean(dim=0) for kind in KINDS))


def learned(scans: Sequence[Sequence[Statistics]], subjects: Sequence[str], volumes: Sequence[str]) -> dict | None:
    """What a weights file keeps, as plain numbers, of training scans (each some slices' statistics), their subjects and volumes; where there
    is one subject only distances are from other volumes. None of one volume, and of fewer than `FEWEST` scans."""
    groups = subjects if len(set(subjects)) > 1 else volumes
    if len(set(groups)) < 2 or len(scans) < FEWEST:
        return None
    found = {}
    for kind in KINDS:
        slices = [torch.stack([getattr(one, kind) for one in scan]) for scan in scans]
        means = torch.stack([one.nanmean(dim=0) for one in slices])
        centre = means.nanmean(dim=0).nan_to_num(0.0)
        transform = _transform(slices, volumes, centre) if kind == "image" else _scaling(means, centre)
        scans_there = _placed(means, centre, transform)
        distances = [
            _nearest(one, torch.stack([s for s, other in zip(scans_there, groups) if other != own]))
            for one, own in zip(scans_there, groups)
        ]
        found[kind] = {
            "subjects": len(set(subjects)),
            "transform": transform.tolist(),
            "centre": centre.tolist(),
            "scans": scans_there.tolist(),
            "distances": sorted(distances),
        }
    return found


def known_of(header: dict) -> dict[str, Known] | None:
    """What a weights file's header keeps; None where it keeps nothing. InputError where it makes no sense."""
    kept = header.get("familiarity")
    if kept is None:
        return None
    try:
        found = {
            kind: Known(
                _subjects(kept[kind]), *(torch.tensor(kept[kind][name], dtype=torch.float64) for name in TENSORS)
            )
            for kind in KINDS
        }
        fits = all(
            one.scans.shape == (len(one.distances), one.transform.shape[1])
            and one.transform.shape[0] == len(one.centre) == size
            and len(one.distances) > 0
            for one, size in zip(found.values(), (len(QUANTILES) + 2, len(BANDS) + 2))
        )
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError):
        fits = False
    if not fits:
        raise InputError("the weights' header has statistics of training scans that make no sense; it is damaged")
    return found


def _subjects(kept: dict) -> int | None:
    count = kept.get("subjects")
    if count is not None and (type(count) is not int or count < 1):
        raise ValueError(f"{count!r} subjects")
    return count


def unlike(known: Known, statistics: Tensor) -> Unlike:
    """statistics (n,) of one kind, of a scan."""
    distance = _nearest(_placed(statistics[None], known.centre, known.transform)[0], known.scans)
    farther, count = int((known.distances >= distance).sum()), len(known.distances)
    share = (1 + farther) / (1 + count)
    return Unlike(distance, share, share <= ALARM)


def _placed(means: Tensor, centre: Tensor, transform: Tensor) -> Tensor:
    """In units of distances; what could not be told says nothing."""
    return (means - centre).nan_to_num(0.0) @ transform


def _nearest(one: Tensor, others: Tensor) -> float:
    return torch.linalg.vector_norm(others - one, dim=1).min().item()


def _scaling(means: Tensor, centre: Tensor) -> Tensor:
    """One over the standard deviation, which is no less than what means nothing: 10 % of an acceleration, a quarter of a squared error; of
    lines or points any other value is far."""
    spread = (means - centre).nan_to_num(0.0).square().mean(dim=0).sqrt()
    least = torch.tensor([*[0.1] * len(BANDS), 0.14, 0.01], dtype=torch.float64)
    return torch.diag(1 / torch.maximum(spread, least))


def _transform(slices: Sequence[Tensor], volumes: Sequence[str], centre: Tensor) -> Tensor:
    """L with L L^T the inverse covariance within volumes, of all slices, and a twentieth of the variances over all."""
    by_volume = {name: torch.cat([s for s, own in zip(slices, volumes) if own == name]) for name in set(volumes)}
    within = torch.cat([(one - one.nanmean(dim=0)).nan_to_num(0.0) for one in by_volume.values()])
    over_all = (torch.cat(list(slices)) - centre).nan_to_num(0.0).square().mean(dim=0)
    covariance = within.mT @ within / len(within) + torch.diag(0.05 * over_all + 1e-6)
    return torch.linalg.cholesky(torch.linalg.inv(covariance))
