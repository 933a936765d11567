"""The error of a network's images while it trains, where nobody has a reference: from the further repetitions of the slices."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import InputError
from mri_n2n.operators import forward
from mri_n2n.trust.design import EQUIDISTANT, Design, design_of
from mri_n2n.trust.error_estimate import Level, Terms, estimate, level_of_two, psnr_of, terms_of

# Scans of repetitions are scaled so that the largest magnitude of the zero-filled image of all of them together is this.
PEAK = 1.0


@dataclass(frozen=True)
class HeldOut:
    """What there is to judge the images of some slices by.

    others: of each slice its acquisitions (1, coils, y, x) that have no part in its image. masks: of each of them the name of its mask's design.
    variances: of each E|n|^2 of a sample, a number or (coils or 1, 1, 1); zero where `noise`, which says where they are from, is None: errors
    include noise then. doubt: see `Level`, of the mean over all slices. coverage: the share of k-space that could be sampled.
    """

    others: list[tuple[Acquisition, ...]]
    masks: list[tuple[str, ...]]
    designs: dict[str, Design]
    variances: list[tuple[Tensor | float, ...]]
    noise: str | None
    doubt: float
    pixels: int
    coverage: float

    def terms(self, number: int, image: Tensor, maps: Tensor | None) -> dict[str, Terms]:
        """Of the image (1, 1, y, x) of a slice, by the name of the mask."""
        found: dict[str, Terms] = {}
        others = self.others[number]
        for name, other, variance in zip(self.masks[number], others, self.variances[number], strict=True):
            residual = forward(image, other.mask, maps) - other.kspace
            one = terms_of(residual[0], other.mask[0, 0], variance).times(1 / len(others))
            found[name] = found[name] + one if name in found else one
        return found

    def quality(self, terms: dict[str, Terms]) -> dict[str, float | None]:
        """`mse` and `psnr`, or `error_with_noise`, each with the ends `_low` and `_high` of its interval, of the terms of all
        slices; None: infinite."""
        mse = estimate([(terms[name], self.designs[name]) for name in terms], self.pixels, self.doubt)
        named = {"error_with_noise": mse} if self.noise is None else {"psnr": psnr_of(mse, PEAK), "mse": mse}
        values = {
            name + end: value
            for name, one in named.items()
            for end, value in (("", one.value), ("_low", one.low), ("_high", one.high))
        }
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    @property
    def words(self) -> str:
        """How the error is found, in a line."""
        noise = f"noise {self.noise}" if self.noise else "including its noise, whose level is not known"
        where = "" if self.coverage == 1 else f", of the {self.coverage:.1%} of k-space where samples could be"
        return f"error of {len(self.others)} slices from further repetitions, {noise}{where}"


def held_out(scans: Sequence[str], others: Sequence[tuple[Acquisition, ...]]) -> HeldOut:
    """Of slices, each with one or two acquisitions that have no part in its image, and the name of its scan.

    Where a scan does not say its noise, half the mean squared difference of the two does. Errors: InputError for masks from which no
    interval can be told: lines at equal distances.
    """
    designs: dict[str, Design] = {}
    masks, pixels, covered = [], 0, 0.0
    for several in others:
        names = []
        for one in several:
            mask, chance = one.mask[0, 0], one.probability[0, 0]
            name = hashlib.sha256(mask.numpy().tobytes() + chance.numpy().tobytes() + repr(mask.shape).encode())
            names.append(name.hexdigest()[:32])
            if names[-1] not in designs:
                designs[names[-1]] = design_of(mask, chance)
                if designs[names[-1]].equidistant:
                    raise InputError(EQUIDISTANT)
            covered += (chance > 0).double().sum().item() / len(several)
        masks.append(tuple(names))
        pixels += mask.numel()
    sizes = Counter({scan: 0 for scan in scans})
    for scan, several in zip(scans, others):
        sizes[scan] += several[0].mask.numel()
    noise, doubt = "as the scans say", 0.0
    variances = [tuple(_stated(one) for one in several) for several in others]
    for scan in sizes:
        of_scan = [number for number, name in enumerate(scans) if name == scan]
        if all(variance is not None for number in of_scan for variance in variances[number]):
            continue
        level = _level([others[number] for number in of_scan])
        if level is None:
            variances = [(0.0,) * len(several) for several in others]
            return HeldOut(list(others), masks, designs, variances, None, 0.0, pixels, covered / pixels)
        noise, doubt = "from the difference of two", doubt + (sizes[scan] / pixels) ** 2 * level.doubt
        for number in of_scan:
            variances[number] = (level.variance,) * len(others[number])
    return HeldOut(list(others), masks, designs, variances, noise, doubt, pixels, covered / pixels)


def _stated(one: Acquisition) -> Tensor | float | None:
    variance = one.noise_variance
    return variance.reshape(1, 1, 1) if isinstance(variance, Tensor) else variance


def _level(slices: Sequence[tuple[Acquisition, ...]]) -> Level | None:
    """The noise of a scan, from two acquisitions of its slices; None without two, and where they have few samples in common."""
    if any(len(several) < 2 for several in slices):
        return None
    differences = []
    for second, third in slices:
        both = (second.mask * third.mask)[0, 0] > 0
        differences.append((second.kspace - third.kspace)[0][:, both])
    return level_of_two(differences)
