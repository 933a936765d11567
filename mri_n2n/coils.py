"""Several receive coils: prewhitening, compression to fewer virtual coils, and sensitivity maps by ESPIRiT."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.errors import InputError
from mri_n2n.fourier import ifft2c
from mri_n2n.noise import noise_variance

# Coils that are kept at most: more cost time and hardly add signal.
VIRTUAL_COILS = 12
# Samples along one side of a calibration region: as many as are used.
SIDE = 24
# (side of ESPIRiT's patches, shortest side of the region they are taken from, in samples), the best first, and the fewest patches;
# with less maps are of low resolution. Chosen on subject 12 of open_ms, by the worst slice rather than the mean: of fewer patches, maps of
# single slices have holes. `benchmark coils --part regions` shows the means on another subject.
PATCHES, FEWEST_PATCHES = ((6, 14), (4, 8), (3, 5)), 36
# Where noise decides what is kept of the patches, eigenvalues fall with the signal that is lost in it: this share of the largest is
# asked of them. Chosen on subject 12, too (of 0.7 to 0.95).
CROP_IN_NOISE = 0.8
# Noise of more than this share of the strongest patch leaves too few kernels: maps of low resolution lose less.
MOST_NOISE = 0.5
NEEDED = "36 patches of 3 x 3 samples, as 8 x 8 or 5 x 14 have"
# Entries of the coil-by-coil matrices of pixels that are in memory at once: 2 MB, which a processor's cache holds.
ENTRIES_AT_ONCE = 2**18
# Eigenvalues of the noise correlation below this share of the largest are zero to rounding; those of coils that are
# merely coupled are above 1e-3.
SINGULAR = 1e-5


def noise_covariance(noise: Tensor) -> Tensor:
    """Covariance E[n n^H] (coils, coils) of noise samples (coils, samples), complex."""
    exact = noise.to(torch.complex128)  # else rounding hides that a covariance is singular
    exact = exact - exact.mean(dim=1, keepdim=True)
    return (exact @ exact.conj().T / exact.shape[1]).to(noise.dtype)


def whitening_matrix(covariance: Tensor) -> Tensor:
    """W (coils, coils) with W C W^H = v 1, v the mean variance of the coils: white coils stay as they are, units too.

    A singular C, as of doubled coils, has combinations of coils without noise: W leaves them out and has fewer rows.
    Errors: InputError for a coil without noise.
    """
    scale, values, vectors = _correlation(covariance)
    kept = values > SINGULAR * values[-1]
    if kept.all():
        one = torch.eye(len(covariance), dtype=vectors.dtype, device=vectors.device)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance.to(one.dtype)), one, upper=False)
    else:
        white = (vectors[:, kept] * values[kept].rsqrt()).mH * scale
    return (covariance.diagonal().real.mean().sqrt() * white).to(covariance.dtype)


def noise_free_combinations(covariance: Tensor) -> Tensor:
    """What `whitening_matrix` leaves out: (combinations, coils), orthonormal for coils scaled to noise variance 1."""
    scale, values, vectors = _correlation(covariance)
    return (vectors[:, values <= SINGULAR * values[-1]].mH * scale).to(covariance.dtype)


def _correlation(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of coils scaled to noise variance 1, whatever their gains: the scale, and eigenvalues and vectors, ascending."""
    exact = covariance.to(torch.complex128)
    variance = exact.diagonal().real
    if not (variance > 0).all():
        raise InputError(
            f"{_coils(variance <= 0)} signal, but none of the noise that the noise readouts hold of the others"
        )
    scale = variance.rsqrt()
    return scale, *torch.linalg.eigh(scale[:, None] * exact * scale)


def _coils(which: Tensor) -> str:
    """ "coils 2, 5 (counted from 0) have", as the start of a sentence."""
    numbers = which.nonzero().flatten().tolist()
    plural = len(numbers) > 1
    return f"coil{'s' * plural} {', '.join(map(str, numbers))} (counted from 0) {'have' if plural else 'has'}"


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


