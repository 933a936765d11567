"""Corruptions of images and of k-space, those of Lehtinen et al. 2018 in their MRI meaning, and the loss that each needs.

A corruption whose mean, median or mode is the clean value can be taken away by training on corrupted targets, with the loss
whose minimiser is that: L2 the mean, L1 the median, annealed L0 (nearly) the mode.

x: images (1, 1, y, x) complex, volume maximum 1. Strengths are on that scale.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import OptionError
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.pairs import Pair


@dataclass(frozen=True)
class Corrupted:
    """One corrupted image: as input, `given`; as target, `target` in the domain of its corruption, where `weight` counts."""

    given: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Corruption:
    """meaning: in MRI. strength: what it says and its default range. make: (x, strength, generator) -> Corrupted.
    loss: of corrupted targets, see `losses.LOSSES`. domain: of the targets. real: only magnitudes have it."""

    meaning: str
    strength: str
    default: tuple[float, float]
    limits: tuple[float, float]
    make: Callable[[Tensor, float, Generator], Corrupted]
    loss: str = "l2"
    domain: str = "image"
    real: bool = False


def gaussian(x: Tensor, deviation: float, draw: Generator) -> Corrupted:
    """x + n, n white complex, E|n|^2 = deviation^2."""
    return _plain(x + deviation * _white(x, draw))


def rician(x: Tensor, deviation: float, draw: Generator) -> Corrupted:
    """|x + n|: its mean is larger than |x|."""
    return _plain((x + deviation * _white(x, draw)).abs().to(x.dtype))


def rician_corrected(x: Tensor, deviation: float, draw: Generator) -> Corrupted:
    """The same as input; as target its square less the noise variance, m^2 - v, whose mean is |x|^2."""
    magnitude = (x + deviation * _white(x, draw)).abs()
    return Corrupted(magnitude.to(x.dtype), (magnitude.square() - deviation**2).to(x.dtype), _ones(x))


BROWN_DEVIATION = 25 / 255  # of correlated noise, whose strength is its width


def brown(x: Tensor, width: float, draw: Generator) -> Corrupted:
    """x + n, n complex noise of standard deviation 25/255 blurred by a Gaussian of `width` pixels."""
    *_, rows, columns = x.shape
    frequency = [torch.fft.fftshift(torch.fft.fftfreq(n)) for n in (rows, columns)]
    squared = frequency[0][:, None] ** 2 + frequency[1][None, :] ** 2
    transfer = torch.exp(-2 * (math.pi * width) ** 2 * squared)
    transfer = transfer / transfer.square().mean().sqrt()
    return _plain(x + BROWN_DEVIATION * ifft2c(transfer * _white(x, draw)))


def poisson(x: Tensor, peak: float, draw: Generator) -> Corrupted:
    """Counts of mean `peak` |x|, divided by peak."""
    return _plain((torch.poisson(peak * x.abs(), generator=draw) / peak).to(x.dtype))


def bernoulli(x: Tensor, lost: float, draw: Generator) -> Corrupted:
    """Each pixel is lost, zero, with probability `lost`; targets count where they are not."""
    kept = (torch.rand(x.shape, generator=draw) >= lost).float()
    return Corrupted(x * kept, x * kept, kept)


def text(x: Tensor, share: float, draw: Generator) -> Corrupted:
    """Random words in random grey levels over the image, until they cover this share of the pixels."""
    *_, rows, columns = x.shape
    image, covered = x[0, 0].real.numpy().copy(), np.zeros((rows, columns), bool)
    while covered.mean() < share:
        number = lambda low, high: int(torch.randint(low, high, (), generator=draw))  # noqa: E731
        words = "".join(string.ascii_letters[number(0, 52)] for _ in range(number(3, 12)))
        stencil = Image.new("L", (columns, rows))
        at = number(-columns // 4, columns), number(-10, rows)
        ImageDraw.Draw(stencil).text(at, words, fill=255, font=ImageFont.load_default(number(8, 24)))
        alpha = np.asarray(stencil, np.float32) / 255
        image = (1 - alpha) * image + alpha * torch.rand((), generator=draw).item()
        covered |= alpha > 0.5
    return _plain(torch.from_numpy(image)[None, None].to(x.dtype))


def impulse(x: Tensor, share: float, draw: Generator) -> Corrupted:
    """Each pixel is replaced, with probability `share`, by a value uniform between 0 and 1."""
    hit = torch.rand(x.shape, generator=draw) < share
    return _plain(torch.where(hit, torch.rand(x.shape, generator=draw).to(x.dtype), x))


SPIKE = 0.3  # size of a spike in k-space, of the image's largest k-space sample


def spikes(x: Tensor, share: float, draw: Generator) -> Corrupted:
    """Each k-space sample is, with probability `share`, a spike of random size and phase in its place, as discharges leave in
    a receiver that they saturate; with a tenth of it, a whole line is. The target is k-space.

    Their phase is random, so the mean of the target is (1 - share) of the clean sample: L2. The mode is the clean sample itself,
    but annealed L0 does not get there: nearly all samples of input and target are equal, and it ends at the identity."""
    kspace, rows = fft2c(x), x.shape[-2]
    hit = torch.rand(x.shape, generator=draw) < share
    hit |= torch.rand((1, 1, rows, 1), generator=draw) < share / 10
    size = SPIKE * kspace.abs().max() * torch.rand(x.shape, generator=draw)
    spike = torch.polar(size, 2 * math.pi * torch.rand(x.shape, generator=draw))
    kspace = torch.where(hit, spike, kspace)
    return Corrupted(ifft2c(kspace), kspace, _ones(x))


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian": Corruption("thermal noise", "standard deviation", (0.02, 0.2), (0, 10), gaussian),
    "rician": Corruption("magnitudes of noisy images", "standard deviation", (0.02, 0.2), (0, 10), rician, real=True),
    "rician-corrected": Corruption(
        "magnitudes of noisy images, their noise known",
        "standard deviation",
        (0.02, 0.2),
        (0, 10),
        rician_corrected,
        "l2-of-squares",
        real=True,
    ),
    "brown": Corruption("interpolated noise, or that of parallel imaging", "width in pixels", (1, 1), (0, 64), brown),
    "poisson": Corruption(
        "photon-limited companions (PET, optical)", "counts at maximum", (10, 50), (1e-3, 1e9), poisson, real=True
    ),
    "bernoulli": Corruption("dropped pixels", "share lost", (0.0, 0.9), (0, 0.99), bernoulli),
    "text": Corruption("burned-in annotations", "share covered", (0.0, 0.5), (0, 0.75), text, "l1", real=True),
    "impulse": Corruption("random-valued impulses", "share hit", (0.0, 0.9), (0, 0.99), impulse, "l0", real=True),
    "spikes": Corruption("discharges, corrupted lines", "share hit", (0.0, 0.02), (0, 0.5), spikes, "l2", "kspace"),
}


def check_strength(kind: str, strength: tuple[float, float] | None) -> None:
    """OptionError for an unknown corruption, or a strength that it cannot have."""
    if kind not in CORRUPTIONS:
        raise OptionError(f"unknown corruption {kind!r}; choose from {', '.join(CORRUPTIONS)}")
    least, most = CORRUPTIONS[kind].limits
    low, high = strength_or_default(kind, strength)
    if not least <= low <= high <= most:
        raise OptionError(
            f"--strength of {kind}, its {CORRUPTIONS[kind].strength}, is between {least:g} and {most:g}, a range rising; "
            f"got {low:g}:{high:g}"
        )


def strength_or_default(kind: str, strength: tuple[float, float] | None) -> tuple[float, float]:
    return strength or CORRUPTIONS[kind].default


def losses_for(kind: str, *, clean: bool) -> tuple[str, ...]:
    """Which losses can compare targets of this corruption: squares less a variance are compared with squares alone."""
    if clean:
        return ("l2", "l1", "l0", "l2-of-squares")
    return ("l2-of-squares",) if CORRUPTIONS[kind].loss == "l2-of-squares" else ("l2", "l1", "l0")


def corrupted(full: Tensor, kind: str, strength: tuple[float, float] | None, draw: Generator) -> Corrupted:
    """One slice's full k-space (1, 1, y, x), corrupted. strength: (lowest, highest), drawn; None: the default.
    OptionError for a complex image where the corruption is of magnitudes."""
    low, high = strength_or_default(kind, strength)
    return CORRUPTIONS[kind].make(_image(full, kind), low + (high - low) * torch.rand((), generator=draw).item(), draw)


def corrupted_kspace(full: Tensor, kind: str, strength: tuple[float, float] | None, draw: Generator) -> Tensor:
    """K-space of the corrupted image, see `corrupted`."""
    return fft2c(corrupted(full, kind, strength, draw).given)


def corrupted_pair(
    full: Tensor,
    kind: str,
    strength: tuple[float, float] | None,
    draws: tuple[Generator, Generator],
    *,
    clean: bool,
    loss: str | None = None,
) -> Pair:
    """A pair of two independent corruptions of one slice's full k-space (1, 1, y, x), or, with `clean`, of one and the
    truth, whose loss is L2 whatever the corruption. loss: in place of that of the corruption; with "l2-of-squares" the truth is
    squared. Errors: those of `corrupted`."""
    corruption, image = CORRUPTIONS[kind], _image(full, kind)
    first = corrupted(full, kind, strength, draws[0])
    given = Acquisition(fft2c(first.given), torch.ones(1, 1, *image.shape[-2:]))
    if clean:
        target = image.abs().square().to(image.dtype) if loss == "l2-of-squares" else image
        return Pair(given, target, _ones(image), "image", loss=loss or "l2")
    second = corrupted(full, kind, strength, draws[1])
    return Pair(given, second.target, second.weight, corruption.domain, loss=loss or corruption.loss)


def _image(full: Tensor, kind: str) -> Tensor:
    image = ifft2c(full)
    if full.shape[1] > 1:
        raise OptionError(f"--corrupt is of images of one coil; these have {full.shape[1]}")
    if not CORRUPTIONS[kind].real:
        return image
    if (image.imag.abs() > 1e-4 * image.real.abs().max()).any():
        raise OptionError(f"--corrupt {kind} is of magnitude images; these are complex")
    return image.real.clamp_min(0).to(image.dtype)


def _plain(x: Tensor) -> Corrupted:
    return Corrupted(x, x, _ones(x))


def _white(x: Tensor, draw: Generator) -> Tensor:
    return torch.randn(x.shape, dtype=torch.complex64, generator=draw)


def _ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape)
