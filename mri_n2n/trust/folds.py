"""The samples of a single scan, held out in turn: whole draws of its mask, points or lines, divided into folds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mri_n2n.density import estimate_probability
from mri_n2n.regularisation import outside_calibration
from mri_n2n.trust.design import Design, design_of

FOLDS = 10
# What is sampled with this probability or a higher one is not held out, nor spoken for: a sample there would speak for a ninth of a location at most, and
# the few of the very centre, which no method foretells, would drown all others.
CERTAIN = 0.9


@dataclass(frozen=True)
class Divided:
    """fold: (y, x) int64 of each sample that is held out once, from 0; -1 elsewhere. design: of the mask, with these samples alone as
    drawn. probability: (y, x). spoken_for: (y, x) bool, locations without a sample where held out ones could have been.
    draws: how many are held out."""

    fold: Tensor
    design: Design
    probability: Tensor
    spoken_for: Tensor
    draws: int


def divide(mask: Tensor, probability: Tensor | None, *, with_maps: bool, draw: Generator) -> Divided | None:
    """Of a mask (y, x): `FOLDS` folds of equal numbers of draws, at random, of what is not nearly `CERTAIN`, and not of what maps are found from.
    probability (y, x), None: estimated from the mask, whose full centre is then taken for certain. None where there are fewer draws than folds."""
    given = probability is not None
    if not given:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the caller says that it is an estimate
            probability = estimate_probability([mask])
    design = design_of(mask, probability)
    outside, silent = probability < CERTAIN, torch.zeros_like(mask, dtype=torch.bool)
    if with_maps or not given:
        kept_out = ~outside_calibration(mask[None, None], with_maps=with_maps)
        outside, silent = outside & ~kept_out, _would_join(mask, kept_out, design, with_maps=with_maps)
    there = torch.zeros_like(design.drawn)
    there[design.unit[outside]] = True
    drawn = (design.drawn & there).nonzero().flatten()
    if len(drawn) < FOLDS:
        return None
    of_draw = torch.full((len(design.drawn),), -1, dtype=torch.int64)
    of_draw[drawn[torch.randperm(len(drawn), generator=draw)]] = torch.arange(len(drawn)) % FOLDS
    spoken_for = outside & (mask == 0) & (probability > 0) & ~silent
    return Divided(
        of_draw[design.unit], replace(design, drawn=of_draw >= 0), probability.double(), spoken_for, len(drawn)
    )


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
