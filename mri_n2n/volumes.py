"""Reading one volume for training: from a file, or a phantom, to k-space on a common intensity scale."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.coils import coil_mixing, combine
from mri_n2n.density import estimate_probability
from mri_n2n.errors import InputError
from mri_n2n.formats import ImageFiles, open_scan, read_images
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import has_lines_along_x, is_along
from mri_n2n.movement import transpose
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.phantom import phantom_kspace
from mri_n2n.repetitions import Repetition
from mri_n2n.resample import crop_or_pad, resize_kspace
from mri_n2n.simulation import full_kspace, magnitude_peak, seeded

# Fully sampled k-space (slices, coils, y, x) complex64, its largest root-sum-of-squares magnitude 1; or, for measured
# pairs, the repetitions of one scan on one common scale.
Volume = Tensor | tuple[Acquisition, ...]


def load_phantom(name: str, slices: int, matrix_size: int, coils: int | None) -> Tensor:
    """Closed-form k-space of random heads. coils: with sensitivities and phase; None: one coil, real images."""
    shape, count, real = (matrix_size, matrix_size), coils or 1, coils is None
    drawn = (phantom_kspace(shape, count, seeded(0, name, i), real=real) for i in range(slices))
    return _scaled(_stacked(drawn, slices), name)


def load_nifti(files: ImageFiles, name: str, start: int, stop: int, axis: int, matrix_size: int | None) -> Tensor:
    """Simulated k-space (slices, 1, y, x) of a volume; the scale is that of the whole volume."""
    array, _ = read_images(files, axis=axis)
    peak = magnitude_peak(np.abs(array) if np.iscomplexobj(array) else array, name)
    if matrix_size is None:
        wanted = (full_kspace(torch.from_numpy(array[i : i + 1]))[0] for i in range(start, stop))
        return _stacked(wanted, stop - start).mul_(1 / peak)
    every = (resize_kspace(full_kspace(torch.from_numpy(image[None]))[0], matrix_size) for image in array)
    return _scaled(_stacked(every, len(array)), name)[start:stop]


def _reference_matrix(path: Path) -> tuple[int, int] | None:
    """(y, x) of the reference of a checked scan file: smaller than the k-space's where the readout is oversampled."""
    with h5py.File(path, "r") as file:
        shapes = [file[key].shape for key in ("reconstruction_rss", "reconstruction_esc") if key in file]
    return tuple(shapes[0][-2:]) if shapes else None


def load_fastmri(path: Path, name: str, start: int, stop: int, matrix_size: int | None) -> Tensor:
    scan = open_scan(path)
    matrix = _reference_matrix(path) if matrix_size else None

    def slice_kspace(i: int) -> Tensor:
        acquisition = scan.read(i, i + 1)
        _check_fully_sampled(path, acquisition.mask)
        kspace = acquisition.kspace[0]
        if matrix_size is None:
            return kspace
        if matrix is not None:
            kspace = fft2c(crop_or_pad(ifft2c(kspace), *(min(a, b) for a, b in zip(matrix, kspace.shape[-2:]))))
        return resize_kspace(kspace, matrix_size)

    return _scaled(_stacked(map(slice_kspace, range(start, stop)), stop - start), name)


