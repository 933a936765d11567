"""Other matrix sizes for the same image, with its intensities and its centre kept."""

from __future__ import annotations

from torch import Tensor

from mri_n2n.fourier import fft2c, ifft2c


def resize_kspace(kspace: Tensor, size: int) -> Tensor:
    """K-space (..., y, x) of the same image on a size x size matrix: a square field of view, the same intensities.

    A rectangular image is first zero-padded about its centre to a square of its longer side M; then k-space is cropped
    or zero-filled about DC and multiplied by size / M, which keeps intensities under orthonormal transforms. The image
    of a real image stays real: the Nyquist edge of an even size stands for +k and -k together, so they are averaged
    into it on cropping, and it is shared out between them on filling.
    """
    y, x = kspace.shape[-2:]
    full = max(y, x)
    if y != x:
        kspace = fft2c(crop_or_pad(ifft2c(kspace), full, full))
    if full == size:
        return kspace
    for axis in (-2, -1):
        kspace = _resize_axis(kspace, size, axis)
    return kspace * (size / full)


def _resize_axis(kspace: Tensor, size: int, axis: int) -> Tensor:
    kspace = kspace.movedim(axis, 0)
    old = kspace.shape[0]
    low, half = old // 2 - size // 2, size // 2
    if size < old:
        resized = kspace[low : low + size].clone()
        if size % 2 == 0:
            resized[0] = (kspace[low] + kspace[old // 2 + half]) / 2
    else:
        resized = kspace.new_zeros((size, *kspace.shape[1:]))
        resized[-low : -low + old] = kspace
        if old % 2 == 0 and size > old:
            edge = kspace[0] / 2
            resized[-low], resized[-low + old] = edge, edge
    return resized.movedim(0, axis)


def crop_or_pad(image: Tensor, y: int, x: int) -> Tensor:
    """Crop or zero-pad (..., y, x) so that the centre pixel, index n // 2, stays the centre pixel."""
    for axis, size in ((-2, y), (-1, x)):
        old = image.shape[axis]
        if size < old:
            image = image.narrow(axis, old // 2 - size // 2, size)
        elif size > old:
            shape = list(image.shape)
            shape[axis] = size
            padded = image.new_zeros(shape)
            padded.narrow(axis, size // 2 - old // 2, old).copy_(image)
            image = padded
    return image
