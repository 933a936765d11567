"""U-Nets from channels to channels, any size: that of 2018, and one whose channels double with depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_n2n.errors import OptionError


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
