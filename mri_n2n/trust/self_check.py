"""What a single scan says of its own reconstruction: its samples are held out in turn and predicted from the others.

From the samples of a fold, each drawn with probability p, sum M (1 - p) / p (|e|^2 - v) / N is on average the squared error of the
locations without samples, of a reconstruction that lacks this fold; the chance of it is that of Horvitz and Thompson, see
`error_estimate`. The image itself lacks none, so it is better: errors are taken for a power of the number of samples, which two sizes of
folds tell, a tenth and a fifth, and extrapolated to all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.fourier import fft2c
from mri_n2n.trust.design import Design
from mri_n2n.trust.error_bars import ErrorBars, Scores, band_edges, error_bars, scores_of
from mri_n2n.trust.error_estimate import Estimate, Terms, estimate, terms_of
from mri_n2n.trust.folds import FOLDS, Box, Divided, divide

# Errors are a power of the number of samples: from a fold of 1 / K left out, and two of them, to none.
EXPONENT = math.log(1 - 1 / FOLDS) / math.log((1 - 2 / FOLDS) / (1 - 1 / FOLDS))
GAPS = "lines at equal distances: one that is held out leaves a wider gap than any that was not sampled"
FULL = "everything that could be sampled was sampled"
FEW_SCORES = "too few samples can be held out for error bars"
FEW = f"fewer than {FOLDS} lines or points outside the calibration centre can be held out"


@dataclass(frozen=True)
class SelfCheck:
    """The squared error of locations without samples, of the coil images, over the pixels of the acquired field of view: mse of the volume,
    slices of each slice, None where nothing can be said of it.

    shares of k-space: measured; spoken_for: without samples, of which the estimate speaks; silent: the rest.
    extrapolated: what the error without a tenth of the samples was multiplied by. noise: whether the noise of the held-out samples,
    whose level is not known, is still in it. assumed: the sampling probability was not stored, and was estimated from the masks.
    """

    mse: Estimate
    slices: tuple[Estimate | None, ...]
    measured: float
    spoken_for: float
    silent: float
    extrapolated: float
    noise: bool
    assumed: bool


@dataclass(frozen=True)
class Checked:
    """What could be said, and why nothing of what was not sampled. bars are None too where too few samples can be held out for them."""

    error: SelfCheck | None
    bars: ErrorBars | None
    silence: tuple[str, ...]


@dataclass(frozen=True)
class Slice:
    """What the folds said of one slice. tenth, fifth: terms where a tenth, a fifth of the samples was left out."""

    divided: Divided
    tenth: Terms
    fifth: Terms | None
    scores: Scores | None


Read = Callable[[int, int], Acquisition]
ImagesOf = Callable[[Acquisition], Tensor]


def check_itself(
    read: Read,
    images_of: ImagesOf,
    slices: int,
    at_once: int,
    *,
    estimates: bool,
    bars: bool,
    acquired: Box | None = None,
) -> Checked:
    """Hold out what the masks of a scan drew, fold by fold, and reconstruct the rest: `FOLDS` reconstructions of each slice, and half as
    many more with `estimates`. read(start, stop): slices, with their maps if there are several coils. images_of: as of
    `reconstructors.Reconstructor`. acquired: see `folds.divide`. Slices of one mask hold out the same."""
    draw, known, found = Generator().manual_seed(0), {}, []
    shares, noise, assumed, edges = torch.zeros(2, dtype=torch.float64), False, False, None
    for start in range(0, slices, at_once):
        acquisition = read(start, min(start + at_once, slices))
        divided = [_divided(acquisition, index, known, draw, acquired) for index in range(len(acquisition.kspace))]
        for one, mask in zip(divided, acquisition.mask.cpu().expand(len(divided), -1, -1, -1), strict=True):
            spoken_for = 0.0 if one is None else one.spoken_for.double().mean().item()
            shares += torch.tensor([mask.double().mean().item(), spoken_for], dtype=torch.float64) / slices
        some = [index for index, one in enumerate(divided) if one is not None]
        found += [None] * len(divided)
        if not some:
            continue
        noise |= acquisition.noise_variance is None
        assumed |= acquisition.probability is None
        edges = band_edges(divided[some[0]].fold >= 0) if edges is None else edges
        there = acquisition.slices(torch.tensor(some, device=acquisition.kspace.device))
        for index, one in zip(some, _checked(there, [divided[i] for i in some], images_of, edges, estimates, bars)):
            found[start + index] = one
    shape = tuple(acquisition.kspace.shape[-2:])
    measured, spoken_for = shares.tolist()
    if not any(found):
        inside = 1.0 if acquired is None else math.prod(b - a for a, b in acquired) / math.prod(shape)
        return Checked(None, None, (FULL if measured >= 0.999 * inside else FEW,))
    error, silence = None, ()
    if any(one.divided.design.equidistant for one in found if one is not None):
        silence = (GAPS,)
    elif estimates:
        error = _error(found, shape, measured, spoken_for, noise, assumed)
    found_bars = error_bars([None if one is None else one.scores for one in found], shape, edges) if bars else None
    return Checked(error, found_bars, silence)


def _divided(
    acquisition: Acquisition, index: int, known: dict[bytes, Divided | None], draw: Generator, acquired: Box | None
) -> Divided | None:
    """The folds of a slice, those of other slices with its mask; None of one without samples, or with too few."""
    mask = acquisition.mask[index if len(acquisition.mask) > 1 else 0, 0].cpu()
    chance = acquisition.probability
    chance = None if chance is None else chance[index if len(chance) > 1 else 0, 0].cpu()
    if not acquisition.kspace[index].any():
        return None
    key = hashlib.sha256(mask.numpy().tobytes() + (b"" if chance is None else chance.numpy().tobytes())).digest()
    if key not in known:
        known[key] = divide(
            mask, chance, with_maps=acquisition.sensitivity_maps is not None, draw=draw, acquired=acquired
        )
    return known[key]


def _checked(
    acquisition: Acquisition,
    divided: Sequence[Divided],
    images_of: ImagesOf,
    edges: Tensor,
    estimates: bool,
    bars: bool,
) -> Iterator[Slice]:
    """Of slices that can be divided."""
    fold = torch.stack([one.fold for one in divided])[:, None]
    open_ = torch.stack([one.open for one in divided])[:, None]
    tenth, images = _held_out(acquisition, fold, open_, images_of)
    fifth = _held_out(acquisition, fold.div(2, rounding_mode="floor"), open_, images_of)[0] if estimates else None
    variance = 0.0 if acquisition.noise_variance is None else acquisition.noise_variance
    variance = torch.as_tensor(variance, dtype=torch.float64).cpu().expand(len(fold), 1, 1, 1)
    maps = acquisition.sensitivity_maps
    for index, one in enumerate(divided):
        held = (one.fold >= 0).double()
        terms = lambda residual: terms_of(residual[index], held, variance[index])  # noqa: B023, E731
        empty = acquisition.mask[index if len(acquisition.mask) > 1 else 0, 0].cpu() == 0
        of_slice = None if maps is None else maps[index].cpu()
        scores = scores_of(images[:, index], of_slice, tenth[index], one.fold, empty, edges) if bars else None
        yield Slice(one, terms(tenth), None if fifth is None else terms(fifth), scores)


def _held_out(acquisition: Acquisition, fold: Tensor, open_: Tensor, images_of: ImagesOf) -> tuple[Tensor, Tensor]:
    """(F S x' - s of each sample of a fold (slices, 1, y, x) from the image without its fold, (slices, coils, y, x); the images
    (folds, slices, 1 or coils, y, x)), on the CPU. open_: (slices, 1, y, x), where folds are from."""
    maps, residual, images = acquisition.sensitivity_maps, torch.zeros_like(acquisition.kspace, device="cpu"), []
    maps, kspace = None if maps is None else maps.cpu(), acquisition.kspace.cpu()
    folds, chance = int(fold.max()) + 1, acquisition.probability
    if chance is not None:  # of the rest of the samples
        chance = torch.where(open_.to(chance.device), (1 - 1 / folds) * chance, chance)
    for number in range(folds):
        out = fold == number
        left = (~out).to(acquisition.mask)
        fewer = replace(acquisition, kspace=left * acquisition.kspace, mask=left * acquisition.mask, probability=chance)
        image = images_of(fewer)
        images.append(image)
        residual = torch.where(out, fft2c(image if maps is None else maps * image) - kspace, residual)
    return residual, torch.stack(images)


def _error(
    found: Sequence[Slice | None],
    shape: tuple[int, int],
    measured: float,
    spoken_for: float,
    noise: bool,
    assumed: bool,
) -> SelfCheck:
    """Of a volume of slices (y, x)."""
    pixels = math.prod(shape)
    whole, together = pixels * len(found), [one for one in found if one is not None]
    tenth = _unsampled([(one.divided, one.tenth) for one in together], whole)
    fifth = _unsampled([(one.divided, one.fifth) for one in together], whole)
    told = min(tenth.value, fifth.value) > 0 and not noise  # noise does not fall with the number of samples
    factor = min(1.0, (tenth.value / fifth.value) ** EXPONENT) if told else 1.0
    slices = [None if one is None else _unsampled([(one.divided, one.tenth)], pixels) for one in found]
    return SelfCheck(
        _extrapolated(tenth, factor),
        tuple(None if one is None else _extrapolated(one, factor) for one in slices),
        measured,
        spoken_for,
        max(0.0, 1 - measured - spoken_for),
        factor,
        noise,
        assumed,
    )


def _unsampled(slices: Sequence[tuple[Divided, Terms]], pixels: int) -> Estimate:
    """The squared error of locations without samples, a pixel: sum M |e|^2 / p, which is that of all locations and whose chance is
    known, less that of the samples, which is certain. Their own noise needs no term: what is weighted by 1 / p - 1 has less of it than the
    chance of all allows for."""
    together: dict[int, tuple[Terms, Design]] = {}
    for divided, terms in slices:
        terms, before = Terms(terms.error, torch.zeros_like(terms.noise)), together.get(id(divided))
        together[id(divided)] = (terms if before is None else before[0] + terms, divided.design)
    all_of_it = estimate(list(together.values()), pixels)
    certain = sum(terms.error.sum().item() for terms, _ in together.values()) / pixels
    return Estimate(*(getattr(all_of_it, name) - certain for name in ("value", "low", "high")))


def _extrapolated(one: Estimate, factor: float) -> Estimate:
    """Half of what the extrapolation changes is taken for its own doubt, beside that of chance."""
    doubt = factor**0.5
    low, high = (one.low * doubt, one.high / doubt) if one.low > 0 else (one.low / doubt, one.high / doubt)
    return Estimate(factor * one.value, factor * low, factor * high)
