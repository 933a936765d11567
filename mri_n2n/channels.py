"""Complex images as networks see them: real and imaginary part, two channels of one image."""

import torch
from torch import Tensor


def as_channels(images: Tensor) -> Tensor:
    """Complex (batch, n, y, x) -> real (batch, 2n, y, x): first the real parts, then the imaginary ones."""
    return torch.cat((images.real, images.imag), dim=1)


def as_complex(channels: Tensor) -> Tensor:
    """Inverse of `as_channels`, in float32 at least."""
    return torch.complex(*channels.float().chunk(2, dim=1))
