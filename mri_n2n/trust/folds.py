"""The samples of a single scan, held out in turn: whole draws of its mask, points or lines, divided into folds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from mri_n2n.density import estimate_probability
from mri_n2n.regularisation import outside_calibration
from mri_n2n.trust.design import Design, design_of

FOLDS = 10


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
    """Of a mask (y, x): `FOLDS` folds of equal numbers of draws, at random, outside the full centre and outside of what maps are
    found from. probability (y, x), None: estimated from the mask. None where there are fewer draws than folds."""
    if probability is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the caller says that it is an estimate
            probability = estimate_probability([mask])
    design = design_of(mask, probability)
    outside = outside_calibration(mask[None, None], with_maps=with_maps) & (probability < 1)
    there = torch.zeros_like(design.drawn)
    there[design.unit[outside]] = True
    drawn = (design.drawn & there).nonzero().flatten()
    if len(drawn) < FOLDS:
        return None
    of_draw = torch.full((len(design.drawn),), -1, dtype=torch.int64)
    of_draw[drawn[torch.randperm(len(drawn), generator=draw)]] = torch.arange(len(drawn)) % FOLDS
    spoken_for = outside & (mask == 0) & (probability > 0)
    return Divided(
        of_draw[design.unit], replace(design, drawn=of_draw >= 0), probability.double(), spoken_for, len(drawn)
    )
