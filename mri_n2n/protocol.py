"""How the slices that training sees are acquired: a protocol, and what it makes of full k-space or of measured scans."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import Sampling, draw_mask
from mri_n2n.pairs import Measured, PairOptions
from mri_n2n.simulation import measure, seeded, sensitivities, smooth_phase


@dataclass(frozen=True)
class Protocol:
    """How a training example is acquired from fully sampled slices, and made into a pair. Measured scans use method, pair
    and seed, and with `undersample` masks, acceleration and pairs: their samples are taken once more, with independent masks.

    method: of `PAIR_MAKERS`. pair: its options.
    masks: kinds, one drawn per slice. acceleration: (lowest, highest), drawn per slice in steps of 0.5.
    one_mask: every slice and scan has the same mask; with one acquisition, kind of mask and acceleration.
    acquisitions: how often each slice is measured, 1 or 2; methods of single scans take two as one, see `pairs.union`.
    pairs: "fixed", these measurements once and for ever; "redrawn", anew at every step: over time that shows
    the network the full k-space, which no study has. noise: standard deviation of the complex noise, of the volume
    maximum, (lowest, highest), drawn per slice, its root uniform: more quiet ones than loud. coils: numbers of simulated coils, one drawn per volume of one coil; none:
    as it is. phase: share of the slices given a smooth phase. translation: largest shift, as a share of the matrix.
    flips: mirror half of the examples along each axis. combined: of several coils one image, by sensitivity maps from the
    input's own k-space centre, the loss over all coils; else, and always with the 2018 U-Net, each coil is an image of its own.
    corrupt: in place of an acquisition, a corruption of the fully sampled images, see `corruptions`; strength: (lowest,
    highest), drawn per slice. loss: in place of the pair's own, see `losses.LOSSES`.
    """

    method: str = "noise2noise"
    pair: PairOptions = field(default_factory=PairOptions)
    pairs: str = "fixed"
    acquisitions: int = 2
    masks: tuple[str, ...] = ("roulette",)
    acceleration: tuple[float, float] = (10.0, 10.0)
    one_mask: bool = False
    noise: tuple[float, float] = (0.0, 0.0)
    coils: tuple[int, ...] = ()
    phase: float = 0.0
    translation: float = 0.25
    flips: bool = True
    combined: bool = True
    undersample: bool = False
    corrupt: str | None = None
    strength: tuple[float, float] | None = None
    loss: str | None = None
    seed: int = 0

    @property
    def recipe_2018(self) -> bool:
        return self.method.endswith("-2018")


def simulated_repetitions(
    full: Tensor, index: int, name: str, protocol: Protocol, draw: Generator | None = None, coil: int = 0
) -> Measured:
    """Two independent acquisitions and the full k-space, of one slice's full k-space (1, coils, y, x), or of one coil of it.

    With `draw` None everything depends on the seed, the name and the slice (noise on the coil too): the same two
    acquisitions for ever.
    """
    about = seeded(protocol.seed, "slice", name, index)
    kind, acceleration, deviation = design(protocol, about)
    image = None
    if torch.rand((), generator=about) < protocol.phase:
        image = ifft2c(full) * smooth_phase(tuple(full.shape[-2:]), about)
    coils = simulated_coils(name, protocol)
    if coils > 1 and full.shape[1] == 1:
        image = ifft2c(full) if image is None else image
        image = image * simulated_sensitivities(protocol.seed, name, coils, tuple(full.shape[-2:]))
    full = full if image is None else fft2c(image)
    hermitian = full.shape[1] == 1 and is_hermitian(full)

    def repeat(repetition: int) -> Acquisition:
        about_mask = (repetition,) if protocol.one_mask else (repetition, name, index)
        mask_draw = draw or seeded(protocol.seed, "repetition", *about_mask)
        noise_draw = draw or seeded(protocol.seed, "noise", repetition, name, index, coil)
        sampling = draw_mask(kind, tuple(full.shape[-2:]), acceleration, mask_draw, hermitian=hermitian)
        if protocol.one_mask:  # what it leaves out is never sampled
            sampling = Sampling(sampling.mask, sampling.mask)
        return measure(full, sampling, noise_draw, noise_variance=deviation**2)

    return Measured(repeat(1), repeat(2) if protocol.acquisitions == 2 else None, full)


def simulated_coils(name: str, protocol: Protocol) -> int:
    """How many coils a volume of one coil is given."""
    if not protocol.coils:
        return 1
    return protocol.coils[int(torch.randint(len(protocol.coils), (), generator=seeded(protocol.seed, "coils", name)))]


@lru_cache(maxsize=16)
def simulated_sensitivities(seed: int, name: str, coils: int, shape: tuple[int, int]) -> Tensor:
    """Sensitivities (1, coils, y, x) of a volume's simulated coils, sum |S|^2 = 1, the same for all its slices."""
    return sensitivities(coils, shape, seeded(seed, "sensitivities", name))


def undersampled(
    acquisition: Acquisition, index: int, name: str, repetition: int, protocol: Protocol, draw: Generator | None = None
) -> Acquisition:
    """A measured slice with fewer of its samples: mask and probability are multiplied by those of an independent draw.

    draw: as in `simulated_repetitions`.
    """
    kind, acceleration, _ = design(protocol, seeded(protocol.seed, "slice", name, index))
    draw = draw or seeded(protocol.seed, "repetition", repetition, name, index)
    sampling = draw_mask(kind, tuple(acquisition.kspace.shape[-2:]), acceleration, draw)
    mask = acquisition.mask * sampling.mask
    probability = acquisition.probability * sampling.probability
    return replace(acquisition, kspace=acquisition.kspace * mask, mask=mask, probability=probability)


def design(protocol: Protocol, about: Generator) -> tuple[str, float, float]:
    """(kind of mask, acceleration, standard deviation of the noise) of a slice."""
    kind = protocol.masks[int(torch.randint(len(protocol.masks), (), generator=about))]
    low, high = protocol.acceleration
    acceleration = low + 0.5 * int(torch.randint(int((high - low) * 2) + 1, (), generator=about))
    quiet, loud = protocol.noise
    # Drawn only where there is something to draw, so that other draws of the slice stay what they were.
    deviation = quiet if quiet == loud else quiet + (loud - quiet) * torch.rand((), generator=about).item() ** 2
    return kind, acceleration, deviation


def is_hermitian(kspace: Tensor) -> bool:
    """Whether k-space (..., y, x) belongs to a real image, to rounding."""
    image = ifft2c(kspace)
    return bool(image.imag.abs().amax() <= 1e-5 * image.real.abs().amax())


def one_slice(acquisition: Acquisition, index: int, coil: int | None) -> Acquisition:
    """One slice, of all coils or of one, as an acquisition (1, coils, y, x) of its own."""
    of_slice = lambda value: value if value is None or value.shape[0] == 1 else value[index : index + 1]  # noqa: E731
    coils = slice(None) if coil is None else slice(coil, coil + 1)
    kspace = acquisition.kspace[index : index + 1, coils].clone()  # not a view that keeps the volume alive
    noise = acquisition.noise_variance
    noise = of_slice(noise) if isinstance(noise, Tensor) else noise
    return Acquisition(kspace, of_slice(acquisition.mask), of_slice(acquisition.probability), None, noise)
