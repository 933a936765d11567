"""Simulated acquisitions: from an image or a full k-space to undersampled, noisy measurements. Never a real scan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.corruptions import check_strength, corrupted_kspace, strength_or_default
from mri_n2n.errors import InputError, OptionError, OutputError, UserError
from mri_n2n.files import atomic_outputs, check_free
from mri_n2n.formats import ImageFiles, read_images, write_scan
from mri_n2n.formats.nifti import UNDERSHOOT
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import Sampling, draw_mask
from mri_n2n.operators import root_sum_of_squares
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
            factor = factor * sensitivities(coils, shape, generator)[0]
    return fft2c(images[:, None] * factor)


def sensitivities(coils: int, shape: tuple[int, int], generator: Generator) -> Tensor:
    """Smooth random complex coil sensitivities (1, coils, y, x) complex64, sum |S|^2 = 1."""
    maps = torch.from_numpy(evaluate_series(random_series(coils, generator, real=False), shape))
    return (maps / maps.abs().square().sum(dim=0, keepdim=True).sqrt()).to(torch.complex64)[None]


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
    maximum; repetitions share coils and phase, and have independent masks and noise. corrupt: one of `CORRUPTIONS`, of fully
    sampled images of one coil, each repetition's its own. strength: (lowest, highest) of it, drawn per slice; None: its default."""

    axis: int = 2
    mask: str = "roulette"
    acceleration: float = 10.0
    coils: int = 1
    phase: bool = False
    noise: float = 0.0
    repetitions: int = 1
    seed: int = 0
    reference: bool = True
    corrupt: str | None = None
    strength: tuple[float, float] | None = None


def simulate_file(
    volume: Path | str,
    output: Path | str,
    options: SimulationOptions | None = None,
    *,
    phase: Path | str | None = None,
    imaginary: Path | str | None = None,
    force: bool = False,
) -> list[Path]:
    """Acquire a NIfTI volume: writes `output`, or NAME_rep1.h5, NAME_rep2.h5 ... for several repetitions.

    phase, imaginary: the other part of a complex image in two files; the volume itself may be complex too. One mask per file, for all its slices; draws depend on the seed and the volume's file name. With one coil and no phase the image is real, and the mask Hermitian-symmetric.
    Returns the files written. Errors: InputError, NotFoundError, OutputError, UserError for options that cannot be met.
    """
    volume, output, options = Path(volume), Path(output), options or SimulationOptions()
    _check(options)
    if phase and imaginary:
        raise OptionError("give the phase of the volume or its imaginary part, not both")
    parts = [Path(part) for part in (volume, phase, imaginary) if part]
    names = (
        [output]
        if options.repetitions == 1
        else [output.with_name(f"{output.stem}_rep{r}{output.suffix}") for r in range(1, options.repetitions + 1)]
    )
    if any(path.exists() and part.exists() and path.samefile(part) for path in names for part in parts):
        raise OutputError(f"{output} is the volume itself; choose another -o")
    if output.suffix.lower() not in (".h5", ".hdf5"):
        raise OptionError(f"scans are written as HDF5: give -o a name that ends in .h5; got {output.name!r}")
    for path in names:
        check_free(path, force)
    files = ImageFiles(volume, *(None if part is None else Path(part) for part in (phase, imaginary)))
    images, geometry = read_images(files, axis=options.axis)
    if np.iscomplexobj(images):
        if options.phase:
            raise OptionError(f"{volume} has a phase of its own; leave out --phase")
    real = options.coils == 1 and not options.phase and not np.iscomplexobj(images)
    peak = magnitude_peak(np.abs(images) if np.iscomplexobj(images) else images, str(volume))
    slices, *matrix = images.shape

    def full(index: int) -> Tensor:
        return _full(torch.from_numpy(images[index : index + 1]), options, volume.name)

    def acquired(index: int, sampling: Sampling, draw: Generator, noise_variance: float) -> np.ndarray:
        if options.corrupt:
            kspace = peak * corrupted_kspace(full(index) / peak, options.corrupt, options.strength, draw)[0]
        else:
            kspace = measure(full(index), sampling, draw, noise_variance=noise_variance).kspace[0]
        _check_finite(kspace, str(volume), peak)
        return kspace.numpy()

    with atomic_outputs(output.parent, output.stem, force) as folder:  # of several repetitions all or none
        for repetition, path in enumerate(names, start=1):
            sampling, draw = _sampling(options, volume.name, repetition, tuple(matrix), real)
            noise_variance = (options.noise * peak) ** 2
            write_scan(
                folder / path.name,
                (acquired(i, sampling, draw, noise_variance) for i in range(slices)),
                (slices, options.coils, *matrix),
                mask=sampling.mask.numpy(),
                probability=sampling.probability.numpy(),
                reference=np.concatenate([root_sum_of_squares(ifft2c(full(i))).numpy() for i in range(slices)])
                if options.reference
                else None,
                geometry=geometry,
                attributes={
                    "simulated": True,
                    **(corruption_facts(options, peak) if options.corrupt else {"noise_variance": noise_variance}),
                    **({} if options.acceleration == 1 else {"mask_kind": options.mask}),
                    "acceleration": options.acceleration,
                    "seed": options.seed,
                    "phase": options.phase or np.iscomplexobj(images),
                    "repetition": repetition,
                },
            )
    return names


