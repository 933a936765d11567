"""Several receive coils: prewhitening, compression to fewer virtual coils, and sensitivity maps by ESPIRiT."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.errors import InputError
from mri_n2n.fourier import ifft2c

# Coils that are kept at most: more cost time and hardly add signal.
VIRTUAL_COILS = 12
# Samples along one side of a calibration region: as many as are used, and as few as ESPIRiT can do with.
SIDE, SMALLEST = 24, 6
# Pixels whose coil-by-coil matrices are in memory at once.
PIXELS_AT_ONCE = 4096


def noise_covariance(noise: Tensor) -> Tensor:
    """Covariance E[n n^H] (coils, coils) of noise samples (coils, samples), complex."""
    noise = noise - noise.mean(dim=1, keepdim=True)
    return noise @ noise.conj().T / noise.shape[1]


def whitening_matrix(covariance: Tensor) -> Tensor:
    """W (coils, coils) with W C W^H = v 1, v the mean variance of the coils: white coils stay as they are, units too.

    Errors: InputError for a covariance that is not positive definite.
    """
    variance = covariance.diagonal().real.mean()
    try:
        cholesky = torch.linalg.cholesky(covariance.to(torch.complex128))
    except torch.linalg.LinAlgError:
        raise InputError(
            "the noise covariance of the coils is not positive definite; a coil is empty or doubled"
        ) from None
    one = torch.eye(len(covariance), dtype=cholesky.dtype, device=cholesky.device)
    white = torch.linalg.solve_triangular(cholesky, one, upper=False)
    return (variance.sqrt() * white).to(covariance.dtype)


def compression_matrix(kspace: Tensor, coils: int) -> Tensor:
    """The (coils, all coils) matrix with orthonormal rows that keeps most of the energy of k-space (..., all coils, y, x).

    Buehrer et al., MRM 57, 2007: the leading eigenvectors of the coils' covariance. White noise stays white.
    """
    samples = kspace.movedim(-3, 0).flatten(1)
    samples = samples / samples.abs().amax().clamp_min(
        torch.finfo(torch.float32).tiny
    )  # raw units leave float32 squared
    _, vectors = torch.linalg.eigh(samples @ samples.conj().T)
    return vectors[:, -coils:].flip(1).conj().T.contiguous()


def coil_mixing(scan: Scan, virtual_coils: int = VIRTUAL_COILS) -> Tensor | None:
    """The (virtual coils, coils) matrix that whitens a scan's noise, where its covariance is known, and compresses more
    coils than `virtual_coils` by the samples near the k-space centre; None when there is nothing to do."""
    slices, coils, y, x = scan.shape
    if scan.noise_covariance is None and coils <= virtual_coils:
        return None
    one = torch.eye(coils, dtype=torch.complex64)
    white = one if scan.noise_covariance is None else whitening_matrix(scan.noise_covariance)
    if coils <= virtual_coils:
        return white
    high, wide = min(y, 2 * SIDE), min(x, 2 * SIDE)
    some = range(0, slices, max(1, slices // 8))  # a sensitivity changes little from slice to slice
    centers = [
        scan.read(i, i + 1).kspace[:, :, y // 2 - high // 2 :, x // 2 - wide // 2 :][:, :, :high, :wide] for i in some
    ]
    return compression_matrix(combine(white, torch.cat(centers)), virtual_coils) @ white


def combine(matrix: Tensor, kspace: Tensor) -> Tensor:
    """Mix coils: (new, coils) times (..., coils, y, x) -> (..., new, y, x)."""
    return torch.einsum("nc,...cyx->...nyx", matrix, kspace)


def with_sensitivity_maps(acquisition: Acquisition) -> tuple[Acquisition, str | None]:
    """The acquisition with maps from its own k-space centre, and what is to be said of them (None: nothing).

    ESPIRiT from the largest fully sampled rectangle about the centre that all its slices share. Where that is too small,
    the coil images of the samples near the centre, divided by their root-sum-of-squares: smooth, and not masked.
    """
    kspace = acquisition.kspace
    high, wide = calibration_region(acquisition.mask.amin(dim=(0, 1)))
    caution = None
    if min(high, wide) >= SMALLEST:
        high, wide = min(high, max(SIDE, SIDE**2 // wide)), min(wide, max(SIDE, SIDE**2 // high))
        maps = sensitivity_maps(kspace, (high, wide), kernel=6 if min(high, wide) >= 12 else 4)
    else:
        caution = (
            f"calibration region of {high} x {wide} samples, too small for ESPIRiT ({SMALLEST} x {SMALLEST}): coil "
            "sensitivities are taken from low-resolution images, so aliasing and shading may remain"
        )
        maps = low_resolution_maps(kspace)
    return replace(acquisition, sensitivity_maps=maps), caution


def low_resolution_maps(kspace: Tensor, radius: int = SIDE // 2) -> Tensor:
    """Coil images (slices, coils, y, x) of the samples within `radius` of the centre, divided by their
    root-sum-of-squares: a Hann window, sum |S|^2 = 1, the first coil with phase zero."""
    windows = []
    for n in kspace.shape[-2:]:
        distance = ((torch.arange(n, device=kspace.device) - n // 2) / radius).abs().clamp_max(1)
        windows.append(0.5 + 0.5 * torch.cos(torch.pi * distance))
    images = ifft2c(kspace * windows[0][:, None] * windows[1])
    images = images * torch.sgn(images[:, :1]).conj()
    largest = images.abs().amax(dim=1, keepdim=True)
    images = torch.where(largest > 0, images / largest, 0.0)  # raw units leave float32 squared
    return images / images.abs().square().sum(dim=1, keepdim=True).sqrt().clamp_min(1)


def calibration_region(mask: Tensor) -> tuple[int, int]:
    """Size (y, x) of the largest rectangle about the k-space centre that is sampled fully, of a mask (y, x); (0, 0) when
    not even the centre is. Its rows begin at index y // 2 - size // 2."""
    y, x = mask.shape
    sampled = mask > 0
    left = sampled[:, : x // 2].flip(1).long().cumprod(1).sum(1)  # samples in a row before the centre column
    right = sampled[:, x // 2 :].long().cumprod(1).sum(1)
    best, before, after = (0, 0), x, x
    for high in range(1, y + 1):
        # The row that joins: below and above the centre in turn.
        row = y // 2 - high // 2 if high % 2 == 0 else y // 2 + high // 2
        before, after = min(before, int(left[row])), min(after, int(right[row]))
        wide = min(2 * before + 1, 2 * after)  # columns begin at x // 2 - wide // 2
        if high * wide > best[0] * best[1]:
            best = (high, wide)
    return best


def sensitivity_maps(
    kspace: Tensor,
    calibration: tuple[int, int],
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
) -> Tensor:
    """ESPIRiT maps (slices, coils, y, x) of k-space (slices, coils, y, x), whose central `calibration` (y, x) is full.

    Uecker et al., MRM 71, 2014: patches of the calibration region lie in the span of few kernels; projecting on that
    span acts on every pixel's coil values as a coils x coils matrix, of which a sensitivity is an eigenvector to
    eigenvalue 1. sum |S|^2 = 1 where the eigenvalue is above `crop`, zero elsewhere; the first coil has phase zero.
    threshold: singular values kept, as a share of the largest.
    """
    slices, coils, y, x = kspace.shape
    (high, wide) = calibration
    center = kspace[:, :, y // 2 - high // 2 :, x // 2 - wide // 2 :][:, :, :high, :wide]
    spectrum = _projection_spectrum(center, kernel, threshold)  # (slices, coils, coils, 2 kernel - 1, 2 kernel - 1)
    shifts = torch.arange(1 - kernel, kernel, device=kspace.device, dtype=torch.float64)
    waves = [
        torch.polar(
            torch.ones((n, len(shifts)), dtype=torch.float64, device=kspace.device),
            2 * torch.pi / n * (torch.arange(n, device=kspace.device) - n // 2)[:, None] * shifts,
        ).to(kspace.dtype)
        for n in (y, x)
    ]
    maps = torch.empty_like(kspace)
    rows = max(1, PIXELS_AT_ONCE // x)
    for index in range(slices):
        along_x = spectrum[index] @ waves[1].T  # (coils, coils, 2 kernel - 1, x)
        for start in range(0, y, rows):
            matrices = torch.einsum("yk,cdkx->yxcd", waves[0][start : start + rows], along_x)
            vector, value = _leading_eigenvector(matrices)
            maps[index, :, start : start + rows] = torch.where(value > crop, vector, 0.0).movedim(-1, 0)
    return maps


def _projection_spectrum(center: Tensor, kernel: int, threshold: float) -> Tensor:
    """Fourier coefficients, by shift, of the per-pixel matrices that project on the span of the calibration patches."""
    slices, coils = center.shape[:2]
    patches = center.unfold(2, kernel, 1).unfold(3, kernel, 1)  # (slices, coils, ny, nx, kernel, kernel)
    rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(slices, -1, coils * kernel**2)
    rows = rows / rows.abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    kept = (values > threshold * values[:, :1]) & (values > 0)
    vectors = vectors * kept[..., None]
    # A row is a patch, so patches are combinations of conj(conj(vectors)): the projector on their span.
    projector = vectors.mT @ vectors.conj()
    projector = projector.reshape(slices, coils, kernel**2, coils, kernel**2).permute(0, 1, 3, 2, 4)
    offset = torch.arange(kernel, device=center.device)
    shift = offset[:, None] - offset[None, :] + kernel - 1  # (kernel, kernel)
    size = 2 * kernel - 1
    place = shift[:, None, :, None] * size + shift[None, :, None, :]  # (ky, kx, ly, lx)
    spectrum = center.new_zeros((slices, coils, coils, size**2))
    spectrum.index_add_(3, place.flatten(), projector.flatten(3))
    return spectrum.unflatten(3, (size, size)) / kernel**2


def _leading_eigenvector(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Of Hermitian positive matrices (..., n, n): unit eigenvectors (..., n), first entry real, and eigenvalues (..., 1)."""
    power = matrices
    for _ in range(7):  # squared seven times: 128 steps of the power method
        power = power @ power
        power = power / power.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None].clamp_min(1e-30)
    largest = power.diagonal(dim1=-2, dim2=-1).real.argmax(-1)
    column = power.gather(-1, largest[..., None, None].expand(*power.shape[:-1], 1))[..., 0]
    vector = column / column.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    vector = vector * torch.sgn(vector[..., :1]).conj()
    value = (vector.conj() * (matrices @ vector[..., None])[..., 0]).real.sum(-1, keepdim=True)
    return vector, value
