"""fastMRI's networks on an `Acquisition`, as peers."""

from __future__ import annotations

import cmath
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import OptionError
from mri_n2n.operators import adjoint, complex_scale

# fastMRI's normalisation brings real and imaginary part to unit variance each, however small one of them is: images come to it
# with a mean phase of 45 degrees, where both parts of a real image have the same.
TURNED = cmath.exp(-0.25j * cmath.pi)


class FastMRIVarNet(nn.Module):
    """fastMRI's end-to-end variational network (Sriram et al., MICCAI 2020): its cascades of a normalised U-Net, with the
    sensitivity maps of the scan's own centre in place of its network for them, and the complex image as output."""

    def __init__(self, cascades: int = 8, channels: int = 18, levels: int = 4) -> None:
        super().__init__()
        from fastmri.models.varnet import NormUnet, VarNetBlock  # here: it takes a second to import

        _check_sizes(cascades, channels, levels)
        self.levels = levels
        self.cascades = nn.ModuleList(VarNetBlock(NormUnet(channels, levels)) for _ in range(cascades))

    def puts_samples_back(self, acquisition: Acquisition) -> bool:
        return False

    def forward(self, acquisition: Acquisition) -> Tensor:
        return _where_signal(self, self.of_signal, acquisition)

    def of_signal(self, acquisition: Acquisition) -> Tensor:
        kspace, mask, maps = acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps
        maps = torch.ones_like(kspace) if maps is None else maps
        scale = TURNED * complex_scale(adjoint(kspace, mask, maps))
        measured, maps = torch.view_as_real(kspace / scale), torch.view_as_real(maps)
        sampled, current = mask[..., None] > 0, measured
        for cascade in self.cascades:
            current = cascade(current, measured, sampled, maps)
        return torch.view_as_complex(self.cascades[0].sens_reduce(current, maps).float().contiguous()) * scale


class FastMRIUNet(nn.Module):
    """fastMRI's U-Net (Zbontar et al. 2018) on real and imaginary part of the zero-filled image, normalised as its
    variational network's; no data consistency."""

    def __init__(self, channels: int = 32, levels: int = 4) -> None:
        super().__init__()
        from fastmri.models.varnet import NormUnet

        _check_sizes(1, channels, levels)
        self.levels = levels
        self.unet = NormUnet(channels, levels)

    def puts_samples_back(self, acquisition: Acquisition) -> bool:
        return False

    def forward(self, acquisition: Acquisition) -> Tensor:
        return _where_signal(self, self.of_signal, acquisition)

    def of_signal(self, acquisition: Acquisition) -> Tensor:
        image = adjoint(acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps)
        scale = TURNED * complex_scale(image)
        return torch.view_as_complex(self.unet(torch.view_as_real(image / scale)).float().contiguous()) * scale


def _check_sizes(cascades: int, channels: int, levels: int) -> None:
    if not (1 <= cascades <= 100 and 1 <= channels <= 4096 and 1 <= levels <= 10):
        raise OptionError(
            f"a network has 1 to 100 cascades, 1 to 4096 channels, 1 to 10 levels; got {cascades}, {channels}, {levels}"
        )


def _where_signal(network: nn.Module, run: Callable[[Acquisition], Tensor], acquisition: Acquisition) -> Tensor:
    """fastMRI's normalisation divides by the standard deviation of an image: of empty slices the result is zero, without it.
    OptionError for images too small for it, one pixel at the deepest level."""
    batch, _, y, x = acquisition.kspace.shape
    deepest = [(-(-n // 16) * 16) >> network.levels for n in (y, x)]  # it pads to multiples of 16
    if min(deepest) < 1 or max(deepest) == 1:
        raise OptionError(f"images of {y}x{x} are too small for a fastMRI network of {network.levels} levels")
    filled = acquisition.kspace.flatten(1).any(dim=1)
    if filled.all():
        return run(acquisition)
    none = sum(0.0 * parameter.sum() for parameter in network.parameters())  # a gradient of zero has to be one
    images = none + acquisition.kspace.new_zeros((batch, 1, y, x))
    if filled.any():
        images[filled] = run(acquisition.slices(filled.nonzero()[:, 0]))
    return images
