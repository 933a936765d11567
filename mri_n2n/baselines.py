"""Classical reconstructions, as baselines for the learned one: zero-filled, SENSE, and compressed sensing.

With A = M F S the measurement, s its samples and W the largest magnitude of A^H s in a slice:

    zero-filled   A^H s
    sense         the minimiser of |A x - s|^2 + w |x|^2, w = `TIKHONOV`: (A^H A + w) x = A^H s by conjugate gradients
    tv, wavelet   W times the minimiser of 1/2 |A x - s / W|^2 + L R(x)

R of `tv` is isotropic total variation: the sum over pixels of sqrt(|d_y x|^2 + |d_x x|^2), differences to the neighbour
before, with periodic ends. R of `wavelet` is the mean, over all shifts of the image, of the l1 norm of its coefficients
(those of the coarsest scale too) in Daubechies' orthonormal wavelets of four taps. Both are in `penalties`. L is on
the scale of BART's `pics -w W -R T:3:0:L` and `pics -w W -m -R W:3:0:L`.

Sources: Pruessmann et al., MRM 46, 2001 (SENSE by conjugate gradients); Lustig, Donoho, Pauly, MRM 58, 2007 (wavelets);
Block, Uecker, Frahm, MRM 57, 2007 (total variation, several coils); Boyd, Parikh, Chu, Peleato, Eckstein, Found. Trends
Mach. Learn. 3, 2011 (ADMM); Coifman, Donoho, Translation-invariant de-noising, 1995; Daubechies, CPAM 41, 1988.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.errors import OptionError
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.operators import SAMPLES_AT_ONCE, adjoint, conjugate_gradient, normal_operator
from mri_n2n.penalties import PENALTIES

TIKHONOV, SENSE_ITERATIONS = 3e-3, 30
# ADMM: steps at least and at most, and the relative change of a slice from one to the next at which it is done.
FEWEST, ITERATIONS, TOLERANCE = 10, 150, 3e-4
# ADMM's penalty weight is this times L, so that its threshold for K x is the same share of W whatever L is.
STIFFNESS, RELAXATION = 15.0, 1.7
CG_STEPS = 5  # in each step of ADMM with several coils, from where the step before ended


# Of L: below, ADMM goes nowhere in float32; above, what is left is a constant.
LIMITS = (1e-6, 10.0)

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
    least, most = LIMITS
    if not least <= regularisation <= most:
        raise OptionError(f"--regularisation must be between {least:g} and {most:g}; got {regularisation}")


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
        zero_filled, scale = normalised(some)
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


def normalised(acquisition: Acquisition) -> tuple[Tensor, Tensor]:
    """A^H s / W and W, (slices, 1, 1, 1), which is 1 for an empty slice."""
    zero_filled = adjoint(acquisition.kspace, acquisition.mask, acquisition.sensitivity_maps)
    scale = zero_filled.abs().amax(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    return zero_filled / scale, scale


def not_done(baseline: str, steps: Tensor) -> list[str]:
    """What is to be said of slices that took all the steps there are, (slices,)."""
    count = int((steps >= ITERATIONS).sum()) if baseline in PENALTIES else 0
    return [f"{baseline}: {count} of {len(steps)} slices not converged in {ITERATIONS} iterations"] if count else []
