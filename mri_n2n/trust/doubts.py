"""What speaks against an image, seen in its samples or in itself: no samples beside the centre, spikes, clipped samples, ghosts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mri_n2n.acquisition import Acquisition
from mri_n2n.fourier import fft2c
from mri_n2n.masks import is_along

# A sample this many times as large as the geometric mean of those around it is a spike: of clean scans of open_ms none is
# beyond 9 times, under any mask. Around: this many rows and columns, and samples in it at least; not within so many samples of the
# centre, where k-space falls steeply.
SPIKE, AROUND, FEWEST, CENTRE = 12.0, 15, 5, 16
ROUNDING = 1e-5  # of the largest sample: what a transform there and back leaves where nothing was
# Samples that share the largest part, real or imaginary, of all, from this many on, were clipped.
CLIPPED = 6
# Of equidistant lines, ghosts lie at the shifts where the point spread function is above `LOBE`; they are there where an image resembles itself
# shifted so by more than `GHOST` robust deviations of nearby shifts: at most 3.6 of images of open_ms without ghosts.
LOBE, GHOST, NEARBY = 0.25, 5.0, 15


@dataclass(frozen=True)
class Doubts:
    """Of some slices: hollow, slices without samples beside the centre of k-space; spikes, samples; ghosted, slices; energy of the
    images' k-space where there are samples, and everywhere."""

    hollow: int = 0
    spikes: int = 0
    ghosted: int = 0
    measured_energy: float = 0.0
    energy: float = 0.0

    def __add__(self, other: Doubts) -> Doubts:
        return Doubts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def measured_share(self) -> float:
        """Which share of the images' energy lies where there are samples; the rest was predicted."""
        return self.measured_energy / self.energy if self.energy else 0.0

    @property
    def words(self) -> list[str]:
        found = []
        if self.hollow:
            found.append(
                f"{self.hollow} {'slice has' if self.hollow == 1 else 'slices have'} no sample on either side of the centre of k-space, or at it: slow shading and clouds may lie over them"
            )
        if self.spikes:
            found.append(
                f"{self.spikes} {'sample stands' if self.spikes == 1 else 'samples stand'} out of those around as spikes do: stripes"
            )
        if self.ghosted:
            found.append(
                f"{self.ghosted} {'slice resembles a shifted copy of itself' if self.ghosted == 1 else 'slices resemble shifted copies of themselves'}: "
                "ghosts of the undersampling remain"
            )
        return found


def doubts_of(acquisition: Acquisition, images: Tensor) -> Doubts:
    """Of slices and their complex images (slices, 1 or coils, y, x), both on the CPU."""
    maps, masks = acquisition.sensitivity_maps, acquisition.mask[:, 0].expand(len(images), -1, -1)
    energy = fft2c(images if maps is None else maps * images).abs().double().square().sum(dim=1)
    size = torch.linalg.vector_norm(images, dim=1)
    return Doubts(
        sum(map(hollow, masks)),
        sum(spikes(one, mask) for one, mask in zip(acquisition.kspace, masks, strict=True)),
        sum(ghosts(one, mask) is True for one, mask in zip(size, masks, strict=True)),
        (masks * energy).sum().item(),
        energy.sum().item(),
    )


def hollow(mask: Tensor) -> bool:
    """Whether a mask (y, x) that has samples has none at the centre, or along an axis at neither of its neighbours: what is slowest
    in the image is then a guess."""
    y, x = (n // 2 for n in mask.shape)
    beside = [mask[y, x], *(mask[y - 1 : y + 2 : 2, x],) * (y > 0), *(mask[y, x - 1 : x + 2 : 2],) * (x > 0)]
    return bool(mask.any()) and not all(bool(one.any()) for one in beside)


def spikes(kspace: Tensor, mask: Tensor) -> int:
    """How many samples of a slice (coils, y, x), sampled where mask (y, x) is, are spikes."""
    size = kspace.abs().double().square().sum(dim=0).sqrt()
    there = (mask > 0) & (size > ROUNDING * size.max())
    log = torch.where(there, size.clamp_min(1e-300).log(), 0.0)
    count, total = (_around(value) - value for value in (there.double(), log))
    beyond = log - total / count.clamp_min(1) > torch.tensor(SPIKE).log()
    ky, kx = (torch.arange(n, dtype=torch.float64) - n // 2 for n in mask.shape)
    outside = ky[:, None].square() + kx.square() > CENTRE**2
    return int((there & (count >= FEWEST) & outside & beyond).sum())


def _around(values: Tensor) -> Tensor:
    """Sums over `AROUND` x `AROUND` locations (y, x)."""
    return AROUND**2 * F.avg_pool2d(values[None, None], AROUND, 1, AROUND // 2)[0, 0]


def clipped(kspace: Tensor) -> bool:
    """Whether samples of any slice (slices, coils, y, x) stop at one largest value, as a receiver's do that is overdriven: more than
    chance, and than the pairs of a real image's k-space."""
    parts = torch.view_as_real(kspace).abs().flatten(1)
    largest = parts.amax(dim=1, keepdim=True)
    return bool(((parts == largest).sum(dim=1)[largest[:, 0] > 0] >= CLIPPED).any())


def ghosts(image: Tensor, mask: Tensor) -> bool | None:
    """Whether a magnitude image (y, x) holds shifted copies of itself where equidistant lines of a mask (y, x) put them; None where a
    mask has no such shifts. Fine detail, what a mean over 5 x 5 pixels leaves, by its autocorrelation across the lines."""
    if is_along(mask, -1) and not is_along(mask, -2):
        image, mask = image.mT, mask.mT
    shifts = _shifts(mask[0]) if is_along(mask, -2) else []
    if not shifts:
        return None
    fine = image.double() - F.avg_pool2d(image.double()[None, None], 5, 1, 2)[0, 0]
    likeness = torch.fft.ifft(torch.fft.fft(fine, dim=-1).abs().square().sum(dim=0)).real
    return max(_prominence(likeness, shift) for shift in shifts) > GHOST


def _shifts(line: Tensor) -> list[int]:
    """Where, beside the middle, the point spread function of sampled lines (x,) has lobes."""
    spread = torch.fft.ifft(line.double()).abs()
    spread, n = (spread / spread[0]).tolist(), len(line)
    of = lambda shift: spread[shift % n]  # noqa: E731
    return [s for s in range(6, n - 5) if of(s) > LOBE and of(s) >= max(of(s - 1), of(s + 1))]


def _prominence(likeness: Tensor, shift: int) -> float:
    """How far the likeness at a shift is above that at shifts nearby, in robust standard deviations."""
    n = len(likeness)
    nearby = torch.stack([likeness[(shift + d) % n] for d in range(-NEARBY, NEARBY + 1) if abs(d) > 2])
    at = torch.stack([likeness[(shift + d) % n] for d in (-1, 0, 1)]).max()
    deviation = 1.4826 * (nearby - nearby.median()).abs().median()
    return ((at - nearby.median()) / deviation).item() if deviation > 0 else 0.0
