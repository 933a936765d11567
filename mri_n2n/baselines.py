"""Classical reconstructions, as baselines for the learned one: zero-filled, SENSE, and compressed sensing.

With A = M F S the measurement, s its samples and W the largest magnitude of A^H s in a slice:

    zero-filled   A^H s
    sense         the minimiser of |A x - s|^2 + w |x|^2, w = `TIKHONOV`: (A^H A + w) x = A^H s by conjugate gradients
    tv, wavelet   W times the minimiser of 1/2 |A x - s / W|^2 + L R(x)

R of `tv` is isotropic total variation: the sum over pixels of sqrt(|d_y x|^2 + |d_x x|^2), differences to the neighbour
before, with periodic ends. R of `wavelet` is the mean, over all shifts of the image, of the l1 norm of its coefficients
(those of the coarsest scale too) in Daubechies' orthonormal wavelets of four taps. Both are |K x|_1 with K below. L is on
the scale of BART's `pics -w W -R T:3:0:L` and `pics -w W -R W:3:0:L`.

Sources: Pruessmann et al., MRM 46, 2001 (SENSE by conjugate gradients); Lustig, Donoho, Pauly, MRM 58, 2007 (wavelets);
Block, Uecker, Frahm, MRM 57, 2007 (total variation, several coils); Boyd, Parikh, Chu, Peleato, Eckstein, Found. Trends
Mach. Learn. 3, 2011 (ADMM); Coifman, Donoho, Translation-invariant de-noising, 1995; Daubechies, CPAM 41, 1988.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.coils import SIDE, calibration_region
from mri_n2n.density import estimate_probability
from mri_n2n.errors import InputError, OptionError
from mri_n2n.fourier import fft2c, ifft2c, mirror_axes
from mri_n2n.masks import is_along, mirror
from mri_n2n.operators import SAMPLES_AT_ONCE, adjoint, conjugate_gradient, density_weights, forward, normal_operator

TIKHONOV, SENSE_ITERATIONS = 3e-3, 30
# ADMM: steps at least and at most, and the relative change of a slice from one to the next at which it is done.
FEWEST, ITERATIONS, TOLERANCE = 10, 150, 3e-4
# ADMM's penalty weight is this times L, so that its threshold for K x is the same share of W whatever L is.
STIFFNESS, RELAXATION = 15.0, 1.7
CG_STEPS = 5  # in each step of ADMM with several coils, from where the step before ended
# The share of samples held out to choose L, and the L that are tried.
HELD_OUT, GRID = 0.1, tuple(0.064 / 2**k for k in range(10))
SMALLEST_SCALE = 16  # pixels along the shorter side that the coarsest wavelets leave, as BART

_ROOT3 = math.sqrt(3.0)
# Daubechies' filters of four taps over sqrt(2): without decimation these are a tight frame.
LOW = tuple(tap / 8 for tap in (1 + _ROOT3, 3 + _ROOT3, 3 - _ROOT3, 1 - _ROOT3))
HIGH = (LOW[3], -LOW[2], LOW[1], -LOW[0])


def differences(image: Tensor) -> Tensor:
    """K of total variation: (batch, 1, y, x) -> (batch, 2, y, x), differences along y and along x."""
    return torch.cat((image - image.roll(1, -2), image - image.roll(1, -1)), dim=1)


def differences_adjoint(field: Tensor) -> Tensor:
    """The adjoint of `differences`: (batch, 2, y, x) -> (batch, 1, y, x)."""
    along_y, along_x = field[:, :1], field[:, 1:]
    return along_y - along_y.roll(-1, -2) + along_x - along_x.roll(-1, -1)


def differences_gram(shape: tuple[int, int]) -> Tensor:
    """What K^H K multiplies each frequency with, (y, x) float32."""
    along = (2 - 2 * torch.cos(2 * torch.pi * (torch.arange(n, dtype=torch.float64) - n // 2) / n) for n in shape)
    y, x = along
    return (y[:, None] + x).float()


def wavelet_levels(shape: tuple[int, int]) -> int:
    """As many as leave `SMALLEST_SCALE` pixels along the shorter side."""
    return max(0, int(math.log2(max(1, min(shape) / SMALLEST_SCALE))))


def wavelets(image: Tensor) -> Tensor:
    """K of wavelets: (batch, 1, y, x) -> (batch, 3 levels + 1, y, x), from fine to coarse, K^H K = 1.

    All coefficients of all shifts, each over 2^level: the share it has in the mean over shifts. Circular at any size;
    they are those of decimated wavelets where 2^levels divides the sides.
    """
    bands, low = [], image
    for level in range(wavelet_levels(tuple(image.shape[-2:]))):
        rows = [_filtered(low, taps, 2**level, -1) for taps in (LOW, HIGH)]
        low, *details = (_filtered(row, taps, 2**level, -2) for row in rows for taps in (LOW, HIGH))
        bands += details
    return torch.cat((*bands, low), dim=1)


def wavelets_adjoint(bands: Tensor) -> Tensor:
    """The adjoint of `wavelets`, and its inverse."""
    low = bands[:, -1:]
    for level in reversed(range(wavelet_levels(tuple(bands.shape[-2:])))):
        quarter = (low, *bands[:, 3 * level : 3 * level + 3].split(1, dim=1))
        rows = (
            _filtered(quarter[i], LOW, -(2**level), -2).add_(_filtered(quarter[i + 1], HIGH, -(2**level), -2))
            for i in (0, 2)
        )
        low = sum(_filtered(row, taps, -(2**level), -1) for row, taps in zip(rows, (LOW, HIGH), strict=True))
    return low


def _filtered(image: Tensor, taps: tuple[float, ...], spacing: int, axis: int) -> Tensor:
    """Circular correlation with taps that lie `spacing` pixels apart; with -spacing its adjoint."""
    found = taps[0] * image
    for number, tap in enumerate(taps[1:], start=1):
        found.add_(image.roll(-number * spacing, axis), alpha=tap)
    return found


def difference_sizes(field: Tensor) -> tuple[Tensor, Tensor]:
    """What R sums of K x: sizes (batch, 1, y, x), and their weights."""
    return torch.linalg.vector_norm(field, dim=1, keepdim=True), field.real.new_ones(1)


def wavelet_sizes(bands: Tensor) -> tuple[Tensor, Tensor]:
    """The same of wavelets: (batch, bands, y, x), and weights (bands, 1, 1): a coefficient over 2^level is one of 4^level."""
    levels = wavelet_levels(tuple(bands.shape[-2:]))
    weights = [0.5 ** (band // 3 + 1) for band in range(3 * levels)] + [0.5**levels]
    return bands.abs(), torch.tensor(weights, device=bands.device)[:, None, None]


@dataclass(frozen=True)
class Penalty:
    """R(x) = sum of weights * sizes of K x.

    gram: (y, x) -> what K^H K multiplies each frequency with, (y, x). sizes: K x -> sizes and weights.
    """

    analysis: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    gram: Callable[[tuple[int, int]], Tensor]
    sizes: Callable[[Tensor], tuple[Tensor, Tensor]]

    def of(self, image: Tensor) -> Tensor:
        """R (batch,) of images (batch, 1, y, x)."""
        sizes, weights = self.sizes(self.analysis(image))
        return (weights * sizes).sum(dim=(1, 2, 3))

    def shrink(self, values: Tensor, threshold: float) -> Tensor:
        """The proximal map of threshold * weighted sizes: sizes less threshold * weight, none below zero."""
        sizes, weights = self.sizes(values)
        return values * (1 - threshold * weights / sizes.clamp_min(1e-30)).clamp_min_(0)


PENALTIES = {
    "tv": Penalty(differences, differences_adjoint, differences_gram, difference_sizes),
    "wavelet": Penalty(wavelets, wavelets_adjoint, torch.ones, wavelet_sizes),
}
BASELINES = ("zero-filled", "sense", *PENALTIES)


@dataclass(frozen=True)
class Solution:
    """Images (batch, 1, y, x), what ADMM goes on from (K x split off, and its scaled multiplier), and the steps that each
    slice needed (batch,): all that were allowed where it was not done."""

    image: Tensor
    split: Tensor
    multiplier: Tensor
    steps: Tensor


def compressed_sensing(
    method: str,
    kspace: Tensor,
    mask: Tensor,
    maps: Tensor | None,
    regularisation: float,
    start: Solution | None = None,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Minimise 1/2 |A x - s|^2 + L R(x) by over-relaxed ADMM on K x = z.

    method: of `PENALTIES`. kspace: on the scale that L is meant for. start: the solution for another L or other samples.
    Each step solves (A^H A + r K^H K) x = A^H s + r K^H (z - u): one coil in k-space, several by conjugate gradients.
    A slice that is done stays as it is, so that it does not depend on those it is computed with.
    """
    penalty, weight = PENALTIES[method], STIFFNESS * regularisation
    zero_filled, measured = adjoint(kspace, mask, maps), normal_operator(mask, maps)
    gram = penalty.gram(tuple(mask.shape[-2:])).to(mask.device)
    image = zero_filled if start is None else start.image
    split = penalty.analysis(image) if start is None else start.split
    multiplier = torch.zeros_like(split) if start is None else start.multiplier
    going = mask.new_ones((len(image), 1, 1, 1), dtype=torch.bool)
    steps = torch.zeros_like(going, dtype=torch.long)
    for step in range(iterations):
        right = zero_filled + weight * penalty.adjoint(split - multiplier)
        if maps is None:
            diagonal = mask + weight * gram
            # The frequency zero has no differences: where it was not sampled either, it stays zero.
            moved = ifft2c(torch.where(diagonal > 0, fft2c(right) / diagonal, 0))
        else:
            system = lambda x: measured(x) + weight * ifft2c(gram * fft2c(x))  # noqa: B023, E731
            moved = conjugate_gradient(system, right, image, CG_STEPS)
        relaxed = RELAXATION * penalty.analysis(moved) - (RELAXATION - 1) * split
        multiplier = multiplier + relaxed
        split = penalty.shrink(multiplier, regularisation / weight)
        multiplier = multiplier - split
        steps = steps + going
        change, size = (torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True) for x in (moved - image, moved))
        image = torch.where(going, moved, image)
        going = going & ((change > tolerance * size) | (step + 1 < FEWEST))
        if not going.any():
            break
    return Solution(image, split, multiplier, steps.flatten())


