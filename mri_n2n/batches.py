"""From a data set to training pairs: which slices, in which order, acquired how. The only place where training is random.

Every draw depends on (seed, names, epoch) alone, so that a resumed run goes on exactly as an uninterrupted one.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.coils import calibration_region, patch_side, with_sensitivity_maps
from mri_n2n.corruptions import corrupted_pair
from mri_n2n.distributed import ALONE, Processes, shared_out
from mri_n2n.fourier import mirror_axes
from mri_n2n.masks import draw_mask
from mri_n2n.movement import flip, translate
from mri_n2n.noise import noise_variance, noise_variance_at_most
from mri_n2n.pairs import (
    NOISE_METHODS,
    OTHER_MASK_METHODS,
    PAIR_MAKERS,
    SINGLE_SCAN_METHODS,
    SPLITTING_METHODS,
    Measured,
    Pair,
    joined,
    keep_probability,
    union,
)
from mri_n2n.protocol import Protocol, design, is_hermitian, one_slice, simulated_repetitions, undersampled
from mri_n2n.simulation import eight_bit, seeded
from mri_n2n.sources import Source
from mri_n2n.volumes import Volume

# Slices are shuffled within groups of files; groups and their order change every epoch.
FILES_IN_GROUP = 4
# Volumes stay in memory up to this size, so that a small data set is read once and a large one does not fill memory;
# so do sensitivity maps, which take longer to estimate than a training step.
MEMORY_FOR_VOLUMES = 2**28
MEMORY_FOR_MAPS = 2**30
MEMORY_FOR_MASKS = 2**27


def steps_per_epoch(sources: Sequence[Source], batch_size: int, shards: int = 1) -> int:
    """How many batches show every slice of the sources once."""
    slices = [source.slices for source in sources]
    most = max(sum(slices[i] for i in shard) for shard in shared_out(slices, shards)) if slices else 0
    return -(-most // (batch_size // shards))


def training_batches(
    sources: Sequence[Source],
    protocol: Protocol,
    batch_size: int,
    first_step: int = 0,
    shards: int = 1,
    processes: Processes = ALONE,
) -> Iterator[list[Pair]]:
    """Endless batches from step `first_step` on; each a list of pairs, one per shard and shape of k-space that the batch holds.

    shards: parts that the files are divided into, each of which gives an equal share of every batch, until the larger ones alone are left
    at the end of an epoch. A process makes the shares of its own shards, and reads no other files: what is drawn depends on the number of shards, not on that of
    processes, which must divide it, and what is added up too: one process joins no slices of two shards. A process whose shards have no
    slices left gives an empty list.
    """
    per_epoch = steps_per_epoch(sources, batch_size, shards)
    own = shared_out([source.slices for source in sources], shards)[processes.rank :: processes.count]
    memory = MEMORY_FOR_VOLUMES // len(own)
    maps: dict[tuple, Tensor] = {}
    streams = [
        _examples([sources[i] for i in shard], protocol, batch_size // shards, first_step, per_epoch, memory, maps)
        for shard in own
    ]
    for parts in zip(*streams):
        yield [pair for part in parts for pair in _collate(part)]


def _examples(
    sources: Sequence[Source],
    protocol: Protocol,
    count: int,
    first_step: int,
    per_epoch: int,
    memory: int,
    maps: dict[tuple, Tensor],
) -> Iterator[list[Pair]]:
    """Of one shard, `count` training pairs a step; fewer and none at the end of an epoch of `per_epoch` steps."""
    epoch, skip = divmod(first_step, per_epoch)
    loaded: dict[int, Volume] = {}
    masks: dict[int, Tensor] = {}
    while True:
        steps = 0
        for examples in _epoch(sources, protocol, count, epoch, skip, memory, loaded, maps, masks):
            yield examples
            steps += 1
        for _ in range(per_epoch - skip - steps):
            yield []
        epoch, skip = epoch + 1, 0


def _epoch(
    sources: Sequence[Source],
    protocol: Protocol,
    batch_size: int,
    epoch: int,
    skip: int,
    memory: int,
    loaded: dict[int, Volume],
    maps: dict[tuple, Tensor],
    masks: dict[int, Tensor],
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
            other = None
            if protocol.method in OTHER_MASK_METHODS and _is_single_scan(loaded[file]):
                about = seeded(protocol.seed, "other mask", epoch, sources[file].name, index)
                other = _other_mask(sources, file, index, loaded, masks, about)
            examples.append(_example(loaded[file], index, sources[file].name, protocol, draw, maps, other))
        yield examples
        done = [file for file in loaded if last[file] < start + batch_size]
        while done and sum(map(_bytes, loaded.values())) > memory:
            del loaded[done.pop(0)]


def _is_single_scan(data: Volume) -> bool:
    return not isinstance(data, Tensor) and len(data) == 1


def _other_mask(
    sources: Sequence[Source],
    file: int,
    index: int,
    loaded: dict[int, Volume],
    masks: dict[int, Tensor],
    draw: Generator,
) -> Tensor | None:
    """A mask (1, 1, y, x) of the data set that is not that of this slice, of its matrix; None where all are the same.

    masks: those of the scans that were looked at, filled here.
    """
    own = one_slice(loaded[file][0], index, None).mask
    for candidate in torch.randperm(len(sources), generator=draw).tolist():
        if candidate not in masks:
            data = loaded[candidate] if candidate in loaded else sources[candidate].load()
            masks[candidate] = torch.unique(data[0].mask.bool(), dim=0)
            while sum(mask.numel() for mask in masks.values()) > MEMORY_FOR_MASKS:  # a byte each; the oldest goes
                del masks[next(iter(masks))]
            if candidate not in masks:
                continue
        if masks[candidate].shape[-2:] == own.shape[-2:]:
            others = [mask for mask in masks[candidate].to(own.dtype) if not torch.equal(mask, own[0])]
            if others:
                return others[int(torch.randint(len(others), (), generator=draw))][None]
    return None


def _bytes(data: Volume) -> int:
    if isinstance(data, Tensor):
        tensors = [data]
    else:
        tensors = [t for a in data for t in (a.kspace, a.mask, a.probability) if t is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _example(
    data: Volume,
    index: int,
    name: str,
    protocol: Protocol,
    draw: Generator,
    maps: dict[tuple, Tensor],
    other: Tensor | None = None,
) -> Pair:
    """The training pair of one slice. What belongs to the scan is drawn by its name, what to training by `draw`.

    maps: sensitivity maps of inputs that come again, by what they are of; filled here. other: of a scan without
    repetitions the mask of another one, where the method needs one.
    """
    if protocol.corrupt:
        return _corrupted(data, index, name, protocol, draw)
    if isinstance(data, Tensor):
        measured, which = _simulated(data, index, name, protocol, draw)
        comes_again = protocol.pairs == "fixed"
    else:
        measured, which = _chosen(data, index, name, protocol, draw)
        measured = measured if other is None else replace(measured, other_mask=other)
        comes_again = not protocol.undersample or protocol.pairs == "fixed"
    key = (name, index, which) if comes_again else None
    # Maps are of the input's samples alone: found now where these are known before the pair is made, else after it.
    if measured.first.kspace.shape[1] > 1:
        measured = replace(measured, first=_with_maps(measured.first, key, protocol, maps))
    shift, axes = drawn_movement(measured.first, protocol, draw)
    options = protocol.pair
    if options.exchange and (isinstance(data, Tensor) or protocol.undersample):
        # The lines of a comb are not drawn one by one.
        kind, *_ = design(protocol, seeded(protocol.seed, "slice", name, index))
        options = replace(options, exchange=kind != "equispaced-lines")
    pair = PAIR_MAKERS[protocol.method](moved(measured, shift, axes), options, draw)
    if pair.input.kspace.shape[1] > 1 and pair.input.sensitivity_maps is None:
        pair = replace(pair, input=_calibrated(pair.input, pair.input))
    return replace(pair, loss=protocol.loss or pair.loss)


def _corrupted(data: Tensor, index: int, name: str, protocol: Protocol, draw: Generator) -> Pair:
    """The training pair of one slice whose image is corrupted, not undersampled."""
    if protocol.pairs == "redrawn":
        draws = [draw, draw]
    else:
        draws = [seeded(protocol.seed, "corruption", repetition, name, index) for repetition in (1, 2)]
        if torch.rand((), generator=draw) < 0.5:
            draws.reverse()
    clean = protocol.method == "supervised"
    full = data[index : index + 1]
    pair = corrupted_pair(full, protocol.corrupt, protocol.strength, tuple(draws), clean=clean, loss=protocol.loss)
    return moved_pair(pair, *drawn_movement(pair.input, protocol, draw))


def drawn_movement(
    acquisition: Acquisition, protocol: Protocol, draw: Generator
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """(shift by (y, x) pixels, axes to mirror along), drawn."""
    *_, y, x = acquisition.kspace.shape
    shift = tuple(round((2 * torch.rand((), generator=draw).item() - 1) * protocol.translation * n) for n in (y, x))
    return shift, tuple(axis for axis in (-2, -1) if protocol.flips and torch.rand((), generator=draw) < 0.5)


def moved_pair(pair: Pair, shift: tuple[int, int], axes: tuple[int, ...]) -> Pair:
    """With the object of input and target shifted by (y, x) pixels and mirrored along `axes`."""
    given = flip(translate(pair.input, shift), axes)
    if pair.domain == "kspace":
        target = flip(translate(Acquisition(pair.target, pair.input.mask), shift), axes).kspace
        return replace(pair, input=given, target=target, weight=mirror_axes(pair.weight, axes))
    target, weight = (mirror_axes(value.roll(shift, (-2, -1)), axes) for value in (pair.target, pair.weight))
    return replace(pair, input=given, target=target, weight=weight)


def moved(measured: Measured, shift: tuple[int, int], axes: tuple[int, ...]) -> Measured:
    """With the object shifted by (y, x) pixels and mirrored along `axes`."""
    move = lambda a: None if a is None else flip(translate(a, shift), axes)  # noqa: E731
    full, other = measured.full, measured.other_mask
    if full is not None:
        full = move(Acquisition(full, torch.ones_like(measured.first.mask))).kspace
    other = None if other is None else mirror_axes(other, axes)
    return Measured(move(measured.first), move(measured.second), full, other)


def _simulated(data: Tensor, index: int, name: str, protocol: Protocol, draw: Generator) -> tuple[Measured, int]:
    """What is measured of a slice of full k-space, and which of its two acquisitions comes first."""
    full = data[index : index + 1]
    if protocol.recipe_2018 and is_hermitian(full):
        full = eight_bit(full)  # as the paper stored its slices
    coil = 0
    if full.shape[1] > 1 and not protocol.combined:  # every coil is an image of its own, under one mask
        coil = int(torch.randint(full.shape[1], (), generator=draw))
        full = full[:, coil : coil + 1]
    anew = draw if protocol.pairs == "redrawn" else None
    measured = simulated_repetitions(full, index, name, protocol, anew, coil)
    swapped = protocol.acquisitions == 2 and bool(torch.rand((), generator=draw) < 0.5)
    if swapped:
        measured = replace(measured, first=measured.second, second=measured.first)
    if protocol.acquisitions == 2 and protocol.method in SINGLE_SCAN_METHODS:
        measured = replace(measured, first=union(measured.first, measured.second))
    if protocol.method in OTHER_MASK_METHODS:
        kind, acceleration, _ = design(protocol, seeded(protocol.seed, "slice", name, index))
        hermitian = bool(torch.equal(measured.first.mask, mirror_axes(measured.first.mask, (-2, -1))))
        sampling = draw_mask(kind, tuple(full.shape[-2:]), acceleration, draw, hermitian=hermitian)
        measured = replace(measured, other_mask=sampling.mask[None, None])
    return measured, int(swapped)


def _chosen(
    data: tuple[Acquisition, ...], index: int, name: str, protocol: Protocol, draw: Generator
) -> tuple[Measured, int]:
    """A slice of one or two of a scan's repetitions, drawn, and which comes first."""
    chosen = torch.randperm(len(data), generator=draw)[:2].tolist()
    coil = int(torch.randint(data[0].kspace.shape[1], (), generator=draw))
    coil = None if protocol.combined else coil
    some = [one_slice(data[i], index, coil) for i in chosen]
    if protocol.undersample:
        anew = draw if protocol.pairs == "redrawn" else None
        some = [undersampled(a, index, name, i, protocol, anew) for a, i in zip(some, chosen)]
    other = None
    if protocol.method in OTHER_MASK_METHODS and len(some) > 1:
        masks = some[-1].mask if protocol.undersample else data[chosen[-1]].mask
        other = masks[int(torch.randint(len(masks), (), generator=draw))][None]
    if protocol.method in NOISE_METHODS and some[0].noise_variance is None:
        bound = noise_variance_at_most(some[0].kspace, some[0].mask).nan_to_num(0.0).float()
        some[0] = replace(some[0], noise_variance=bound)
    return Measured(some[0], some[1] if len(some) > 1 else None, None, other), chosen[0]


