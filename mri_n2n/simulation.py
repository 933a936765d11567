"""Simulated acquisitions: from an image or a full k-space to undersampled, noisy measurements. Never a real scan."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import InputError, OutputError, UserError
from mri_n2n.formats import read_volume, write_scan
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import Sampling, draw_mask
from mri_n2n.phantom import evaluate_series, random_series


def seeded(seed: int, *name: str | int) -> Generator:
    """A generator that depends on the seed and a name alone: the same file is always acquired the same way."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *name))).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def full_kspace(images: Tensor, *, coils: int = 1, phase: bool = False, generator: Generator | None = None) -> Tensor:
    """Fully sampled k-space (slices, coils, y, x) of real images (slices, y, x).

    phase: multiply by a smooth random phase, the same for all slices. Several coils: sensitivities normalised to
    sum |S|^2 = 1, so that the root-sum-of-squares of the coil images is the image's magnitude.
    """
    factor = torch.ones((1, 1, 1), dtype=torch.complex64)
    if coils > 1 or phase:
        generator = generator if generator is not None else Generator().manual_seed(0)
        shape = tuple(images.shape[-2:])
        if phase:
            factor = smooth_phase(shape, generator)[None]
        if coils > 1:
            maps = torch.from_numpy(evaluate_series(random_series(coils, generator, real=False), shape))
            factor = factor * (maps / maps.abs().square().sum(dim=0, keepdim=True).sqrt()).to(torch.complex64)
    return fft2c(images[:, None] * factor)


def smooth_phase(shape: tuple[int, int], generator: Generator) -> Tensor:
    """exp(i phi) (y, x) complex64, phi a random polynomial of second order over the field of view, a few radians."""
    y, x = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape)
    c = torch.randn(6, generator=generator, dtype=torch.float64)
    y, x = y[:, None], x[None, :]
    phi = torch.pi * c[0] + c[1] * y + c[2] * x + 0.7 * (c[3] * y**2 + c[4] * x**2 + c[5] * x * y)
    return torch.polar(torch.ones_like(phi), phi).to(torch.complex64)


def acquire(
    kspace: Tensor,
    kind: str,
    acceleration: float,
    generator: Generator,
    *,
    noise_variance: float = 0.0,
    hermitian: bool = False,
) -> Acquisition:
    """Undersample full k-space (slices, coils, y, x) with one new mask for all its slices and add white complex noise.

    noise_variance: E|n|^2 per complex sample, in squared intensity units. hermitian: for real images (see masks.mirror).
    """
    sampling = draw_mask(kind, tuple(kspace.shape[-2:]), acceleration, generator, hermitian=hermitian)
    return measure(kspace, sampling, generator, noise_variance=noise_variance)


def measure(kspace: Tensor, sampling: Sampling, generator: Generator, *, noise_variance: float = 0.0) -> Acquisition:
    """Sample full k-space (slices, coils, y, x) with a given mask and add white complex noise of variance E|n|^2."""
    if noise_variance:
        noise = torch.randn(kspace.shape, dtype=torch.complex64, generator=generator)  # E|n|^2 = 1
        kspace = kspace + noise_variance**0.5 * noise
    mask, probability = sampling.mask[None, None], sampling.probability[None, None]
    return Acquisition(kspace * mask, mask, probability, None, float(noise_variance))


@dataclass(frozen=True)
class SimulationOptions:
    """How `simulate_file` acquires a volume. noise: standard deviation of the complex noise as a share of the volume's
    maximum; repetitions share coils and phase, and have independent masks and noise."""

    axis: int = 2
    mask: str = "roulette"
    acceleration: float = 10.0
    coils: int = 1
    phase: bool = False
    noise: float = 0.0
    repetitions: int = 1
    seed: int = 0
    reference: bool = True


def simulate_file(volume: Path, output: Path, options: SimulationOptions, *, force: bool = False) -> list[Path]:
    """Acquire a NIfTI magnitude volume: writes `output`, or NAME_rep1.h5, NAME_rep2.h5 ... for several repetitions.

    One mask per file, for all its slices; draws depend on the seed and the volume's file name. With one coil and no phase the image is real, and the mask Hermitian-symmetric.
    Returns the files written. Errors: InputError, NotFoundError, OutputError, UserError for options that cannot be met.
    """
    if options.coils < 1 or options.repetitions < 1 or not 0 <= options.noise < math.inf:
        raise UserError("--coils and --repetitions must be at least 1, --noise at least 0")
    images, geometry = read_volume(volume, axis=options.axis)
    peak = float(images.max())
    if not peak > 0:
        raise InputError(f"{volume} has no positive intensity; a magnitude volume is expected")
    slices, *matrix = images.shape
    shape = (slices, options.coils, *matrix)
    real = options.coils == 1 and not options.phase
    names = (
        [output]
        if options.repetitions == 1
        else [output.with_name(f"{output.stem}_rep{r}{output.suffix}") for r in range(1, options.repetitions + 1)]
    )
    if any(path.exists() and path.samefile(volume) for path in names):
        raise OutputError(f"{output} is the volume itself; choose another -o")
    taken = [path for path in names if path.exists()]
    if taken and not force:
        raise OutputError(f"{taken[0]} exists; give --force to replace it, or another -o")
    for repetition, path in enumerate(names, start=1):
        draw = seeded(options.seed, volume.name, "repetition", repetition)
        sampling = draw_mask(options.mask, tuple(matrix), options.acceleration, draw, hermitian=real)

        def full(index: int) -> Tensor:
            image = torch.from_numpy(images[index : index + 1])
            return full_kspace(
                image, coils=options.coils, phase=options.phase, generator=seeded(options.seed, volume.name, "object")
            )

        write_scan(
            path,
            (
                measure(full(i), sampling, draw, noise_variance=(options.noise * peak) ** 2).kspace[0].numpy()
                for i in range(slices)
            ),
            shape,
            mask=sampling.mask.numpy(),
            probability=sampling.probability.numpy(),
            reference=np.concatenate([root_sum_of_squares(full(i)).numpy() for i in range(slices)])
            if options.reference
            else None,
            geometry=geometry,
            attributes={
                "simulated": True,
                "noise_variance": (options.noise * peak) ** 2,
                "mask_kind": options.mask,
                "acceleration": options.acceleration,
                "seed": options.seed,
                "phase": options.phase,
                "repetition": repetition,
            },
            force=force,
        )
    return names


def eight_bit(kspace: Tensor) -> Tensor:
    """Full k-space of real images on the scale volume maximum = 1, with the images rounded to 256 grey levels."""
    images = ifft2c(kspace).real.clamp(0, 1)
    return fft2c((255 * images).round().div(255).to(kspace.dtype))


def root_sum_of_squares(kspace: Tensor) -> Tensor:
    """Magnitude image (slices, y, x) of k-space (slices, coils, y, x): the reference a full acquisition would give."""
    return ifft2c(kspace).abs().square().sum(dim=1).sqrt()
