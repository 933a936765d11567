"""Centred orthonormal two-dimensional Fourier transforms, right for odd sizes."""

import torch
from torch import Tensor

_YX = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Image (..., y, x) complex -> k-space (..., y, x), DC at index size // 2, same norm (Parseval)."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=_YX), norm="ortho"), dim=_YX)


def ifft2c(kspace: Tensor) -> Tensor:
    """K-space (..., y, x) complex with DC at index size // 2 -> image (..., y, x); the inverse and adjoint of `fft2c`."""
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=_YX), norm="ortho"), dim=_YX)


def mirror_axes(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mirror centred images or k-space (..., y, x) about their centre: index n // 2 stays where it is."""
    for axis in axes:
        n = values.shape[axis]
        # On even sizes the first index, in k-space the Nyquist frequency, is its own mirror image.
        index = (2 * (n // 2) - torch.arange(n, device=values.device)) % n
        values = values.index_select(axis, index)
    return values
