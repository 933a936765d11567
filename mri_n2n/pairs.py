"""How a training example is made: the difference between methods.

A pair maker takes acquisitions and returns (input, target, weight). A new method is one function here, one line in
`PAIR_MAKERS` and, at most, a new loss. Acquisitions are drawn in `simulation.py` or come from files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.fourier import ifft2c, mirror_axes
from mri_n2n.operators import density_weights


@dataclass(frozen=True)
class Pair:
    """input: what the network sees; target: k-space (batch, coils, y, x) or image (batch, 1, y, x), complex;
    weight: real, broadcastable to the target, 0 where the target says nothing."""

    input: Acquisition
    target: Tensor
    weight: Tensor
    domain: Literal["kspace", "image"]

    def to(self, device: torch.device | str) -> Pair:
        return Pair(self.input.to(device), self.target.to(device), self.weight.to(device), self.domain)


def noise2noise(first: Acquisition, second: Acquisition) -> Pair:
    """Weighted Noise2Noise: the samples of a second, independent acquisition, each weighted by 1 / probability."""
    return Pair(first, second.kspace, _inverse_probability(second), "kspace")


def noise2noise_2018(first: Acquisition, second: Acquisition) -> Pair:
    """Lehtinen et al. 2018, section 3.4: the target is the second zero-filled image, its samples divided by p."""
    return Pair(first, ifft2c(_inverse_probability(second) * second.kspace), _one(first), "image")


def supervised(first: Acquisition, full: Acquisition) -> Pair:
    """The fully sampled k-space as target: what training without references is compared with."""
    return Pair(first, full.kspace, _one(first), "kspace")


def supervised_2018(first: Acquisition, full: Acquisition) -> Pair:
    """The same for the 2018 recipe: the clean image as target."""
    return Pair(first, ifft2c(full.kspace), _one(first), "image")


# (recipe, targets) -> pair maker
PAIR_MAKERS: dict[tuple[str, str], Callable[[Acquisition, Acquisition], Pair]] = {
    ("default", "undersampled"): noise2noise,
    ("default", "clean"): supervised,
    ("noise2noise-2018", "undersampled"): noise2noise_2018,
    ("noise2noise-2018", "clean"): supervised_2018,
}


def translate(acquisition: Acquisition, shift: tuple[int, int]) -> Acquisition:
    """Shift the object, and the coils with it, by (y, x) pixels, cyclically, as phase ramps: samples stay as measured."""
    *_, y, x = acquisition.kspace.shape
    ramp = _ramp(y, shift[0])[:, None] * _ramp(x, shift[1])[None, :]
    maps = acquisition.sensitivity_maps
    moved = None if maps is None else maps.roll(shift, (-2, -1))
    return replace(acquisition, kspace=acquisition.kspace * ramp, sensitivity_maps=moved)


def flip(acquisition: Acquisition, axes: tuple[int, ...]) -> Acquisition:
    """Mirror the object, and the coils with it, about the centre pixel of `axes` (-2: y, -1: x): k-space is mirrored,
    every sample as it was measured."""
    return _turned(acquisition, lambda value: mirror_axes(value, axes))


def transpose(acquisition: Acquisition) -> Acquisition:
    """Exchange y and x of the object, the coils and k-space."""
    return _turned(acquisition, lambda value: value.mT.contiguous())


def _turned(acquisition: Acquisition, turn: Callable[[Tensor], Tensor]) -> Acquisition:
    names = ("kspace", "mask", "probability", "sensitivity_maps")
    found = {name: value for name in names if (value := getattr(acquisition, name)) is not None}
    return replace(acquisition, **{name: turn(value) for name, value in found.items()})


def _ramp(size: int, shift: int) -> Tensor:
    k = torch.arange(size, dtype=torch.float64) - size // 2
    angle = torch.remainder(k * shift, size) * (-2 * torch.pi / size)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def _one(acquisition: Acquisition) -> Tensor:
    return acquisition.mask.new_ones(())


def _inverse_probability(acquisition: Acquisition) -> Tensor:
    if acquisition.probability is None:
        raise ValueError("the weights of a Noise2Noise target need the sampling probability of its acquisition")
    return density_weights(acquisition.mask, acquisition.probability)