def _check_fully_sampled(path: Path, mask: Tensor) -> None:
    if not mask.any():
        return  # an empty slice at the end of a volume
    rows, columns = mask.amax(dim=(0, 1, 3)).nonzero(), mask.amax(dim=(0, 1, 2)).nonzero()
    inside = mask[..., rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    # Zero padding at the edges and elliptical shutters (pi / 4 of the rectangle) are how full scans look.
    if inside.mean() < 0.75:
        raise InputError(
            f"{path} is undersampled ({100 * mask.mean():.0f} % of its k-space is there); dataset fastmri needs fully "
            "sampled scans, dataset pairs learns from repetitions of undersampled ones"
        )


def load_pairs(
    repetitions: tuple[Repetition, ...],
    name: str,
    start: int,
    stop: int,
    probabilities: dict[tuple[int, int], Tensor],
) -> tuple[Acquisition, ...]:
    """The repetitions, scaled alike so that the largest magnitude of their joint zero-filled image is 1.

    Coils are mixed as in use, all repetitions by the matrix of the first; lines along x are turned to lines along y.
    """
    scans = [repetition.open() for repetition in repetitions]
    acquisitions = [scan.read(start, stop) for scan in scans]
    mixing, said = coil_mixing(scans[0]) if scans[0].shape[1] > 1 else (None, [])
    for words in said:
        warnings.warn(f"{name}: {words}", stacklevel=2)
    if mixing is not None:
        acquisitions = [replace(a, kspace=combine(mixing, a.kspace)) for a in acquisitions]
    if _has_lines_along_x(scans):
        acquisitions = [transpose(a) for a in acquisitions]
    several = len(acquisitions) > 1
    if (
        several
        and all(torch.equal(a.mask, acquisitions[0].mask) for a in acquisitions)
        and acquisitions[0].mask.mean() < 0.75
    ):
        warnings.warn(f"{name}: all repetitions have one mask; what it leaves out cannot be learned", stacklevel=2)
    scale = _joint_scale(acquisitions, name)
    return tuple(_rescaled(a, scale, probabilities) for a in acquisitions)


def load_m4raw(repetitions: tuple[Repetition, ...], name: str, start: int, stop: int) -> tuple[Acquisition, ...]:
    """Fully sampled repetitions, scaled as `load_pairs` does, with the phase-encoded axis last, as line masks have it.

    M4Raw's files have it first, and zero lines at its edges that were never acquired: probability 0 there, else 1.
    """
    acquisitions = []
    for repetition in repetitions:
        acquisition = repetition.open().read(start, stop)
        _check_fully_sampled(repetition.path, acquisition.mask)
        acquisitions.append(transpose(replace(acquisition, probability=acquisition.mask)))
    scale = _joint_scale(acquisitions, name)
    return tuple(_rescaled(a, scale, {}) for a in acquisitions)


def _joint_scale(acquisitions: list[Acquisition], name: str) -> float:
    """1 over the largest magnitude of the joint zero-filled image of repetitions."""
    count = sum(a.mask for a in acquisitions).clamp_min(1)
    largest = 0.0
    for i in range(len(acquisitions[0].kspace)):
        joint = sum(a.kspace[i : i + 1] for a in acquisitions) / (count[i : i + 1] if count.shape[0] > 1 else count)
        largest = max(largest, root_sum_of_squares(ifft2c(joint)).max().item())
    return 1 / _positive(largest, name)


def _rescaled(acquisition: Acquisition, scale: float, probabilities: dict[tuple[int, int], Tensor]) -> Acquisition:
    probability = acquisition.probability
    if probability is None:
        matrix = tuple(acquisition.kspace.shape[-2:])
        if matrix not in probabilities:
            raise InputError(
                f"a scan for validation stores no sampling probability and no training scan has its matrix {matrix}, "
                "from which to estimate it"
            )
        estimate = probabilities[matrix]
        # A location that no training scan has but this one does: as rare as the rarest known.
        estimate = torch.where(estimate > 0, estimate, estimate[estimate > 0].min())
        probability = torch.where(acquisition.mask > 0, estimate, probabilities[matrix])
    variance = acquisition.noise_variance
    return replace(
        acquisition,
        kspace=acquisition.kspace * scale,
        probability=probability,
        noise_variance=None if variance is None else variance * scale**2,
    )


def _stacked(slices: Iterable[Tensor], count: int) -> Tensor:
    """(count, ...) from `count` tensors, without ever holding them twice."""
    volume = None
    for i, one in enumerate(slices):
        volume = one.new_empty((count, *one.shape)) if volume is None else volume
        volume[i] = one
    return volume


def _scaled(kspace: Tensor, name: str) -> Tensor:
    """In place: (slices, coils, y, x) so that the largest root-sum-of-squares magnitude is 1."""
    largest = max(root_sum_of_squares(ifft2c(kspace[i : i + 1])).max().item() for i in range(len(kspace)))
    return kspace.mul_(1 / _positive(largest, name))


def _positive(largest: float, name: str) -> float:
    if not largest > 0:
        raise InputError(f"{name} is empty: its largest magnitude is {largest}; take it out of the data set")
    return largest


def estimated_probabilities(groups: list[tuple[Repetition, ...]]) -> dict[tuple[int, int], Tensor]:
    """Matrix size -> estimated probability, of the scans that do not store one. groups: the repetitions of each."""
    by_matrix: dict[tuple[int, int], list[tuple[Scan, bool]]] = defaultdict(list)
    for repetitions in groups:
        scans = [repetition.open() for repetition in repetitions]
        turned = _has_lines_along_x(scans)
        for scan in (scan for scan in scans if scan.read(0, 1).probability is None):
            y, x = scan.shape[-2:]
            by_matrix[(x, y) if turned else (y, x)].append((scan, turned))
    return {matrix: estimate_probability(_masks_of(scans)) for matrix, scans in by_matrix.items()}


def _masks_of(scans: list[tuple[Scan, bool]]) -> Iterable[Tensor]:
    """One mask (y, x) per scan, lines along y, or one per slice where they differ; empty slices have none."""
    for scan, turned in scans:
        masks = (scan.read(i, i + 1).mask[0, 0] for i in range(scan.shape[0]))
        masks = [mask.T if turned else mask for mask in masks if mask.any()]
        yield from masks[:1] if all(torch.equal(mask, masks[0]) for mask in masks) else masks


def _has_lines_along_x(scans: list[Scan]) -> bool:
    """Of the repetitions of one scan: some have lines along x, and all others are full."""
    masks = [scan.read(scan.shape[0] // 2, scan.shape[0] // 2 + 1).mask for scan in scans]
    return any(map(has_lines_along_x, masks)) and all(is_along(mask, -1) for mask in masks)
