"""Networks that turn an acquisition into an image: the 2018 U-Net, and an unrolled cascade of small U-Nets.

To add a network: a module whose forward takes an `Acquisition` and returns images (batch, 1, y, x) complex64 on the
acquisition's scale, whose `puts_samples_back` says whether their samples are the measured ones, and one line in `NETWORKS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mri_n2n.acquisition import Acquisition
from mri_n2n.channels import as_channels, as_complex
from mri_n2n.denoising.networks import build_body
from mri_n2n.errors import OptionError
from mri_n2n.fastmri_networks import FastMRIUNet, FastMRIVarNet
from mri_n2n.fourier import ifft2c
from mri_n2n.masks import radius
from mri_n2n.noise import noise_variance
from mri_n2n.operators import adjoint, complex_scale, data_consistency, density_weights
from mri_n2n.unet import DoublingUNet, UNet

# The largest ratio of noise to error variance: a sample keeps at least a tenth of its word, and six steps of conjugate
# gradients suffice.
MOST_NOISE = 9.0


class UNet2018(nn.Module):
    """The 2018 recipe: a U-Net on the zero-filled image whose samples are divided by their probability.

    The output's measured frequencies are replaced by the samples as measured, not divided by p, before the loss and
    in use. complex_images: two channels instead of one; else only the real part is seen. It sees intensities as in
    training (volume maximum 1; real images shifted by -0.5), so an input on another scale must be brought there first.
    """

    def __init__(self, channels: int = 48, complex_images: bool = False) -> None:
        super().__init__()
        self.unet = UNet(1 + complex_images, 1 + complex_images, channels)
        self.complex_images = complex_images

    def puts_samples_back(self, acquisition: Acquisition) -> bool:
        return True

    def forward(self, acquisition: Acquisition) -> Tensor:
        if acquisition.probability is None:
            raise ValueError(
                "the 2018 recipe divides its input by the sampling probability, and this scan has none; use the unrolled network"
            )
        mask, probability = acquisition.mask, acquisition.probability
        x = ifft2c(density_weights(mask, probability) * acquisition.kspace)
        if self.complex_images:
            x = as_complex(self.unet(as_channels(x)))
        else:
            x = torch.complex(self.unet(x.real - 0.5).float() + 0.5, torch.zeros_like(x.real))
        return data_consistency(x, acquisition.kspace, mask)


class Unrolled(nn.Module):
    """Cascades of a small residual U-Net, each followed by data consistency (after Schlemper et al., IEEE TMI 37, 2018).

    It sees the zero-filled image A^H s, the mask and the level of the noise, never the sampling probability. consistency:
    "soft" trusts samples as far as their noise allows: v / v_f, v the noise variance of the scan (where it is not known what
    the outermost samples say of it) and v_f the learned error variance of the cascade's image, a power of the distance
    from the k-space centre; without noise, and with "hard", samples are put back as measured. memory: feature channels
    that each cascade hands on to the next. unet: "doubling", or "flat", that of 2018. An input scaled by a complex constant gives the output scaled by it. Samples
    that are conjugate-symmetric to rounding are of a real image: so is the output then.
    """

    checkpointing = False  # of activations, in training

    def __init__(
        self,
        cascades: int = 5,
        channels: int = 16,
        levels: int = 4,
        consistency: str = "soft",
        memory: int = 0,
        unet: str = "doubling",
    ) -> None:
        super().__init__()
        if consistency not in ("hard", "soft"):
            raise OptionError(f"consistency must be hard or soft; got {consistency!r}")
        if not 1 <= cascades <= 100:
            raise OptionError(f"an unrolled network has 1 to 100 cascades; got {cascades}")
        if not 0 <= memory <= 4096:
            raise OptionError(f"a cascade hands on 0 to 4096 channels; got {memory}")
        soft = consistency == "soft"
        self.memory = memory
        if unet not in ("doubling", "flat"):
            raise OptionError(f"unet must be doubling or flat; got {unet!r}")
        self.unets = nn.ModuleList(
            (DoublingUNet if unet == "doubling" else UNet)(
                2 + soft + memory * (c > 0), 2 + memory * (c < cascades - 1), channels, levels
            )
            for c in range(cascades)
        )
        for one in self.unets:
            last = one.last if unet == "doubling" else one.last[-1]
            nn.init.zeros_(last.weight[:2])  # every cascade starts as the identity
        # log v_f of the image scaled to 1, at the centre of k-space and its change to the edge
        self.error = nn.Parameter(torch.full((cascades, 2), -4.0)) if soft else None

    def forward(self, acquisition: Acquisition) -> Tensor:
        kspace, mask, maps = acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps
        zero_filled = adjoint(kspace, mask, maps)
        scale = complex_scale(zero_filled).detach()  # nothing trains through the input
        image = zero_filled = zero_filled / scale
        measured = Measurement(
            samples=kspace / scale if maps is None else None,  # with maps the zero-filled image says all
            mask=mask,
            maps=maps,
            zero_filled=zero_filled,
            # Outside the support of the maps nothing is measured and nothing is said.
            support=1.0 if maps is None else (maps != 0).any(dim=1, keepdim=True),
            noise_variance=None
            if self.error is None
            else (noise_variance(acquisition) / scale.abs().double().square()).float().detach(),
        )
        real = image.imag.abs().amax(dim=(1, 2, 3), keepdim=True) <= 1e-5
        memory = None
        for number in range(len(self.unets)):
            if self.checkpointing and torch.is_grad_enabled():
                image, memory = checkpoint(self.cascade, number, image, memory, measured, use_reentrant=False)
            else:
                image, memory = self.cascade(number, image, memory, measured)
        return torch.where(real, image.real.to(image.dtype), image) * scale

    def puts_samples_back(self, acquisition: Acquisition) -> bool:
        """Whether A f(s) = s, to rounding: one coil, no noise."""
        return acquisition.sensitivity_maps is None and (
            self.error is None or not noise_variance(acquisition).any().item()
        )

    def cascade(
        self, number: int, image: Tensor, memory: Tensor | None, measured: Measurement
    ) -> tuple[Tensor, Tensor | None]:
        """One U-Net and its data consistency: image (batch, 1, y, x) and memory, from those before."""
        seen, ratio = [as_channels(image)], 0.0
        if self.error is not None:
            seen.append(measured.noise_variance.sqrt().clamp_max(1).expand_as(image))
            ratio = self.noise_to_error(number, measured)
        if memory is not None:
            seen.append(memory)
        out = self.unets[number](torch.cat(seen, dim=1))
        image = measured.support * (image + as_complex(out[:, :2]))
        image = data_consistency(
            image,
            measured.samples,
            measured.mask,
            measured.maps,
            zero_filled=measured.zero_filled,
            noise_to_error=ratio,
        )
        if measured.maps is not None:  # noise by frequency is no matter of single pixels: it reaches outside
            image = measured.support * image
        return image, out[:, 2:] if self.memory else None

    def noise_to_error(self, number: int, measured: Measurement) -> Tensor | float:
        """v / v_f by spatial frequency (batch, 1, y, x), at most `MOST_NOISE`; the number 0 without noise."""
        if not measured.noise_variance.any():
            return 0.0
        center, change = self.error[number]
        distance = radius(tuple(measured.mask.shape[-2:])).to(measured.noise_variance)
        return (measured.noise_variance * torch.exp(-center - change * distance)).clamp_max(MOST_NOISE)


class Denoiser(nn.Module):
    """A network on the image of a fully sampled scan, A^H s, without data consistency: of noise and other corruption, samples
    are not to be trusted, and what Noise2Void says of a pixel must not come from it.

    body: of `denoising.networks.BODIES`. span: see `denoising.networks.Neighbours`. An input scaled by a complex constant gives the output scaled by it; a real image
    gives a real one.
    """

    def __init__(self, body: str = "n2v2", channels: int = 32, span: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.body = build_body(body, 2, channels, span)

    def puts_samples_back(self, acquisition: Acquisition) -> bool:
        return False

    def forward(self, acquisition: Acquisition) -> Tensor:
        image = adjoint(acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps)
        phase = complex_scale(image)
        size = image.abs().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()  # one bright pixel does not change it much
        scale = (phase / phase.abs() * torch.where(size > 0, size, 1.0)).detach()
        image = image / scale
        real = image.imag.abs().amax(dim=(1, 2, 3), keepdim=True) <= 1e-4
        cleaned = as_complex(self.body(as_channels(image)))
        return torch.where(real, cleaned.real.to(cleaned.dtype), cleaned) * scale


@dataclass(frozen=True)
class Measurement:
    """What the cascades of one forward pass share, on the scale of the network. noise_variance: (batch, 1, 1, 1)."""

    samples: Tensor | None
    mask: Tensor
    maps: Tensor | None
    zero_filled: Tensor
    support: Tensor | float
    noise_variance: Tensor | None


NETWORKS: dict[str, type[nn.Module]] = {
    "unrolled": Unrolled,
    "unet": UNet2018,
    "fastmri-varnet": FastMRIVarNet,
    "fastmri-unet": FastMRIUNet,
    "denoiser": Denoiser,
}
