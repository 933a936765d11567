"""Networks for image denoising, from channels to as many channels, any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_n2n.errors import OptionError


class BlindSpotUNet(nn.Module):
    """The U-Net of Noise2Void or of N2V2: (batch, in, [z,] y, x) -> (batch, out, [z,] y, x).

    Two convolutions a level, `levels` halvings, channels that double with depth. artefact_free: the changes of N2V2 (Hoeck
    et al. 2022) against checkerboards: blurred max-pooling (Zhang, ICML 2019), no skip at the finest level, no residual; else the
    output is added to the input, as in Noise2Void.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        channels: int = 32,
        levels: int = 3,
        dimensions: int = 2,
        artefact_free: bool = True,
    ) -> None:
        super().__init__()
        if dimensions not in (2, 3) or not (1 <= channels <= 1024 and 1 <= levels <= 6):
            raise OptionError(
                "a blind-spot U-Net has 2 or 3 dimensions, 1 to 1024 channels and 1 to 6 levels; "
                f"got {dimensions}, {channels} and {levels}"
            )
        self.dimensions, self.artefact_free = dimensions, artefact_free
        widths = [channels * 2**level for level in range(levels + 1)]
        double = lambda a, b: nn.ModuleList((self._conv(a, b), self._conv(b, b)))  # noqa: E731
        self.encoder = nn.ModuleList(double(a, b) for a, b in zip([in_channels, *widths], widths))
        self.decoder = nn.ModuleList(
            double(below + width * (not artefact_free or level > 0), width)
            for level, below, width in zip(range(levels)[::-1], widths[:0:-1], widths[-2::-1])
        )
        self.last = self._conv(channels, out_channels)
        if not artefact_free:
            nn.init.zeros_(self.last.weight)  # starts as the identity
        self.multiple = 2**levels

    def forward(self, x: Tensor) -> Tensor:
        given, size = x, x.shape[2:]
        x = self.padded(x)
        skips: list[Tensor | None] = []
        for level, convolutions in enumerate(self.encoder):
            if level:
                skips.append(None if self.artefact_free and level == 1 else x)
                x = self._halved(x)
            for convolution in convolutions:
                x = F.leaky_relu(convolution(x), 0.1, inplace=True)
        for convolutions in self.decoder:
            x, skip = F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()
            x = x if skip is None else torch.cat((x, skip), dim=1)
            for convolution in convolutions:
                x = F.leaky_relu(convolution(x), 0.1, inplace=True)
        x = self.last(x)[(..., *(slice(n) for n in size))].float()
        return x if self.artefact_free else given + x

    def _conv(self, in_channels: int, out_channels: int) -> nn.Module:
        layer = (nn.Conv2d if self.dimensions == 2 else nn.Conv3d)(in_channels, out_channels, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, a=0.1, nonlinearity="leaky_relu")
        nn.init.zeros_(layer.bias)
        return layer

    def padded(self, x: Tensor) -> Tensor:
        """By its edge, to a multiple in size."""
        padding = [part for n in reversed(x.shape[2:]) for part in (0, -n % self.multiple)]
        return F.pad(x, padding, mode="replicate")

    def _halved(self, x: Tensor) -> Tensor:
        pool = F.max_pool2d if self.dimensions == 2 else F.max_pool3d
        if not self.artefact_free:
            return pool(x, 2)
        # The largest of neighbours at every pixel, then a binomial filter, then every second one.
        x = pool(x, 2, stride=1)
        x = F.pad(x, (1, 2) * self.dimensions, mode="replicate")  # one was lost to the pooling
        kernel = x.new_tensor([0.25, 0.5, 0.25])
        weights = kernel
        for _ in range(self.dimensions - 1):
            weights = weights[..., None] * kernel
        weights = weights.expand(x.shape[1], 1, *weights.shape)
        convolve = F.conv2d if self.dimensions == 2 else F.conv3d
        return convolve(x, weights, stride=2, groups=x.shape[1])


class RED30(nn.Module):
    """RED30 (Mao, Shen, Yang, NeurIPS 2016), the network of Noise2Noise's experiments with photographs: 15 convolutions, 15
    transposed ones, every second of which is added to the convolution it mirrors, and the input to the output. Theirs has
    128 channels."""

    def __init__(self, channels: int, filters: int = 32) -> None:
        super().__init__()
        widths = [channels] + [filters] * 15
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 3, padding=1) for a, b in zip(widths[-2::-1], widths[:0:-1]))
        for layer in (*self.down, *self.up):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.up[-1].weight)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        given, skips = x, []
        for number, layer in enumerate(self.down):
            x = F.relu(layer(x))
            if number % 2 == 0 and number < 14:
                skips.append(x)
        for number, layer in enumerate(self.up[:-1]):
            x = layer(x)
            x = F.relu(x + skips.pop() if number % 2 == 1 else x)
        return given + self.up[-1](x).float()


class DnCNN(nn.Module):
    """DnCNN (Zhang, Zuo, Chen, Meng, Zhang, IEEE TIP 26, 2017): 17 convolutions with batch normalisation that predict the
    noise. Theirs has 64 channels."""

    def __init__(self, channels: int, filters: int = 32, depth: int = 17) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            convolution = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(filters, channels, 3, padding=1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.layers(x).float()


BODIES = ("n2v2", "n2v", "red30", "dncnn")


def build_body(body: str, channels: int, filters: int) -> nn.Module:
    """The network of two dimensions that a name means. OptionError for an unknown one."""
    if body in ("n2v2", "n2v"):
        return BlindSpotUNet(channels, channels, filters, artefact_free=body == "n2v2")
    if body not in BODIES:
        raise OptionError(f"unknown body {body!r}; choose from {', '.join(BODIES)}")
    if not 1 <= filters <= 1024:
        raise OptionError(f"a denoiser has 1 to 1024 channels; got {filters}")
    return (RED30 if body == "red30" else DnCNN)(channels, filters)
