"""Networks that turn an acquisition into an image: the 2018 U-Net, and an unrolled cascade of small U-Nets.

To add a network: a module whose forward takes an `Acquisition` and returns images (batch, 1, y, x) complex64 on the
acquisition's scale, and one line in `NETWORKS`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import OptionError
from mri_n2n.fourier import ifft2c
from mri_n2n.operators import adjoint, data_consistency, density_weights


class UNet(nn.Module):
    """The U-Net of Lehtinen et al. 2018 (appendix, table 2): (batch, in, y, x) -> (batch, out, y, x), any size.

    `channels` in the encoder, twice as many in the decoder, five levels, leaky ReLU 0.1, max-pooling, nearest
    upsampling, a linear last layer, He initialisation.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: int = 48, levels: int = 5) -> None:
        super().__init__()
        if not (1 <= channels <= 4096 and 1 <= levels <= 10):
            raise OptionError(f"a U-Net has 1 to 4096 channels and 1 to 10 levels; got {channels} and {levels}")
        widths = [in_channels] + [channels] * (levels + 1)
        self.first = _conv(in_channels, channels)
        self.encoder = nn.ModuleList(_conv(channels, channels) for _ in range(levels + 1))
        self.decoder = nn.ModuleList()
        deep = channels
        for level in range(levels - 1, 0, -1):
            self.decoder.append(
                nn.ModuleList((_conv(deep + widths[level], 2 * channels), _conv(2 * channels, 2 * channels)))
            )
            deep = 2 * channels
        wide, narrow = (max(8, 8 * round(channels / n)) for n in (6, 12))  # 64 and 32 for 48
        self.last = nn.ModuleList((_conv(deep + in_channels, wide), _conv(wide, narrow), _conv(narrow, out_channels)))
        self.multiple = 2**levels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.1, nonlinearity="leaky_relu")
                nn.init.zeros_(module.bias)
        nn.init.kaiming_normal_(self.last[-1].weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        y_size, x_size = x.shape[-2:]
        # The input is a skip too: in another type or layout it would have the whole last level converted.
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x = F.pad(x, (0, -x_size % self.multiple, 0, -y_size % self.multiple), mode="replicate")
        if self.first.weight.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        skips = [x]
        x = _activate(self.first(x))
        for level, conv in enumerate(self.encoder):
            x = _activate(conv(x))
            if level < len(self.encoder) - 1:
                x = F.max_pool2d(x, 2)
                skips.append(x)
        skips.pop()  # the deepest pooled map is the input of the last encoder convolution, not a skip
        for first, second in self.decoder:
            x = torch.cat((_upsample(x), skips.pop()), dim=1)
            x = _activate(second(_activate(first(x))))
        x = torch.cat((_upsample(x), skips.pop()), dim=1)
        x = self.last[2](_activate(self.last[1](_activate(self.last[0](x)))))
        return x[..., :y_size, :x_size]


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

    def forward(self, acquisition: Acquisition) -> Tensor:
        if acquisition.probability is None:
            raise ValueError(
                "the 2018 recipe divides its input by the sampling probability, and this scan has none; use the unrolled network"
            )
        mask, probability = acquisition.mask, acquisition.probability
        x = ifft2c(density_weights(mask, probability) * acquisition.kspace)
        if self.complex_images:
            x = _to_complex(self.unet(_to_real(x)))
        else:
            x = torch.complex(self.unet(x.real - 0.5).float() + 0.5, torch.zeros_like(x.real))
        return data_consistency(x, acquisition.kspace, mask)


class Unrolled(nn.Module):
    """Cascades of a small residual U-Net, each followed by data consistency (after Schlemper et al., IEEE TMI 37, 2018).

    It sees the zero-filled image A^H s and the mask, never the sampling probability. consistency: "hard" puts samples
    back as measured; "soft" trusts them by a learned share (data-consistency weight) per cascade, for noise. An input scaled by a complex
    constant gives the output scaled by it. Samples that are conjugate-symmetric to rounding are of a real image: so is
    the output then.
    """

    def __init__(self, cascades: int = 5, channels: int = 16, levels: int = 4, consistency: str = "hard") -> None:
        super().__init__()
        if consistency not in ("hard", "soft"):
            raise OptionError(f"consistency must be hard or soft; got {consistency!r}")
        if not 1 <= cascades <= 100:
            raise OptionError(f"an unrolled network has 1 to 100 cascades; got {cascades}")
        self.unets = nn.ModuleList(UNet(2, 2, channels, levels) for _ in range(cascades))
        for unet in self.unets:
            nn.init.zeros_(unet.last[-1].weight)  # every cascade starts as the identity
        self.trust = nn.Parameter(torch.full((cascades,), 3.0)) if consistency == "soft" else None

    def forward(self, acquisition: Acquisition) -> Tensor:
        kspace, mask, maps = acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps
        zero_filled = adjoint(kspace, mask, maps)
        scale = _scale(zero_filled)
        image = zero_filled = zero_filled / scale
        samples = kspace / scale if maps is None else None  # with maps the zero-filled image says all
        # Outside the support of the maps nothing is measured and nothing is said.
        support = 1.0 if maps is None else (maps != 0).any(dim=1, keepdim=True)
        real = image.imag.abs().amax(dim=(1, 2, 3), keepdim=True) <= 1e-5
        for cascade, unet in enumerate(self.unets):
            image = support * (image + _to_complex(unet(_to_real(image))))
            trust = 1.0 if self.trust is None else torch.sigmoid(self.trust[cascade])
            image = data_consistency(image, samples, mask, maps, zero_filled=zero_filled, trust=trust)
        return torch.where(real, image.real.to(image.dtype), image) * scale


NETWORKS: dict[str, type[nn.Module]] = {"unrolled": Unrolled, "unet": UNet2018}


def _scale(image: Tensor) -> Tensor:
    """A complex number per batch item with the image's largest magnitude and its mean phase, (batch, 1, 1, 1)."""
    magnitude = image.abs()
    largest = magnitude.amax(dim=(1, 2, 3), keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    mean = (image / largest * (magnitude / largest)).sum(dim=(1, 2, 3), keepdim=True)
    phase = torch.where(mean.abs() > 0, mean / mean.abs(), 1.0)
    return largest * phase


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1, inplace=True)


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _to_real(image: Tensor) -> Tensor:
    return torch.cat((image.real, image.imag), dim=1)


def _to_complex(channels: Tensor) -> Tensor:
    real, imaginary = channels.float().chunk(2, dim=1)
    return torch.complex(real, imaginary)
