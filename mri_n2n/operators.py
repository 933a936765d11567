"""The measurement A = M F S, its adjoint, and data consistency.

S: coil sensitivity maps, F: centred orthonormal Fourier transform, M: sampling mask. Images are (batch, 1, y, x),
k-space and maps (batch, coils, y, x), complex; masks (batch or 1, 1, y, x) real. `maps` None means one coil, S = 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mri_n2n.fourier import fft2c, ifft2c

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


def normal(image: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
    """A^H A x, by few coils at a time too."""
    if maps is None:
        return adjoint(forward(image, mask), mask)
    return sum(adjoint(forward(image, mask, some), mask, some) for some in maps.split(_few_coils(maps), dim=1))


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
    trust: Tensor | float = 1.0,
    iterations: int = 6,
) -> Tensor:
    """Bring an image (batch, 1, y, x) back to the measured samples.

    trust in [0, 1]: 1 puts the samples back as measured (hard); below, z + trust * M (s - z), which is optimal for
    trust = v_f / (v_f + v) with v_f the error variance of the network's coefficients and v the noise's.
    With maps the exact answer is in general infeasible: the minimiser of trust |A x - s|^2 + (1 - trust) |x - z|^2 by
    conjugate gradients. For trust 1 that of |A x - s|^2 + w (x - z)^H (1 - A^H A) (x - z), w = `HARD_WITH_MAPS`: the image
    counts for what is not measured (sum |S|^2 = 1), so one sampled fully is the measurement, A^H s, and nothing else.
    zero_filled: A^H s where it is at hand; with maps nothing else is needed of `kspace`, which may be None then.
    """
    if maps is None:
        predicted = fft2c(image)
        return ifft2c(predicted + trust * mask * (kspace - predicted))
    zero_filled = adjoint(kspace, mask, maps) if zero_filled is None else zero_filled
    if isinstance(trust, float) and trust == 1.0:
        return image + conjugate_gradient(
            lambda x: (1 - HARD_WITH_MAPS) * normal(x, mask, maps) + HARD_WITH_MAPS * x,
            zero_filled - normal(image, mask, maps),
            None,
            iterations,
        )
    trust = torch.as_tensor(trust, device=mask.device, dtype=mask.dtype)
    keep = torch.maximum(1 - trust, 1e-3 * trust)
    return conjugate_gradient(
        lambda x: trust * normal(x, mask, maps) + keep * x, trust * zero_filled + keep * image, image, iterations
    )