def sense(zero_filled: Tensor, mask: Tensor, maps: Tensor | None) -> Tensor:
    """(A^H A + w)^-1 A^H s, (batch, 1, y, x), by `SENSE_ITERATIONS` of conjugate gradients."""
    measured = normal_operator(mask, maps)
    return conjugate_gradient(lambda x: measured(x) + TIKHONOV * x, zero_filled, None, SENSE_ITERATIONS)


def check_baseline(
    baseline: str | None, regularisation: float | None, weights: object = None, flips: bool | None = None
) -> None:
    """Errors: OptionError for an unknown baseline, for options that it has not, and for an L that is no weight."""
    if baseline is not None and baseline not in BASELINES:
        raise OptionError(f"unknown baseline {baseline!r}; choose one of {', '.join(BASELINES)}")
    if baseline is not None and weights is not None:
        raise OptionError(f"--weights are a network's, --baseline {baseline} has none; give one of the two")
    if baseline is not None and flips is not None:
        raise OptionError(f"--no-flips is of networks, --baseline {baseline} has no mirror images")
    if regularisation is None:
        return
    if baseline not in PENALTIES:
        raise OptionError(f"--regularisation belongs to --baseline {' or '.join(PENALTIES)}")
    if not (math.isfinite(regularisation) and regularisation > 0):
        raise OptionError(f"--regularisation must be positive and finite; got {regularisation}")


