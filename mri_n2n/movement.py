"""Moving the object of an acquisition: its k-space changes as the object moves, its samples stay as they were measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.fourier import mirror_axes


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