def coil_mixing(scan: Scan, virtual_coils: int = VIRTUAL_COILS) -> tuple[Tensor | None, list[str]]:
    """The (virtual coils, coils) matrix that leaves out dead coils, whitens a scan's noise, where its covariance is known,
    and compresses more coils than `virtual_coils` by the samples near the k-space centre (None when there is nothing to
    do), and what is to be said of the coils. A dead coil has neither signal nor noise.

    Errors: InputError for coils with signal but without noise.
    """
    slices, coils, y, x = scan.shape
    some = range(0, slices, max(1, slices // 8))  # a sensitivity changes little from slice to slice
    signal, centers = torch.zeros(coils, dtype=torch.bool), []
    for index in some:
        kspace = scan.read(index, index + 1).kspace
        signal |= kspace[0].flatten(1).any(dim=1)
        centers.append(
            _center(kspace, (min(y, 2 * SIDE), min(x, 2 * SIDE))).clone()
        )  # no view: it would keep the slice
    for index in range(slices):
        if signal.all():
            break
        signal |= scan.read(index, index + 1).kspace[0].flatten(1).any(dim=1)
    noise, said, kspace = scan.noise_covariance, [], torch.cat(centers)
    alive = signal if noise is None else signal | (noise.diagonal().real > 0)
    matrix = torch.eye(coils, dtype=torch.complex64)[alive]
    if not alive.all():
        said.append(f"{_coils(~alive)} neither signal nor noise: left out")
    if noise is not None:
        noise = noise[alive][:, alive]
        empty = noise_free_combinations(noise) @ matrix
        if len(empty):
            spread = noise.diagonal().real.sqrt()
            scaled = kspace[:, alive] / spread[:, None, None]
            involved = torch.zeros(coils, dtype=torch.bool)
            involved[alive] = ((empty[:, alive] * spread).abs() > 0.1).any(dim=0)
            if combine(empty, kspace).norm() > 1e-3 * scaled.norm():
                raise InputError(f"{_coils(involved)} noise that depends on one another's, but signals that do not")
            said.append(
                f"{_coils(involved)} noise and signal that depend on one another's, as of a doubled coil: {len(empty)} "
                f"of {int(alive.sum())} combinations of coils left out"
            )
        matrix = whitening_matrix(noise) @ matrix
    if len(matrix) > virtual_coils:
        matrix = compression_matrix(combine(matrix, kspace), virtual_coils) @ matrix
    return (None if noise is None and len(matrix) == coils else matrix), said


def combine(matrix: Tensor, kspace: Tensor) -> Tensor:
    """Mix coils: (new, coils) times (..., coils, y, x) -> (..., new, y, x)."""
    return (matrix @ kspace.flatten(-2)).unflatten(-1, kspace.shape[-2:])


def with_sensitivity_maps(acquisition: Acquisition) -> tuple[Acquisition, str | None]:
    """The acquisition with maps from its own k-space centre, and what is to be said of them (None: nothing).

    Each slice by itself: ESPIRiT from its largest fully sampled rectangle about the centre. Where that is too small, the
    coil images of the samples near the centre, divided by their root-sum-of-squares: smooth, and not masked. Empty slices
    have maps of zeros.
    """
    kspace, mask = acquisition.kspace, acquisition.mask
    variance = noise_variance(acquisition).flatten().tolist()
    maps = torch.zeros_like(kspace)
    regions = [region_of_maps(calibration_region(one[0])) for one in mask]
    caution = None
    for index in range(len(kspace)):  # one at a time: memory stays the same, and so does the result
        one, region = kspace[index : index + 1], regions[index if len(mask) > 1 else 0]
        if not one.any():
            continue
        kernel = patch_side(region)
        if kernel:
            level = variance[index if len(variance) > 1 else 0]
            # Sampled in full there is nothing to unfold: the background stays, and shows its noise.
            crop = 0.0 if mask[index if len(mask) > 1 else 0].all() else CROP_IN_NOISE
            maps[index] = sensitivity_maps(one, region, kernel=kernel, noise_variance=level, crop_in_noise=crop)[0]
        else:
            caution = (
                f"calibration region too small for ESPIRiT (less than {NEEDED}): coil "
                "sensitivities are taken from low-resolution images, so aliasing and shading may remain"
            )
            maps[index] = low_resolution_maps(one)[0]
    return replace(acquisition, sensitivity_maps=maps), caution


def region_of_maps(calibration: tuple[int, int]) -> tuple[int, int]:
    """Size (y, x), about the k-space centre, of what maps are found from, of a calibration region: most of it, where it is
    not large; (0, 0) where it is too small, and maps are of low resolution, from the samples within `SIDE` / 2."""
    high, wide = calibration
    if not patch_side(calibration):
        return 0, 0
    return min(high, max(SIDE, SIDE**2 // wide)), min(wide, max(SIDE, SIDE**2 // high))


def patch_side(region: tuple[int, int]) -> int | None:
    """Side of the patches that ESPIRiT takes of a calibration region (y, x); None where it is too small."""
    high, wide = region
    for side, least in PATCHES:
        if min(region) >= least and (high - side + 1) * (wide - side + 1) >= FEWEST_PATCHES:
            return side
    return None


def low_resolution_maps(kspace: Tensor, radius: int = SIDE // 2) -> Tensor:
    """Coil images (slices, coils, y, x) of the samples within `radius` of the centre, divided by their
    root-sum-of-squares: a Hann window, sum |S|^2 = 1, the first coil that has signal with phase zero."""
    windows = []
    for n in kspace.shape[-2:]:
        distance = ((torch.arange(n, device=kspace.device) - n // 2) / radius).abs().clamp_max(1)
        windows.append(0.5 + 0.5 * torch.cos(torch.pi * distance))
    images = ifft2c(kspace * windows[0][:, None] * windows[1])
    images = images * _opposite_phase(images, kspace)
    largest = images.abs().amax(dim=1, keepdim=True)
    images = torch.where(largest > 0, images / largest, 0.0)  # raw units leave float32 squared
    return images / images.abs().square().sum(dim=1, keepdim=True).sqrt().clamp_min(1)


def _opposite_phase(images: Tensor, kspace: Tensor) -> Tensor:
    """What turns each slice's first coil that has signal to phase zero, (slices, 1, y, x) of magnitude 1."""
    first = kspace.flatten(2).any(dim=2).long().argmax(dim=1)  # a dead coil has no phase
    reference = images.gather(1, first[:, None, None, None].expand(-1, 1, *images.shape[-2:]))
    return torch.where(reference == 0, 1.0, torch.sgn(reference).conj())


def _center(kspace: Tensor, size: tuple[int, int]) -> Tensor:
    """The central (y, x) samples of k-space (..., y, x): indices from n // 2 - size // 2 on."""
    (high, wide), (y, x) = size, kspace.shape[-2:]
    return kspace[..., y // 2 - high // 2 :, x // 2 - wide // 2 :][..., :high, :wide]


def calibration_region(mask: Tensor) -> tuple[int, int]:
    """Size (y, x) of the largest rectangle about the k-space centre that is sampled fully, of a mask (y, x); (0, 0) when
    not even the centre is. Its rows begin at index y // 2 - size // 2."""
    y, x = mask.shape
    sampled = mask > 0
    left = sampled[:, : x // 2].flip(1).long().cumprod(1).sum(1)  # samples in a row before the centre column
    right = sampled[:, x // 2 :].long().cumprod(1).sum(1)
    left, right = left.tolist(), right.tolist()
    best, before, after = (0, 0), x, x
    for high in range(1, y + 1):
        # The row that joins: below and above the centre in turn.
        row = y // 2 - high // 2 if high % 2 == 0 else y // 2 + high // 2
        before, after = min(before, left[row]), min(after, right[row])
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
    noise_variance: float = 0.0,
    crop_in_noise: float = CROP_IN_NOISE,
) -> Tensor:
    """ESPIRiT maps (slices, coils, y, x) of k-space (slices, coils, y, x), whose central `calibration` (y, x) is full.

    Uecker et al., MRM 71, 2014: patches of the calibration region lie in the span of few kernels; projecting on that
    span acts on every pixel's coil values as a coils x coils matrix, of which a sensitivity is an eigenvector to
    eigenvalue 1. sum |S|^2 = 1 where the eigenvalue is above `crop`, zero elsewhere; the first coil
    that has signal has phase zero.
    threshold: singular values kept, as a share of the largest.
    noise_variance: v = E|n|^2 of a sample. Singular values are kept only above those of noise alone, too, up to sqrt(v) (sqrt(patches) +
    sqrt(samples of a patch)) were they independent (Marchenko and Pastur 1967). Where that decides, eigenvalues are to be above `crop_in_noise`
    times the slice's largest; where it is above `MOST_NOISE` of the largest singular value, maps are of low resolution, of this region.
    """
    slices, coils, y, x = kspace.shape
    shifts = torch.arange(1 - kernel, kernel, device=kspace.device, dtype=torch.float64)
    waves = [
        torch.polar(
            torch.ones((n, len(shifts)), dtype=torch.float64, device=kspace.device),
            2 * torch.pi / n * (torch.arange(n, device=kspace.device) - n // 2)[:, None] * shifts,
        ).to(kspace.dtype)
        for n in (y, x)
    ]
    maps, found = torch.empty_like(kspace), torch.empty((y, x, 1), device=kspace.device)
    rows = max(1, ENTRIES_AT_ONCE // (coils**2 * x))
    for index in range(slices):
        center = _center(kspace[index], calibration)
        spectrum, noise = _projection_spectrum(center, kernel, threshold, noise_variance)
        if noise > MOST_NOISE:
            alone = torch.zeros_like(kspace[index : index + 1])
            _center(alone, calibration).copy_(center)
            maps[index] = low_resolution_maps(alone)[0]
            continue
        along_x = spectrum @ waves[1].T  # (coils, coils, 2 kernel - 1, x)
        for start in range(0, y, rows):
            matrices = torch.einsum("yk,cdkx->yxcd", waves[0][start : start + rows], along_x)
            vector, found[start : start + rows] = _leading_eigenvector(matrices)
            maps[index, :, start : start + rows] = vector.movedim(-1, 0)
        maps[index] *= (found > (crop_in_noise * found.amax() if noise > threshold else crop))[..., 0]
    maps *= _opposite_phase(maps, kspace)
    return maps


def _projection_spectrum(center: Tensor, kernel: int, threshold: float, noise_variance: float) -> tuple[Tensor, float]:
    """Fourier coefficients (coils, coils, 2 kernel - 1, 2 kernel - 1), by shift, of the per-pixel matrices that project
    on the span of the patches of a calibration region (coils, y, x), and the largest singular value of noise as a share of theirs."""
    coils = len(center)
    patches = center.unfold(1, kernel, 1).unfold(2, kernel, 1)  # (coils, ny, nx, kernel, kernel)
    rows = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel**2)
    largest = rows.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    _, values, vectors = torch.linalg.svd(rows / largest, full_matrices=False)
    noise = math.sqrt(noise_variance) / largest.item() * sum(math.sqrt(n) for n in rows.shape)
    noise = noise / values[0].item() if noise else 0.0
    vectors = vectors[(values >= max(threshold, noise) * values[0]) & (values > 0)]
    # A row is a patch, so patches are combinations of conj(conj(vectors)): the projector on their span.
    projector = vectors.mT @ vectors.conj()
    projector = projector.reshape(coils, kernel**2, coils, kernel**2).permute(0, 2, 1, 3)
    offset = torch.arange(kernel, device=center.device)
    shift = offset[:, None] - offset[None, :] + kernel - 1  # (kernel, kernel)
    size = 2 * kernel - 1
    place = shift[:, None, :, None] * size + shift[None, :, None, :]  # (ky, kx, ly, lx)
    spectrum = center.new_zeros((coils, coils, size**2))
    spectrum.index_add_(2, place.flatten(), projector.flatten(2))
    return spectrum.unflatten(2, (size, size)) / kernel**2, noise


def _leading_eigenvector(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Of Hermitian positive matrices (..., n, n): unit eigenvectors (..., n) of any phase, and eigenvalues (..., 1)."""
    trace = lambda power: power.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None].clamp_min(1e-30)  # noqa: E731
    power = matrices
    for _ in range(7):  # squared seven times: 128 steps of the power method
        power = power @ power
        power *= trace(power).reciprocal()
    largest = power.diagonal(dim1=-2, dim2=-1).real.argmax(-1)
    column = power.gather(-1, largest[..., None, None].expand(*power.shape[:-1], 1))[..., 0]
    vector = column / column.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    value = (vector.conj() * (matrices @ vector[..., None])[..., 0]).real.sum(-1, keepdim=True)
    return vector, value
