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