def corruption_facts(options: SimulationOptions, peak: float) -> dict[str, object]:
    """What the file says of its corruption, and where that is noise of one level, of that."""
    low, high = strength_or_default(options.corrupt, options.strength)
    known = {"noise_variance": (low * peak) ** 2} if options.corrupt == "gaussian" and low == high else {}
    return {"corruption": options.corrupt, "strength": f"{low:g}:{high:g}"} | known


def simulate_array(images, options: SimulationOptions | None = None) -> list[Acquisition]:
    """Acquire magnitude images (slices, y, x) or (y, x) of real numbers, once per repetition, as `simulate_file` does.

    `axis` and `reference` of the options say nothing here. Errors: InputError, UserError.
    """
    options = options or SimulationOptions()
    _check(options)
    images = np.asarray(images)
    if images.ndim == 2:
        images = images[None]
    if images.ndim != 3 or images.dtype.kind not in "fiu" or not np.isfinite(images).all():
        raise InputError(f"expected finite real images (slices, y, x) or (y, x); got {images.dtype} {images.shape}")
    peak = magnitude_peak(images, "the array")
    if options.corrupt:
        raise OptionError("arrays are acquired, not corrupted: see mri_n2n.corruptions")
    full = _full(torch.from_numpy(images.astype(np.float32)), options, "array")
    acquisitions = []
    for repetition in range(1, options.repetitions + 1):
        sampling, draw = _sampling(
            options, "array", repetition, tuple(images.shape[1:]), options.coils == 1 and not options.phase
        )
        acquisitions.append(measure(full, sampling, draw, noise_variance=(options.noise * peak) ** 2))
        _check_finite(acquisitions[-1].kspace, "the array", peak)
    return acquisitions


def simulate(source, output: Path | str | None = None, options: SimulationOptions | None = None, **of_files):
    """`simulate(path, output, options)` on a NIfTI volume (see `simulate_file`), `simulate(images, options=options)` on
    an array (see `simulate_array`). of_files: phase, imaginary, force, of `simulate_file`."""
    if not isinstance(source, (str, Path)):
        if output is not None or of_files:
            raise OptionError(
                "an array is acquired to arrays: simulate(images, options=...); simulate(path, output) writes"
            )
        return simulate_array(source, options)
    if output is None:
        raise OutputError("simulating a scan of a file needs the file to write: simulate(path, output)")
    return simulate_file(source, output, options, **of_files)


def _check(options: SimulationOptions) -> None:
    limits = {"--coils": (options.coils, 1, 128), "--repetitions": (options.repetitions, 1, 1000)}
    limits |= {"--noise": (options.noise, 0, 1000), "--seed": (options.seed, 0, 2**63 - 1)}
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise UserError(f"{name} must be between {low} and {high}; got {value}")
    if options.corrupt is None:
        if options.strength is not None:
            raise OptionError("--strength is of --corrupt")
        return
    check_strength(options.corrupt, options.strength)
    if (options.acceleration, options.coils, options.noise) != (1, 1, 0):
        raise OptionError(
            "--corrupt is of fully sampled images of one coil: leave out --acceleration, --coils and --noise"
        )


def magnitude_peak(images: np.ndarray, name: str) -> float:
    """The largest intensity. Interpolation leaves magnitudes a little below zero; more than that is no magnitude."""
    peak, least = float(images.max(initial=0)), float(images.min(initial=0))
    if not peak > 0:
        raise InputError(f"{name} has no positive intensity; a magnitude volume is expected")
    if peak > torch.finfo(torch.float32).max:
        raise InputError(f"{name}: intensities up to {peak:g} are too large for float32; scale them down")
    if least < -UNDERSHOOT * peak:
        raise InputError(f"{name} has intensities from {least:g} to {peak:g}; a magnitude volume is expected")
    return peak


def _check_finite(kspace: Tensor, name: str, peak: float) -> None:
    if not torch.isfinite(torch.view_as_real(kspace)).all():
        raise InputError(f"{name}: intensities up to {peak:g} are too large for k-space in float32; scale them down")


def _full(images: Tensor, options: SimulationOptions, name: str) -> Tensor:
    """Full k-space; coils and phase depend on seed and name, so that every slice and repetition has the same."""
    generator = seeded(options.seed, name, "object")
    return full_kspace(images, coils=options.coils, phase=options.phase, generator=generator)


def _sampling(
    options: SimulationOptions, name: str, repetition: int, matrix: tuple[int, int], real: bool
) -> tuple[Sampling, Generator]:
    """The mask of a repetition, and the generator its noise comes from. A real image is given a Hermitian mask."""
    draw = seeded(options.seed, name, "repetition", repetition)
    return draw_mask(options.mask, matrix, options.acceleration, draw, hermitian=real), draw


def eight_bit(kspace: Tensor) -> Tensor:
    """Full k-space of real images on the scale volume maximum = 1, with the images rounded to 256 grey levels."""
    images = ifft2c(kspace).real.clamp(0, 1)
    return fft2c((255 * images).round().div(255).to(kspace.dtype))
