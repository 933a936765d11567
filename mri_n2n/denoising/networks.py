"""Networks for image denoising, from channels to as many channels, any size."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_n2n.errors import OptionError


class BlindSpotUNet(nn.Module):
    """The U-Net of Noise2Void or of N2V2: (batch, n, [z,] y, x) -> the same.

    Two convolutions a level, `levels` halvings, channels that double with depth. artefact_free: the changes of N2V2 (Hoeck
    et al. 2022) against checkerboards: blurred max-pooling (Zhang, ICML 2019), no skip at the finest level, no residual. What is sharp
    is then slow to learn; so, beyond N2V2, `Neighbours` take the place of both, which see all but the pixel itself, and
    those within `span` of it along an axis. Else the output is added to the input, as in Noise2Void.
    """

    def __init__(
        self,
        image_channels: int = 2,
        channels: int = 32,
        levels: int = 3,
        dimensions: int = 2,
        artefact_free: bool = True,
        span: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if dimensions not in (2, 3) or not (1 <= channels <= 1024 and 1 <= levels <= 6):
            raise OptionError(
                "a blind-spot U-Net has 2 or 3 dimensions, 1 to 1024 channels and 1 to 6 levels; "
                f"got {dimensions}, {channels} and {levels}"
            )
        if span and (len(span) != dimensions or not all(isinstance(n, int) and 0 <= n < 1024 for n in span)):
            raise OptionError(f"a span has one number from 0 for each of {dimensions} axes; got {span!r:.80}")
        self.dimensions, self.artefact_free = dimensions, artefact_free
        widths = [channels * 2**level for level in range(levels + 1)]
        double = lambda a, b: nn.ModuleList((_conv(dimensions, a, b), _conv(dimensions, b, b)))  # noqa: E731
        self.encoder = nn.ModuleList(double(a, b) for a, b in zip([image_channels, *widths], widths))
        self.decoder = nn.ModuleList(
            double(below + width * (not artefact_free or level > 0), width)
            for level, below, width in zip(range(levels)[::-1], widths[:0:-1], widths[-2::-1])
        )
        if artefact_free:
            self.neighbours = Neighbours(image_channels, channels, dimensions, span)
        else:
            self.last = _conv(dimensions, channels, image_channels)
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
        x = x[(..., *(slice(n) for n in size))]
        return self.neighbours(given, x) if self.artefact_free else given + self.last(x).float()

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


class Neighbours(nn.Module):
    """From an image and features of a U-Net (batch, channels, [z,] y, x) the image: the mean of each pixel's neighbours, and what
    convolutions 1 wide make of these features and of those of a convolution without centre (Laine et al. 2019 and Wu et al., ECCV
    2020, have whole networks of such), so that no pixel is seen at its own place.

    span: along each axis, how many pixels on either side are not seen either; () for none. Beyond the edge there are zeros, which
    have no part in the mean: pixels from within could be the very one that is not to be seen.
    """

    def __init__(self, image_channels: int, channels: int, dimensions: int, span: tuple[int, ...]) -> None:
        super().__init__()
        self.convolve = F.conv2d if dimensions == 2 else F.conv3d
        side = 5 if dimensions == 2 else 3
        self.seen = _conv(dimensions, image_channels, 2 * channels, side)
        self.first = _conv(dimensions, 3 * channels, 2 * channels, 1)
        self.last = _conv(dimensions, 2 * channels, image_channels, 1)
        nn.init.zeros_(self.last.weight)  # starts as the mean of the neighbours
        self.visible = partial(_visible, dimensions=dimensions, span=span)

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        weight = self.seen.weight * self.visible(self.seen.weight.shape[-1]).to(image)
        seen = self.convolve(image, weight, self.seen.bias, padding="same")
        features = torch.cat((features, F.leaky_relu(seen, 0.1)), dim=1)
        change = self.last(F.leaky_relu(self.first(features), 0.1)).float()
        return self.mean(image) + change

    def mean(self, image: Tensor) -> Tensor:
        near = self.visible(3).to(image)[None, None]
        with torch.autocast(image.device.type, enabled=False):
            count = self.convolve(torch.ones_like(image[:1, :1]), near, padding="same").clamp_min(1)
            near = near.expand(image.shape[1], *near.shape[1:])
            return self.convolve(image, near, padding="same", groups=image.shape[1]) / count


def _visible(side: int, dimensions: int, span: tuple[int, ...]) -> Tensor:
    """Of a kernel of `side` a dimension: 1 but at its centre and within `span` of it along each axis, where it is 0."""
    spans = span or (0,) * dimensions
    distances = [(torch.arange(side) - side // 2).abs()] * dimensions
    grid = torch.meshgrid(*distances, indexing="ij")
    hidden = torch.zeros((side,) * dimensions, dtype=torch.bool)
    for axis, reach in enumerate(spans):
        beside = torch.stack([distance for other, distance in enumerate(grid) if other != axis]).amax(dim=0)
        hidden |= (beside == 0) & (grid[axis] <= reach)
    return (~hidden).float()


def _conv(dimensions: int, in_channels: int, out_channels: int, side: int = 3) -> nn.Module:
    layer = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(in_channels, out_channels, side, padding=side // 2)
    nn.init.kaiming_normal_(layer.weight, a=0.1, nonlinearity="leaky_relu")
    nn.init.zeros_(layer.bias)
    return layer


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


def build_body(body: str, channels: int, filters: int, span: tuple[int, ...] = ()) -> nn.Module:
    """The network of two dimensions that a name means; span: of n2v2, see `Neighbours`. OptionError for an unknown one."""
    if body not in BODIES:
        raise OptionError(f"unknown body {body!r}; choose from {', '.join(BODIES)}")
    if body == "n2v2":
        return BlindSpotUNet(channels, filters, span=tuple(span))
    if span:
        raise OptionError(f"a span is of the body n2v2, not of {body}")
    if body == "n2v":
        return BlindSpotUNet(channels, filters, artefact_free=False)
    if not 1 <= filters <= 1024:
        raise OptionError(f"a denoiser has 1 to 1024 channels; got {filters}")
    return (RED30 if body == "red30" else DnCNN)(channels, filters)
