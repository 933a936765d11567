"""From a data set to training pairs: which slices, in which order, acquired how. The only place where training is random.

Every draw depends on (seed, names, epoch) alone, so that a resumed run goes on exactly as an uninterrupted one.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import draw_mask
from mri_n2n.pairs import PAIR_MAKERS, Pair, flip, translate
from mri_n2n.simulation import eight_bit, measure, seeded, smooth_phase
from mri_n2n.sources import Source
from mri_n2n.volumes import Volume

# Slices are shuffled within groups of files; groups and their order change every epoch.
FILES_IN_GROUP = 4
# Volumes stay in memory up to this size, so that a small data set is read once and a large one does not fill memory;
# so do sensitivity maps, which take longer to estimate than a training step.
MEMORY_FOR_VOLUMES = 2**30
MEMORY_FOR_MAPS = 2**30


@dataclass(frozen=True)
class Protocol:
    """How a training example is acquired from fully sampled slices. Measured repetitions use recipe and seed, and with
    `undersample` masks, acceleration and pairs: their samples are taken once more, with independent masks.

    masks: kinds, one drawn per slice. acceleration: (lowest, highest), drawn per slice in steps of 0.5.
    pairs: "fixed", each slice is acquired exactly twice, for ever; "redrawn", anew at every step: over time that shows
    the network the full k-space, which no study has. noise: standard deviation of the complex noise, of the volume
    maximum. phase: share of the slices given a smooth phase. translation: largest shift, as a share of the matrix.
    flips: mirror half of the examples along each axis. combined: of several coils one image, by sensitivity maps from the
    input's own k-space centre, the loss over all coils; else, and always with the 2018 U-Net, each coil is an image of its own.
    """

    recipe: str = "default"
    targets: str = "undersampled"
    pairs: str = "fixed"
    masks: tuple[str, ...] = ("roulette",)
    acceleration: tuple[float, float] = (10.0, 10.0)
    noise: float = 0.0
    phase: float = 0.0
    translation: float = 0.25
    flips: bool = True
    combined: bool = True
    undersample: bool = False
    seed: int = 0


def steps_per_epoch(sources: Sequence[Source], batch_size: int) -> int:
    """How many batches show every slice of the sources once."""
    return -(-sum(source.slices for source in sources) // batch_size)


def training_batches(
    sources: Sequence[Source], protocol: Protocol, batch_size: int, first_step: int = 0
) -> Iterator[list[Pair]]:
    """Endless batches from step `first_step` on; each a list of pairs, one per shape of k-space that the batch holds."""
    epoch, skip = divmod(first_step, steps_per_epoch(sources, batch_size))
    loaded: dict[int, Volume] = {}
    maps: dict[tuple, Tensor] = {}
    while True:
        yield from _epoch(sources, protocol, batch_size, epoch, skip, loaded, maps)
        epoch, skip = epoch + 1, 0


def _epoch(
    sources: Sequence[Source],
    protocol: Protocol,
    batch_size: int,
    epoch: int,
    skip: int,
    loaded: dict[int, Volume],
    maps: dict[tuple, Tensor],
) -> Iterator[list[Pair]]:
    generator = seeded(protocol.seed, "order", epoch)
    files = torch.randperm(len(sources), generator=generator).tolist()
    order: list[tuple[int, int]] = []
    for start in range(0, len(files), FILES_IN_GROUP):
        group = [
            (file, index) for file in files[start : start + FILES_IN_GROUP] for index in range(sources[file].slices)
        ]
        order += [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
    last = {file: position for position, (file, _) in enumerate(order)}
    for start in range(skip * batch_size, len(order), batch_size):
        examples = []
        for file, index in order[start : start + batch_size]:
            if file not in loaded:
                loaded[file] = sources[file].load()
            draw = seeded(protocol.seed, "epoch", epoch, sources[file].name, index)
            examples.append(_example(loaded[file], index, sources[file].name, protocol, draw, maps))
        yield _collate(examples, protocol)
        done = [file for file in loaded if last[file] < start + batch_size]
        while done and sum(map(_bytes, loaded.values())) > MEMORY_FOR_VOLUMES:
            del loaded[done.pop(0)]


def _bytes(data: Volume) -> int:
    if isinstance(data, Tensor):
        tensors = [data]
    else:
        tensors = [t for a in data for t in (a.kspace, a.mask, a.probability) if t is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _example(
    data: Volume, index: int, name: str, protocol: Protocol, draw: Generator, maps: dict[tuple, Tensor]
) -> tuple[Acquisition, Acquisition]:
    """(input, target) acquisitions of one slice. What belongs to the scan is drawn by its name, what to training by `draw`.

    maps: sensitivity maps of inputs that come again, by what they are of; filled here.
    """
    if isinstance(data, Tensor):
        full = data[index : index + 1]
        if protocol.recipe == "noise2noise-2018" and is_hermitian(full):
            full = eight_bit(full)  # as the paper stored its slices
        coil = 0
        if full.shape[1] > 1 and not protocol.combined:  # every coil is an image of its own, under one mask
            coil = int(torch.randint(full.shape[1], (), generator=draw))
            full = full[:, coil : coil + 1]
        first, second, full = simulated_repetitions(
            full, index, name, protocol, draw if protocol.pairs == "redrawn" else None, coil
        )
        swapped = bool(torch.rand((), generator=draw) < 0.5)
        if swapped:
            first, second = second, first
        target, which = full if protocol.targets == "clean" else second, int(swapped)
        comes_again = protocol.pairs == "fixed"
    else:
        chosen = torch.randperm(len(data), generator=draw)[:2].tolist()
        coil = int(torch.randint(data[0].kspace.shape[1], (), generator=draw))
        coil = None if protocol.combined else coil
        first, target = (one_slice(data[i], index, coil) for i in chosen)
        if protocol.undersample:
            anew = draw if protocol.pairs == "redrawn" else None
            first, target = (undersampled(a, index, name, i, protocol, anew) for a, i in zip((first, target), chosen))
        which, comes_again = chosen[0], not protocol.undersample or protocol.pairs == "fixed"
    if first.kspace.shape[1] > 1:
        first = _with_maps(first, (name, index, which) if comes_again else None, maps)
    *_, y, x = first.kspace.shape
    shift = [round((2 * torch.rand((), generator=draw).item() - 1) * protocol.translation * n) for n in (y, x)]
    axes = tuple(axis for axis in (-2, -1) if protocol.flips and torch.rand((), generator=draw) < 0.5)
    first, target = (flip(translate(side, tuple(shift)), axes) for side in (first, target))
    return first, target


def _with_maps(acquisition: Acquisition, key: tuple | None, maps: dict[tuple, Tensor]) -> Acquisition:
    """With sensitivity maps: those found before under `key`, or new ones, kept as long as there is room."""
    if key in maps:
        return replace(acquisition, sensitivity_maps=maps[key])
    acquisition, caution = with_sensitivity_maps(acquisition)
    if caution:
        warnings.warn(caution, stacklevel=2)
    found = acquisition.sensitivity_maps
    if key is not None and (len(maps) + 1) * found.numel() * found.element_size() <= MEMORY_FOR_MAPS:
        maps[key] = found
    return acquisition


def simulated_repetitions(
    full: Tensor, index: int, name: str, protocol: Protocol, draw: Generator | None = None, coil: int = 0
) -> tuple[Acquisition, Acquisition, Acquisition]:
    """Two independent acquisitions and the full one, of one slice's full k-space (1, coils, y, x), or of one coil of it.

    With `draw` None everything depends on the seed, the name and the slice (noise on the coil too): the same two
    acquisitions for ever.
    """
    about = seeded(protocol.seed, "slice", name, index)
    kind, acceleration = _kind_of_mask(protocol, about)
    if torch.rand((), generator=about) < protocol.phase:
        full = fft2c(ifft2c(full) * smooth_phase(tuple(full.shape[-2:]), about))
    hermitian = is_hermitian(full)

    def repeat(repetition: int) -> Acquisition:
        mask_draw = draw or seeded(protocol.seed, "repetition", repetition, name, index)
        noise_draw = draw or seeded(protocol.seed, "noise", repetition, name, index, coil)
        sampling = draw_mask(kind, tuple(full.shape[-2:]), acceleration, mask_draw, hermitian=hermitian)
        return measure(full, sampling, noise_draw, noise_variance=protocol.noise**2)

    first, second = repeat(1), repeat(2)
    ones = torch.ones_like(first.mask)
    return first, second, Acquisition(full, ones, ones, None, 0.0)


def undersampled(
    acquisition: Acquisition, index: int, name: str, repetition: int, protocol: Protocol, draw: Generator | None = None
) -> Acquisition:
    """A measured slice with fewer of its samples: mask and probability are multiplied by those of an independent draw.

    draw: as in `simulated_repetitions`.
    """
    kind, acceleration = _kind_of_mask(protocol, seeded(protocol.seed, "slice", name, index))
    draw = draw or seeded(protocol.seed, "repetition", repetition, name, index)
    sampling = draw_mask(kind, tuple(acquisition.kspace.shape[-2:]), acceleration, draw)
    mask = acquisition.mask * sampling.mask
    probability = acquisition.probability * sampling.probability
    return replace(acquisition, kspace=acquisition.kspace * mask, mask=mask, probability=probability)


def _kind_of_mask(protocol: Protocol, about: Generator) -> tuple[str, float]:
    kind = protocol.masks[int(torch.randint(len(protocol.masks), (), generator=about))]
    low, high = protocol.acceleration
    return kind, low + 0.5 * int(torch.randint(int((high - low) * 2) + 1, (), generator=about))


def is_hermitian(kspace: Tensor) -> bool:
    """Whether k-space (..., y, x) belongs to a real image, to rounding."""
    image = ifft2c(kspace)
    return bool(image.imag.abs().amax() <= 1e-5 * image.real.abs().amax())


def one_slice(acquisition: Acquisition, index: int, coil: int | None) -> Acquisition:
    """One slice, of all coils or of one, as an acquisition (1, coils, y, x) of its own."""
    of_slice = lambda value: value if value is None or value.shape[0] == 1 else value[index : index + 1]  # noqa: E731
    coils = slice(None) if coil is None else slice(coil, coil + 1)
    kspace = acquisition.kspace[index : index + 1, coils].clone()  # not a view that keeps the volume alive
    return Acquisition(
        kspace, of_slice(acquisition.mask), of_slice(acquisition.probability), None, acquisition.noise_variance
    )


def _collate(examples: list[tuple[Acquisition, Acquisition]], protocol: Protocol) -> list[Pair]:
    by_shape: dict[torch.Size, list[tuple[Acquisition, Acquisition]]] = defaultdict(list)
    for example in examples:
        by_shape[example[0].kspace.shape].append(example)
    make = PAIR_MAKERS[protocol.recipe, protocol.targets]
    return [make(*(concatenate(list(side)) for side in zip(*same))) for same in by_shape.values()]


def concatenate(acquisitions: Sequence[Acquisition]) -> Acquisition:
    """One batch of single-slice acquisitions of one shape; the noise variance is the mean."""
    probabilities = [a.probability for a in acquisitions]
    maps = [a.sensitivity_maps for a in acquisitions]
    variances = [a.noise_variance for a in acquisitions]
    return Acquisition(
        torch.cat([a.kspace for a in acquisitions]),
        torch.cat([a.mask for a in acquisitions]),
        None if any(p is None for p in probabilities) else torch.cat(probabilities),
        None if any(m is None for m in maps) else torch.cat(maps),
        None if any(v is None for v in variances) else sum(variances) / len(variances),
    )