def _with_maps(
    acquisition: Acquisition, key: tuple | None, protocol: Protocol, maps: dict[tuple, Tensor]
) -> Acquisition:
    """With sensitivity maps: those found before under `key`, or new ones, kept as long as there is room. Where the method
    divides or exchanges samples, from those that stay in the input whatever is drawn; too few for maps: without them."""
    if key in maps:
        return replace(acquisition, sensitivity_maps=maps[key])
    calibration = acquisition
    divided = protocol.method in SPLITTING_METHODS
    if divided or protocol.pair.exchange:
        stays = keep_probability(acquisition, protocol.pair.input_share) if divided else acquisition.probability
        certain = acquisition.mask * (stays >= 1)
        if not patch_side(calibration_region(certain[0, 0])):
            return acquisition
        level = noise_variance(acquisition)  # not to be told from the centre alone
        calibration = replace(acquisition, kspace=acquisition.kspace * certain, mask=certain, noise_variance=level)
    found = _calibrated(acquisition, calibration)
    size = lambda of: of.numel() * of.element_size()  # noqa: E731
    held = sum(map(size, maps.values()))
    if key is not None and held + size(found.sensitivity_maps) <= MEMORY_FOR_MAPS:
        maps[key] = found.sensitivity_maps
    return found


def _calibrated(acquisition: Acquisition, calibration: Acquisition) -> Acquisition:
    """With the sensitivity maps that the samples of `calibration` tell."""
    calibrated, caution = with_sensitivity_maps(calibration)
    if caution:
        warnings.warn(caution, stacklevel=2)
    return replace(acquisition, sensitivity_maps=calibrated.sensitivity_maps)


def _collate(pairs: list[Pair]) -> list[Pair]:
    by_shape: dict[torch.Size, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_shape[pair.input.kspace.shape].append(pair)
    return [joined(same) for same in by_shape.values()]
