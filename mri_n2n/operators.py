"""The measurement A = M F S, its adjoint, and data consistency.

S: coil sensitivity maps, F: centred orthonormal Fourier transform, M: sampling mask. Images are (batch, 1, y, x),
k-space and maps (batch, coils, y, x), complex; masks (batch or 1, 1, y, x) real. `maps` None means one coil, S = 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import is_along

# Where sensitivities leave a direction almost unmeasured, hard consistency would put amplified noise there: this is the
# weight of the image in what is not measured. Chosen on simulated coils of one training subject (12).
HARD_WITH_MAPS = 0.11
# Samples of coils that a processor transforms at once: 2 MB, which its cache holds, and temporary arrays do not grow with coils.
SAMPLES_AT_ONCE = 2**18


def forward(image: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
    """A x = M F S x."""
    return mask * fft2c(image if maps is None else maps * image)


def adjoint(kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
    """A^H s = S^H F^H M s: the zero-filled image; on a processor by few coils at a time."""
    if maps is None:
        return ifft2c(mask * kspace)
    few = _few_coils(maps)
    parts = zip(kspace.split(few, dim=1), maps.split(few, dim=1), strict=True)
    return sum((some.conj() * ifft2c(mask * samples)).sum(dim=1, keepdim=True) for samples, some in parts)


def normal_operator(mask: Tensor, maps: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x -> A^H A x = sum_c conj(S_c) F^H M F S_c x, by few coils at a time on a processor. Gradients reach x alone.

    F^H M F is a convolution, with which the shifts that centre F commute: they cancel, and only M is shifted. Along an
    axis on which the mask does not vary there is nothing to transform.
    """
    axes = tuple(axis for axis in (-2, -1) if not is_along(mask, axis)) or (-1,)
    filtered = torch.fft.ifftshift(mask, dim=(-2, -1))
    few = 1 if maps is None else _few_coils(maps)
    parts = [None] if maps is None else maps.split(few, dim=1)

    def convolved(image: Tensor) -> Tensor:
        return torch.fft.ifftn(filtered * torch.fft.fftn(image, dim=axes), dim=axes)

    def apply(image: Tensor) -> Tensor:
        if maps is None:
            return convolved(image)
        return sum((some.conj() * convolved(some * image)).sum(dim=1, keepdim=True) for some in parts)

    return lambda image: _SelfAdjoint.apply(image, apply)


class _SelfAdjoint(torch.autograd.Function):
    """A linear operator equal to its adjoint: its gradient is the operator again, and nothing has to be kept for it."""

    @staticmethod
    def forward(context, image: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
        context.operator = operator
        return operator(image)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return context.operator(gradient), None


def _few_coils(maps: Tensor) -> int:
    batch, coils, y, x = maps.shape
    return coils if maps.device.type != "cpu" else max(1, SAMPLES_AT_ONCE // (batch * y * x))


def root_sum_of_squares(images: Tensor) -> Tensor:
    """Magnitude of coil images: (slices, coils, y, x) complex -> (slices, y, x) float32."""
    if images.shape[1] == 1:
        return images[:, 0].abs()
    squared = images.abs().double().square()  # squares of raw scanner units leave float32's range
    return squared.sum(dim=1).sqrt().float()


def density_weights(mask: Tensor, probability: Tensor) -> Tensor:
    """1 / p where sampled, 0 elsewhere: with them the zero-filled image and sums over samples are unbiased."""
    return torch.where(mask > 0, mask / probability, 0.0)


def complex_scale(image: Tensor) -> Tensor:
    """A complex number per batch item with the image's largest magnitude and its mean phase, (batch, 1, 1, 1)."""
    magnitude = image.abs()
    largest = magnitude.amax(dim=(1, 2, 3), keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    mean = (image / largest * (magnitude / largest)).sum(dim=(1, 2, 3), keepdim=True)
    phase = torch.where(mean.abs() > 0, mean / mean.abs(), 1.0)
    return largest * phase


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor], right: Tensor, start: Tensor | None, iterations: int
) -> Tensor:
    """Solve operator(x) = right for a Hermitian positive operator, each batch item with its own step (Hestenes, Stiefel
    1952). start: None for zero."""
    dot = lambda a, b: (a.conj() * b).real.sum(dim=(1, 2, 3), keepdim=True)  # noqa: E731
    x, residual = (torch.zeros_like(right), right) if start is None else (start, right - operator(start))
    direction, power = residual, dot(residual, residual)
    tiny = torch.finfo(power.dtype).tiny
    for _ in range(iterations):
        applied = operator(direction)
        step = power / dot(direction, applied).clamp_min(tiny)
        x, residual = x + step * direction, residual - step * applied
        power, previous = dot(residual, residual), power
        direction = residual + power / previous.clamp_min(tiny) * direction
    return x


def data_consistency(
    image: Tensor,
    kspace: Tensor | None,
    mask: Tensor,
    maps: Tensor | None = None,
    *,
    zero_filled: Tensor | None = None,
    noise_to_error: Tensor | float = 0.0,
    iterations: int = 6,
) -> Tensor:
    """Bring an image z (batch, 1, y, x) back to the measured samples.

    noise_to_error: v / v_f, the variance of the noise over that of the error of F z: a number, or broadcastable to
    (batch, 1, y, x), by spatial frequency. 0 puts the samples back as measured (hard); else z + M (s - z) v_f / (v_f + v),
    the best linear estimate. With maps the exact answer is in general infeasible: the minimiser over x of
    |A x - s|^2 + w (x - z)^H (1 - A^H A) (x - z) + sum_k v / v_f |F (x - z)|^2 by conjugate gradients, w = `HARD_WITH_MAPS`.
    The image counts for what is not measured (sum |S|^2 = 1), so one sampled fully without noise is the measurement, A^H s,
    and nothing else.
    zero_filled: A^H s where it is at hand; with maps nothing else is needed of `kspace`, which may be None then.
    """
    if maps is None:
        predicted = fft2c(image)
        return ifft2c(predicted + mask / (1 + noise_to_error) * (kspace - predicted))
    zero_filled = adjoint(kspace, mask, maps) if zero_filled is None else zero_filled
    measured = normal_operator(mask, maps)

    by_frequency = isinstance(noise_to_error, Tensor) and noise_to_error.shape[-2:] != (1, 1)

    def operator(change: Tensor) -> Tensor:
        noise = ifft2c(noise_to_error * fft2c(change)) if by_frequency else noise_to_error * change
        return (1 - HARD_WITH_MAPS) * measured(change) + HARD_WITH_MAPS * change + noise

    return image + conjugate_gradient(operator, zero_filled - measured(image), None, iterations)
