"""Losses: pure functions of a prediction and a pair, and of the network where a method measures its prediction again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_n2n.acquisition import Acquisition
from mri_n2n.channels import as_channels
from mri_n2n.operators import forward
from mri_n2n.pairs import Pair

# Step of the finite difference in SURE, in standard deviations of the noise.
PROBE_STEP = 0.1
# The logarithm of an error stops falling at this share of the target's energy.
LOG_FLOOR = 1e-5


def loss_of(network: nn.Module, pair: Pair, progress: float = 0.0) -> Tensor:
    """What training minimises: the loss of the pair, the weighted squared error unless it says otherwise, of f(s), and of
    equivariant imaging its further terms. progress: of the training, in [0, 1], which anneals L0.

    In those T x is taken as given. Where f puts its samples back |A f(s) - s|^2 has no gradient either, and the first pass
    needs none: two thirds of the time."""
    given = pair.again is not None and network.puts_samples_back(pair.input)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not given):
        prediction = network(pair.input)
    loss = LOSSES[pair.loss](prediction, pair, progress)
    if pair.again is not None:
        loss = loss + equivariance_error(network, prediction, pair)
        if pair.again.probe is not None:
            loss = loss + divergence_term(network, prediction, pair)
    return loss


def weighted_squared_error(prediction: Tensor, pair: Pair, _: float = 0.0) -> Tensor:
    """Mean over the batch of sum weight |F S prediction - target|^2 / (pixels), in k-space or in the image.

    In k-space with weight = mask2 / probability2 its expectation over the second mask is the squared error of the full
    k-space (plus a constant under noise): the importance-weighted Noise2Noise loss.
    prediction: image (batch, 1, y, x) complex. Returns a scalar in squared intensity units.
    """
    return _mean_square(_difference(prediction, pair), pair.weight)


def log_squared_error(prediction: Tensor, pair: Pair, _: float = 0.0) -> Tensor:
    """Mean over the batch of log(e / E + `LOG_FLOOR`), e the weighted squared error of a slice and E the weighted energy of
    its target: without noise the mean PSNR, but for a factor, a constant of each slice and the floor.

    Of slices of very different error the plain mean hears the worst alone; here each counts as much, with noise the less
    the noisier it is, since e holds the noise. The mean over masks of a logarithm is not the logarithm of the mean: of
    a thousand target samples at independent points this is no matter, a few lines count the less the more error they
    meet. A slice whose target is empty says nothing.
    """
    difference, target = _difference(prediction, pair), pair.target
    error, energy = ((pair.weight * _square(v)).sum(dim=(1, 2, 3)) for v in (difference, target))
    tiny = torch.finfo(energy.dtype).tiny
    return torch.where(energy > tiny, error / energy.clamp_min(tiny) + LOG_FLOOR, 1.0).log().mean()


def absolute_error(prediction: Tensor, pair: Pair, _: float = 0.0) -> Tensor:
    """Mean over batch and pixels of weight |f - y|, of real and imaginary part each: its minimiser is the median."""
    difference = torch.view_as_real(_difference(prediction, pair))
    return _mean(difference.abs().sum(dim=-1), pair.weight)


def annealed_l0(prediction: Tensor, pair: Pair, progress: float) -> Tensor:
    """Mean over batch and pixels of weight (|f - y| + 1e-8)^g, g falling from 2 to 0 with progress (Lehtinen et al. 2018): its
    minimiser approaches the mode, exactly where that is an atom of the distribution."""
    distance = _difference(prediction, pair).abs()
    return _mean((distance + 1e-8) ** (2 * (1 - progress)), pair.weight)


def error_of_squares(prediction: Tensor, pair: Pair, _: float = 0.0) -> Tensor:
    """Mean over batch and pixels of weight (|f|^2 - y)^2: for targets y = m^2 - v its minimiser is the signal's root mean
    square, without the bias of magnitudes."""
    return _mean((prediction.abs().square() - pair.target.real).square(), pair.weight)


# What a pair can ask for: (prediction, pair, progress) -> scalar.
LOSSES: dict[str, Callable[[Tensor, Pair, float], Tensor]] = {
    "l2": weighted_squared_error,
    "log-l2": log_squared_error,
    "l1": absolute_error,
    "l0": annealed_l0,
    "l2-of-squares": error_of_squares,
}


def equivariance_error(network: nn.Module, prediction: Tensor, pair: Pair) -> Tensor:
    """Mean over batch and pixels of |T x - f(A T x + n)|^2, x the prediction and T, A, n those of `pair.again`
    (Chen, Tachella, Davies, ICCV 2021, eq. 6; with noise CVPR 2022). No gradient goes through x, which the papers let: the
    network learns to reconstruct its own images, not to make images that it can reconstruct."""
    again, maps = pair.again, pair.input.sensitivity_maps
    turned = rotate(prediction.detach(), again.angle)
    kspace = forward(turned, again.mask, maps) + again.mask * again.noise
    second = network(Acquisition(kspace, again.mask, None, maps, pair.input.noise_variance))
    return _mean_square(second - turned)


def divergence_term(network: nn.Module, prediction: Tensor, pair: Pair) -> Tensor:
    """What makes |A f(s) - s|^2 an unbiased estimate of |A f(s) - A x|^2 (SURE; Stein 1981, Ramani et al. 2008), up to a
    constant: 2 v Re b^H (A f(s + t b) - A f(s)) / t, per pixel, b complex white noise with E|b|^2 = 1."""
    scan, probe = pair.input, pair.again.probe
    variance = scan.noise_variance
    step = PROBE_STEP * variance**0.5
    moved = network(Acquisition(scan.kspace + step * probe, scan.mask, None, scan.sensitivity_maps, variance))
    change = forward(moved - prediction, scan.mask, scan.sensitivity_maps)
    batch, _, y, x = change.shape
    factor = torch.where(step > 0, 2 * variance / step.clamp_min(1e-30), 0.0)  # without noise there is no term
    return (factor * (probe.conj() * change).real).sum() / (batch * y * x)


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Images (batch, 1, y, x) turned about the centre pixel, index n // 2, by `angle` (batch,) radians, bilinear; zero
    comes in from outside."""
    *_, y, x = images.shape
    if not angle.any():
        return images
    grid_y, grid_x = (torch.arange(n, device=images.device, dtype=torch.float32) - n // 2 for n in (y, x))
    cos, sin = (f(angle.to(images.device))[:, None, None] for f in (torch.cos, torch.sin))
    from_y = cos * grid_y[:, None] - sin * grid_x[None, :]
    from_x = sin * grid_y[:, None] + cos * grid_x[None, :]
    # grid_sample counts from -1 to 1, the centres of the first and the last pixel (align_corners)
    place = lambda position, n: 2 * (position + n // 2) / max(n - 1, 1) - 1  # noqa: E731
    grid = torch.stack((place(from_x, x), place(from_y, y)), dim=-1)
    parts = as_channels(images)
    turned = F.grid_sample(parts, grid, align_corners=True)
    return torch.complex(turned[:, :1], turned[:, 1:])


def _difference(prediction: Tensor, pair: Pair) -> Tensor:
    if pair.domain == "kspace":
        prediction = forward(prediction, pair.weight.new_ones(()), pair.input.sensitivity_maps)
    return prediction - pair.target


def _mean_square(difference: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return _mean(_square(difference), weight)


def _square(value: Tensor) -> Tensor:
    return value.real.square() + value.imag.square()


def _mean(value: Tensor, weight: Tensor | float) -> Tensor:
    batch, _, y, x = value.shape
    return (weight * value).sum() / (batch * y * x)
