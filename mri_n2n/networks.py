"""Networks that turn an acquisition into an image: the 2018 U-Net, and an unrolled cascade of small U-Nets.

To add a network: a module whose forward takes an `Acquisition` and returns images (batch, 1, y, x) complex64 on the
acquisition's scale, and one line in `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import OptionError
from mri_n2n.fourier import ifft2c
from mri_n2n.masks import radius
from mri_n2n.noise import noise_variance
from mri_n2n.operators import adjoint, data_consistency, density_weights

# The largest ratio of noise to error variance: a sample keeps at least a tenth of its word, and six steps of conjugate
# gradients suffice.
MOST_NOISE = 9.0


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
        _initialise(self)
        nn.init.kaiming_normal_(self.last[-1].weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        y_size, x_size = x.shape[-2:]
        x = _prepared(x, self.multiple, self.first.weight)
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


class DoublingUNet(nn.Module):
    """A U-Net (batch, in, y, x) -> (batch, out, y, x), any size, whose channels double with depth up to four times.

    Two convolutions a level, `levels` halvings; like `UNet` otherwise. Depth is cheap: what fine levels cost in pixels, deep
    ones spend on channels, which processors multiply faster.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: int = 16, levels: int = 4) -> None:
        super().__init__()
        if not (1 <= channels <= 1024 and 1 <= levels <= 10):
            raise OptionError(f"a U-Net has 1 to 1024 channels and 1 to 10 levels; got {channels} and {levels}")
        widths = [channels * min(2**level, 4) for level in range(levels + 1)]
        self.encoder = nn.ModuleList(
            nn.ModuleList((_conv(before, width), _conv(width, width)))
            for before, width in zip([in_channels, *widths], widths)
        )
        self.decoder = nn.ModuleList(
            nn.ModuleList((_conv(below + width, width), _conv(width, width)))
            for below, width in zip(widths[:0:-1], widths[-2::-1])
        )
        self.last = _conv(channels, out_channels)
        self.multiple = 2**levels
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        y_size, x_size = x.shape[-2:]
        x, skips = _prepared(x, self.multiple, self.last.weight), []
        for level, convolutions in enumerate(self.encoder):
            if level:
                skips.append(x)
                x = F.max_pool2d(x, 2)
            for convolution in convolutions:
                x = _activate(convolution(x))
        for convolutions in self.decoder:
            x = torch.cat((_upsample(x), skips.pop()), dim=1)
            for convolution in convolutions:
                x = _activate(convolution(x))
        return self.last(x)[..., :y_size, :x_size]


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
        self.error = nn.Parameter(torch.tensor([-4.0, -4.0]).repeat(cascades, 1)) if soft else None

    def forward(self, acquisition: Acquisition) -> Tensor:
        kspace, mask, maps = acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps
        zero_filled = adjoint(kspace, mask, maps)
        scale = _scale(zero_filled).detach()  # the output goes with it, whatever it is
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

    def cascade(
        self, number: int, image: Tensor, memory: Tensor | None, measured: Measurement
    ) -> tuple[Tensor, Tensor | None]:
        """One U-Net and its data consistency: image (batch, 1, y, x) and memory, from those before."""
        seen, ratio = [_to_real(image)], 0.0
        if self.error is not None:
            seen.append(measured.noise_variance.sqrt().clamp_max(1).expand_as(image))
            ratio = self.noise_to_error(number, measured)
        if memory is not None:
            seen.append(memory)
        out = self.unets[number](torch.cat(seen, dim=1))
        image = measured.support * (image + _to_complex(out[:, :2]))
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


@dataclass(frozen=True)
class Measurement:
    """What the cascades of one forward pass share, on the scale of the network. noise_variance: (batch, 1, 1, 1)."""

    samples: Tensor | None
    mask: Tensor
    maps: Tensor | None
    zero_filled: Tensor
    support: Tensor | float
    noise_variance: Tensor | None


class FastMRIVarNet(nn.Module):
    """fastMRI's end-to-end variational network (Sriram et al., MICCAI 2020): its cascades of a normalised U-Net, with the
    sensitivity maps of the scan's own centre in place of its network for them, and the complex image as output."""

    def __init__(self, cascades: int = 8, channels: int = 18, levels: int = 4) -> None:
        super().__init__()
        from fastmri.models.varnet import NormUnet, VarNetBlock  # here: it takes a second to import

        _check_sizes(cascades, channels, levels)
        self.levels = levels
        self.cascades = nn.ModuleList(VarNetBlock(NormUnet(channels, levels)) for _ in range(cascades))

    def forward(self, acquisition: Acquisition) -> Tensor:
        return _where_signal(self, self.of_signal, acquisition)

    def of_signal(self, acquisition: Acquisition) -> Tensor:
        kspace, mask, maps = acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps
        maps = torch.ones_like(kspace) if maps is None else maps
        scale = _scale(adjoint(kspace, mask, maps))
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

    def forward(self, acquisition: Acquisition) -> Tensor:
        return _where_signal(self, self.of_signal, acquisition)

    def of_signal(self, acquisition: Acquisition) -> Tensor:
        image = adjoint(acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps)
        scale = _scale(image)
        return torch.view_as_complex(self.unet(torch.view_as_real(image / scale)).float().contiguous()) * scale


NETWORKS: dict[str, type[nn.Module]] = {
    "unrolled": Unrolled,
    "unet": UNet2018,
    "fastmri-varnet": FastMRIVarNet,
    "fastmri-unet": FastMRIUNet,
}


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


def _scale(image: Tensor) -> Tensor:
    """A complex number per batch item with the image's largest magnitude and its mean phase, (batch, 1, 1, 1)."""
    magnitude = image.abs()
    largest = magnitude.amax(dim=(1, 2, 3), keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    mean = (image / largest * (magnitude / largest)).sum(dim=(1, 2, 3), keepdim=True)
    phase = torch.where(mean.abs() > 0, mean / mean.abs(), 1.0)
    return largest * phase


def _prepared(x: Tensor, multiple: int, weight: Tensor) -> Tensor:
    """Padded to a multiple in size, in the type and layout of the convolutions: skips would be converted level by level."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    y, x_size = x.shape[-2:]
    x = F.pad(x, (0, -x_size % multiple, 0, -y % multiple), mode="replicate")
    if weight.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.1, nonlinearity="leaky_relu")
            nn.init.zeros_(module.bias)


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
