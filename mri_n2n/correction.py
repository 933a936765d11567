"""What a trained network needs in use that it does not in training: the correction of robust SSDU."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import OptionError
from mri_n2n.noise import noise_variance
from mri_n2n.operators import adjoint, forward
from mri_n2n.pairs import CORRECTIONS, PairOptions


def in_use(network: nn.Module, method: str | None, options: PairOptions) -> nn.Module:
    """The network as it reconstructs: corrected where its method asks for it."""
    return Corrected(network, options.extra_noise, options.correction) if method == "robust-ssdu" else network


class Corrected(nn.Module):
    """A network of robust SSDU in use (Millard and Chiew, Bioengineering 11, 2024): it learned to predict measured, noisy samples from
    further-noised ones, s~ = s + noise of variance a^2 v, so on the samples of its input its output is on the way between
    them and the truth, ((1 + a^2) f(s~) - s~) / a^2; in image space f + A^H (A f - s~) / a^2.

    correction: "noisier", as the theory has it; "measured" with s in place of s~; "none", f(s).
    """

    def __init__(self, network: nn.Module, extra_noise: float, correction: str) -> None:
        super().__init__()
        if correction not in CORRECTIONS:
            raise OptionError(f"correction must be one of {', '.join(CORRECTIONS)}; got {correction!r}")
        self.network, self.a2, self.correction = network, extra_noise**2, correction

    def forward(self, acquisition: Acquisition) -> Tensor:
        if self.correction == "none":
            return self.network(acquisition)
        if self.correction == "noisier":
            acquisition = self.noisier(acquisition)
        kspace, mask, maps = acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps
        image = self.network(acquisition)
        return image + adjoint(forward(image, mask, maps) - kspace, mask, maps) / self.a2

    def noisier(self, acquisition: Acquisition) -> Acquisition:
        """With further noise of variance a^2 v; the same for every slice, whatever is reconstructed with it."""
        kspace, variance = acquisition.kspace, noise_variance(acquisition)
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn((1, *kspace.shape[1:]), dtype=kspace.dtype, generator=draw).to(kspace.device)
        further = acquisition.mask * (self.a2 * variance).sqrt().to(acquisition.mask.dtype) * noise
        return replace(acquisition, kspace=kspace + further, noise_variance=(1 + self.a2) * variance)
