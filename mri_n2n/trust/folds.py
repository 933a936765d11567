"""The samples of a single scan, held out in turn: whole draws of its mask, points or lines, divided into folds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mri_n2n.masks import is_along
from mri_n2n.regularisation import outside_calibration
from mri_n2n.trust.design import Design, design_of
from mri_n2n.trust.error_bars import radii

Box = tuple[tuple[int, int], tuple[int, int]]

FOLDS = 10
# What is sampled with this probability or a higher one is not held out, nor spoken for: a sample there would speak for a ninth of a location at most, and
# the few of the very centre, which no method foretells, would drown all others.
CERTAIN = 0.9


@dataclass(frozen=True)
class Divided:
    """fold: (y, x) int64 of each sample that is held out once, from 0; -1 elsewhere. design: of the mask, with these samples alone as
    drawn. open: (y, x) bool, where samples can be held out. spoken_for: (y, x) bool, locations without a sample where held out ones could
    have been. draws: how many are held out."""

    fold: Tensor
    design: Design
    open: Tensor
    spoken_for: Tensor
    draws: int


def divide(
    mask: Tensor, probability: Tensor | None, *, with_maps: bool, draw: Generator, acquired: Box | None = None
) -> Divided | None:
    """Of a mask (y, x): `FOLDS` folds of equal numbers of draws, at random, of what is not nearly `CERTAIN`, and not of what maps are found from.
    probability (y, x), None: estimated from the mask, whose full centre is then taken for certain. acquired: half-open rows and columns,
    beyond which nothing could be sampled; None: everywhere. None where there are fewer draws than folds."""
    kept_out = torch.zeros_like(mask, dtype=torch.bool)
    if with_maps or probability is None:
        kept_out = ~outside_calibration(mask[None, None], with_maps=with_maps)
    box = acquired or ((0, mask.shape[0]), (0, mask.shape[1]))
    chance = _estimated(mask, kept_out, box) if probability is None else probability
    design, chance = _within(mask, chance, box)
    closed = torch.zeros_like(design.drawn)
    closed[design.unit[kept_out | (chance >= CERTAIN) | (chance == 0)]] = True
    drawn = (design.drawn & ~closed).nonzero().flatten()
    if len(drawn) < FOLDS:
        return None
    of_draw = torch.full((len(design.drawn),), -1, dtype=torch.int64)
    of_draw[drawn[torch.randperm(len(drawn), generator=draw)]] = torch.arange(len(drawn)) % FOLDS
    open_ = ~closed[design.unit]
    spoken_for = open_ & (mask == 0)
    if kept_out.any():
        spoken_for &= ~_would_join(mask, kept_out, design, with_maps=with_maps)
    return Divided(of_draw[design.unit], replace(design, drawn=of_draw >= 0), open_, spoken_for, len(drawn))


def _within(mask: Tensor, chance: Tensor, box: Box) -> tuple[Design, Tensor]:
    """(the design of a mask (y, x) within a box, probability 0 beyond it). Locations beyond belong to one draw that never is."""
    (y0, y1), (x0, x1) = box
    inner = design_of(mask[y0:y1, x0:x1], chance[y0:y1, x0:x1])
    unit = torch.full(mask.shape, len(inner.drawn), dtype=torch.int64)
    unit[y0:y1, x0:x1] = inner.unit
    group = None if inner.group is None else F.pad(inner.group, (0, 1))
    design = Design(unit, F.pad(inner.probability, (0, 1)), F.pad(inner.drawn, (0, 1)), group, inner.equidistant)
    there = torch.zeros_like(chance)
    there[y0:y1, x0:x1] = chance[y0:y1, x0:x1]
    return design, there


def _estimated(mask: Tensor, certain: Tensor, box: Box) -> Tensor:
    """The sampling probability (y, x) of one mask, of lines or points, that falls from the centre outwards, as all designs here do: the
    share of locations sampled, by isotonic regression on the distance from the centre; 1 where it is certain."""
    (y0, y1), (x0, x1) = box
    inside = mask[y0:y1, x0:x1]
    along_y, along_x = is_along(inside, -2), is_along(inside, -1)
    distance = radii(tuple(mask.shape))
    if along_y != along_x:  # lines: by the distance across them
        middle = [n // 2 for n in mask.shape]
        distance = distance[middle[0]] if along_y else distance[:, middle[1] : middle[1] + 1]
        certain = certain.any(dim=0 if along_y else 1, keepdim=True).expand(mask.shape)
    distance = distance.expand(mask.shape)
    rest = torch.zeros_like(mask, dtype=torch.bool)
    rest[y0:y1, x0:x1] = True
    rest &= ~certain
    order = distance[rest].argsort(stable=True)
    rising = distance[rest][order]
    ring, counts = rising.unique_consecutive(return_inverse=True, return_counts=True)[1:]
    means = torch.zeros(len(counts), dtype=torch.float64).index_add(0, ring, mask[rest][order].double()) / counts
    from scipy.optimize import isotonic_regression  # here, as most uses do without it and it takes 0.2 s

    fitted = isotonic_regression(means.numpy(), weights=counts.double().numpy(), increasing=False).x.copy()
    chance = torch.ones_like(mask, dtype=torch.float64)
    values = torch.empty(len(order), dtype=torch.float64)
    values[order] = torch.from_numpy(fitted)[ring]
    chance[rest] = values.clamp(0, 1)
    return chance


def _would_join(mask: Tensor, kept_out: Tensor, design: Design, *, with_maps: bool) -> Tensor:
    """Where (y, x) draws without samples lie that would have been kept out, had they been drawn: no sample that is held out speaks for
    these. Without them the estimate is unbiased: whether a draw can be held out is then the same whether it has samples or not."""
    beside = F.max_pool2d(kept_out.float()[None, None], 3, 1, 1)[0, 0] > 0
    found = torch.zeros_like(kept_out)
    for number in design.unit[beside & (mask == 0)].unique().tolist():
        drawn = design.unit == number
        joined = torch.where(drawn, torch.ones_like(mask), mask)
        if (drawn & ~outside_calibration(joined[None, None], with_maps=with_maps)).any():
            found |= drawn
    return found