@torch.inference_mode()
def reconstruct_baseline(
    acquisition: Acquisition, baseline: str, regularisation: float | None = None
) -> tuple[Tensor, Tensor]:
    """Complex images (slices, 1, y, x) of an acquisition with one coil or with sensitivity maps, in its intensity unit, on
    the CPU; and the steps that each slice took (slices,): 0 where there is nothing to iterate.

    regularisation: L, which tv and wavelet need. Memory is that of few slices at a time. Samples that are
    conjugate-symmetric to rounding are those of a real image: it is real then. Empty slices stay empty.
    """
    slices, coils, y, x = acquisition.kspace.shape
    images = torch.zeros((slices, 1, y, x), dtype=torch.complex64, device="cpu")
    steps = torch.zeros(slices, dtype=torch.long)
    for index in torch.arange(slices).split(max(1, SAMPLES_AT_ONCE // (coils * y * x))):
        some = acquisition.slices(index.to(acquisition.kspace.device))
        mask, maps = some.mask, some.sensitivity_maps
        zero_filled, scale = _normalised(some)
        if baseline in PENALTIES:
            found = compressed_sensing(baseline, some.kspace / scale, mask, maps, regularisation)
            image, steps[index] = found.image, found.steps.cpu()
        elif baseline == "sense":
            image, steps[index] = sense(zero_filled, mask, maps), SENSE_ITERATIONS
        else:
            image = zero_filled
        real = zero_filled.imag.abs().amax(dim=(1, 2, 3), keepdim=True) <= 1e-5
        image = torch.where(real, image.real.to(image.dtype), image) * scale
        empty = ~some.kspace.flatten(1).any(dim=1)
        image[empty] = 0
        images[index] = image.cpu()
        steps[index[empty.cpu()]] = 0
    return images, steps


def _normalised(acquisition: Acquisition) -> tuple[Tensor, Tensor]:
    """A^H s / W and W, (slices, 1, 1, 1), which is 1 for an empty slice."""
    zero_filled = adjoint(acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps)
    scale = zero_filled.abs().amax(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    return zero_filled / scale, scale


def not_done(baseline: str, steps: Tensor) -> list[str]:
    """What is to be said of slices that took all the steps there are, (slices,)."""
    count = int((steps >= ITERATIONS).sum()) if baseline in PENALTIES else 0
    return [f"{baseline}: {count} of {len(steps)} slices not converged in {ITERATIONS} iterations"] if count else []


def chosen_regularisation(
    baseline: str, regularisation: float | None, read: Callable[[int, int], Acquisition], slices: int
) -> tuple[float | None, dict]:
    """L for a scan, as it was given or chosen on some of its slices, and what the sidecar says of it.

    read: (start, stop) -> slices, with maps if there are several coils. Chosen on the slices a quarter, a half and three
    quarters through the scan, or where these are empty the first that is not.
    """
    if baseline not in PENALTIES:
        return None, {}
    if regularisation is not None:
        return regularisation, {"regularisation": regularisation, "chosen_by": "given"}
    quarters = sorted({slices // 4, slices // 2, 3 * slices // 4})
    found = {index: one for index in quarters if (one := read(index, index + 1)).kspace.any()}
    if not found:
        found = next(({i: one} for i in range(slices) if (one := read(i, i + 1)).kspace.any()), {})
    if not found:
        raise InputError("k-space is zero everywhere")
    some = list(found.values())
    maps = None if some[0].sensitivity_maps is None else torch.cat([one.sensitivity_maps for one in some])
    together = Acquisition(torch.cat([one.kspace for one in some]), torch.cat([one.mask for one in some]), None, maps)
    chosen, tried = choose_regularisation(together, baseline)
    return chosen, {
        "regularisation": chosen,
        "chosen_by": f"error of held-out samples, {HELD_OUT:.0%} of those outside the calibration centre",
        "chosen_on_slices": list(found),
        "sweep": [{"regularisation": one, "error": round(error, 6)} for one, error in tried],
    }


@torch.inference_mode()
def choose_regularisation(acquisition: Acquisition, baseline: str) -> tuple[float, list[tuple[float, float]]]:
    """The L that predicts samples which were left out best, from the samples alone; and all of `GRID` tried, (L, error).

    A tenth of the samples outside the calibration centre are held out (whole lines of line masks, k and -k together of
    symmetric ones) and predicted by the reconstruction of the rest. error: sum of |A x - s|^2 / p over them, as a share
    of that of |s|^2 / p, p the density of samples around: so it estimates the error outside the centre. L falls, each
    solution beginning with the one before, until the error has twice been above the least.

    Errors: InputError where there are too few samples outside the centre.
    """
    generator = Generator().manual_seed(0)
    held = torch.cat([hold_out(mask, generator) for mask in acquisition.mask.cpu().split(1)]).to(
        acquisition.mask.device
    )
    _, scale = _normalised(acquisition)
    kspace, mask, maps = acquisition.kspace / scale, acquisition.mask * ~held, acquisition.sensitivity_maps
    samples = held * kspace
    weights = torch.cat([_inverse_density(one) for one in acquisition.mask.cpu().split(1)]).to(samples.device)
    energy = (weights * samples.abs().square()).sum().item()
    tried, solution = [], None
    for regularisation in GRID:
        solution = compressed_sensing(baseline, kspace - samples, mask, maps, regularisation, solution)
        wrong = forward(solution.image, held, maps) - samples
        tried.append((regularisation, (weights * wrong.abs().square()).sum().item() / energy))
        errors = [error for _, error in tried]
        if len(errors) > 2 and min(errors[-2:]) > min(errors):
            break
    return _least(tried), tried


def _least(tried: list[tuple[float, float]]) -> float:
    """The L at the vertex of the parabola through the least error and its neighbours, on logarithmic scales."""
    best = min(range(len(tried)), key=lambda index: tried[index][1])
    (strength, error), errors = tried[best], [error for _, error in tried[max(0, best - 1) : best + 2]]
    if len(errors) < 3 or min(errors) <= 0:
        return strength
    before, after = (math.log(one / error) for one in (errors[0], errors[2]))
    offset = (before - after) / (2 * (before + after)) if before + after > 0 else 0.0  # in -1/2 .. 1/2 of a grid step
    return strength * (GRID[1] / GRID[0]) ** offset


def _inverse_density(mask: Tensor) -> Tensor:
    """1 / p where a mask (1, 1, y, x) has samples, p estimated from it alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is an estimate
        return density_weights(mask, estimate_probability([mask[0, 0]])[None, None])


def hold_out(mask: Tensor, generator: Generator) -> Tensor:
    """Which samples of a mask (1, 1, y, x) are left out, (1, 1, y, x) bool: `HELD_OUT` of those outside its full centre.

    Errors: InputError where there are none.
    """
    y, x = mask.shape[-2:]
    along_y, along_x = is_along(mask, -2), is_along(mask, -1)
    lines_along_y, lines_along_x = along_y and not along_x, along_x and not along_y  # all or nothing are points
    drawn = torch.rand((1 if lines_along_y else y, 1 if lines_along_x else x), generator=generator)
    high, wide = (min(n, SIDE) for n in calibration_region(mask[0, 0]))
    high, wide = y if lines_along_y else high, x if lines_along_x else wide
    outside = torch.ones((y, x), dtype=torch.bool)
    outside[y // 2 - high // 2 :, x // 2 - wide // 2 :][:high, :wide] = False
    if torch.equal(mask, mirror_axes(mask, (-2, -1))):
        drawn, outside = mirror(drawn), outside & mirror_axes(outside, (-2, -1))
    drawn, candidates = drawn.expand(y, x), (mask[0, 0] > 0) & outside
    values = drawn[candidates].unique()  # sorted; one for each line, or point, or pair
    if not len(values):
        raise InputError(
            "there are no samples outside the calibration centre to choose the regularisation by; give --regularisation"
        )
    last = values[max(1, round(HELD_OUT * len(values))) - 1]
    return (candidates & (drawn <= last))[None, None]
