"""Training pairs before they are trained on: do repetitions show the same object, with one gain and phase, in one place?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import InputError
from mri_n2n.sources import Source, Split
from mri_n2n.trust.agreement import Agreement, agreement, faint

# What differs by more is another measurement, and no repetition.
GAIN_AT_MOST, SHIFT_AT_MOST = 1.25, 2.0

# (repetition, slice) -> what is to be taken away of it.
Corrections = dict[tuple[int, int], Agreement]


@dataclass(frozen=True)
class PairCheck:
    """sources: those to train on, corrected. checked: pairs of slices, corrected: how many of them, untold: of how many too few samples
    are in common to tell, or nothing but noise is in them. left_out: of each scan that is left out, its name and why."""

    sources: list[Source]
    checked: int
    corrected: int
    untold: int
    left_out: list[str]

    @property
    def summary(self) -> str:
        """In a line."""
        said = f"{self.checked} pairs of slices checked, {self.corrected} corrected"
        if self.untold:
            said += f", {self.untold} with too few common samples, or too little in them, to tell"
        return said + (f"; left out: {'; '.join(self.left_out)}" if self.left_out else "")


def checked_split(split: Split) -> tuple[Split, PairCheck]:
    """The split without what `check_pairs` leaves out, the rest corrected. Errors: InputError where nothing is left to train on."""
    check = check_pairs([*split.train, *split.validation])
    kept = {source.name: source for source in check.sources}
    train, validation = ([kept[s.name] for s in part if s.name in kept] for part in (split.train, split.validation))
    if not train:
        raise InputError(f"no training pair of repetitions shows the same object: {'; '.join(check.left_out[:3])}")
    return Split(train, validation, split.rule), check


def check_pairs(sources: Sequence[Source]) -> PairCheck:
    """Compare the repetitions of each source with its first, slice by slice; one source in memory at a time.

    Where gain, phase or place differ beyond chance (see `agreement`) they are corrected in k-space, samples staying where they were
    measured; a source with a gain beyond 1.25, a shift beyond 2 pixels or a turn, which samples that stay cannot follow, is left out. A noise level that was told is divided by the gain squared.
    """
    kept, left_out, checked, corrected, untold = [], [], 0, 0, 0
    for source in sources:
        corrections, why = {}, None
        first, *others = source.load()
        # Of most slices: a spike in one does not make the others faint.
        largest = first.kspace.abs().flatten(1).amax(dim=1).quantile(0.75, interpolation="lower").item()
        for number, other in enumerate(others, start=1):
            for index in range(len(first.kspace)):
                both = first.kspace[index], other.kspace[index]
                found = Agreement() if faint(*both, largest) else agreement(*both, _common(first, other, index))
                checked, untold = checked + 1, untold + (not found.told)
                if found.differences:
                    corrections[number, index] = found
                    why = why or _too_much(found, number, index)
        if why is None:
            corrected += len(corrections)
            kept.append(replace(source, load=partial(_corrected, source.load, corrections)) if corrections else source)
        else:
            left_out.append(f"{source.name} ({why})")
    return PairCheck(kept, checked, corrected, untold, left_out)


def _common(first: Acquisition, other: Acquisition, index: int) -> Tensor:
    masks = [one.mask[index if len(one.mask) > 1 else 0, 0] for one in (first, other)]
    return masks[0] * masks[1]


def _too_much(found: Agreement, number: int, index: int) -> str | None:
    beyond = not 1 / GAIN_AT_MOST <= found.gain <= GAIN_AT_MOST or max(map(abs, found.shift)) > SHIFT_AT_MOST
    beyond |= found.is_turned
    return f"repetition {number + 1}, slice {index}: {' and '.join(found.differences)}" if beyond else None


def _corrected(load: Callable[[], list[Acquisition]], corrections: Corrections) -> list[Acquisition]:
    acquisitions = list(load())
    for (number, index), found in corrections.items():
        one = acquisitions[number]
        kspace, variance = one.kspace.clone(), one.noise_variance
        kspace[index] = undone(kspace[index], found)
        if variance is not None:  # of each slice from now on
            variance = torch.as_tensor(variance, dtype=torch.float32).expand(len(kspace), 1, 1, 1).clone()
            variance[index] /= found.gain**2
        acquisitions[number] = replace(one, kspace=kspace, noise_variance=variance)
    return acquisitions


def undone(kspace: Tensor, found: Agreement) -> Tensor:
    """K-space (coils, y, x) without the gain, phase and shift (any fraction of a pixel) that it was found to have."""
    y, x = kspace.shape[-2:]
    ky, kx = ((torch.arange(n, dtype=torch.float64) - n // 2) / n for n in (y, x))
    angle = 2 * torch.pi * (ky[:, None] * found.shift[0] + kx[None, :] * found.shift[1]) - found.phase
    return kspace * (torch.polar(torch.ones_like(angle), angle) / found.gain).to(kspace.dtype)
