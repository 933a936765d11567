"""Raw scans in fastMRI's HDF5 layout (https://fastmri.med.nyu.edu, arXiv:1811.08839), read and written slice by slice.

kspace: (slice, y, x) single-coil or (slice, coil, y, x), complex, centred.
mask (optional): (x,), (y, x) or (slice, y, x), 1 where sampled. Without one it is found from zeros: see `sampling.ZeroMask`.
probability (optional, ours): E[mask], (x,), (y, x) or (slice, y, x).
reconstruction_esc (single-coil), reconstruction_rss: the fully sampled magnitude image (slice, y, x), if there is one.
Attributes (ours): simulated, noise_variance, and the geometry. A stored mask is taken at its word.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from mri_n2n.acquisition import Acquisition, Geometry, Scan
from mri_n2n.errors import InputError
from mri_n2n.files import one_line
from mri_n2n.formats.encoding import Encoding, read_encoding
from mri_n2n.formats.hdf5 import (
    checked_dataset,
    create_hdf5,
    finite_float32,
    has,
    open_hdf5,
    read_geometry,
    scalar_attributes,
    write_attributes,
)
from mri_n2n.formats.sampling import ZeroMask

FORMAT = "fastmri-hdf5"
REFERENCES = ("reconstruction_esc", "reconstruction_rss")


def open_scan(path: Path | str) -> Scan:
    """Check a scan file without reading its k-space, which `read` checks. Errors: NotFoundError, InputError."""
    path = Path(path)
    with open_hdf5(path) as file:
        kspace = _kspace(file, path)
        shape = _full_shape(kspace)
        for name in ("mask", "probability"):
            if has(file, name):
                _check_plane(path, name, _plane_dataset(file, path, name).shape, shape)
        known = scalar_attributes(file)
        simulated = known.get("simulated")
        stored_mask, geometry = has(file, "mask"), read_geometry(file, path)
        has_reference = any(has(file, name) for name in REFERENCES)
        encoding = _encoding(file, path)
        for name in (name for name in REFERENCES if has(file, name)):
            _check_reference(path, name, checked_dataset(file, path, name, (3,), "fiub").shape, shape)
    acquisition, acceleration = known.get("acquisition"), known.get("acceleration")
    variance = known.get("noise_variance")
    if not isinstance(variance, (int, float)):  # of another program, which means something else
        variance = None
    elif not 0 <= variance < math.inf:
        raise InputError(f"{one_line(path)}: attribute noise_variance must be a number of at least 0; got {variance}")
    acquired_columns = None if encoding is None else _acquired_columns(encoding, shape)
    zero_mask, nonzero, outside, blank = ZeroMask(lambda: _sampled(path, shape[0])), [], [], []

    def read(start: int, stop: int) -> Acquisition:
        """Slices start..stop-1. InputError: samples not finite, a scan that is zero everywhere, mask not 0 and 1."""
        if not 0 <= start < stop <= shape[0]:
            raise ValueError(f"slices must be in 0..{shape[0]}; got {start}..{stop}")
        with open_hdf5(path) as file:
            dataset = _kspace(file, path)
            if _full_shape(dataset) != shape:
                raise InputError(f"{one_line(path)} was changed while it was being read; start again")
            kspace = _samples(dataset, path, start, stop)
            mask = _plane(file, path, "mask", shape, start, stop) if stored_mask else None
            probability = _plane(file, path, "probability", shape, start, stop) if has(file, "probability") else None
        if mask is None:
            mask = zero_mask.of(start, stop)
        elif not ((mask == 0) | (mask == 1)).all():
            raise InputError(f"{one_line(path)}: dataset 'mask' must hold zeros and ones only")
        if probability is not None and not _possible(probability, mask):
            raise InputError(f"{one_line(path)}: 'probability' must be in [0, 1], and positive wherever the mask is 1")
        if stored_mask and not outside and kspace.any(where=np.broadcast_to(mask == 0, kspace.shape)):
            outside.append(True)
            warnings.warn(f"{one_line(path)} has samples where its mask is 0; they are left out", stacklevel=2)
        kspace *= mask
        if acquired_columns is not None:  # masks are drawn over the whole width, padding included
            padding = np.ones(shape[3], dtype=bool)
            padding[slice(*acquired_columns)] = False
            mask[..., padding & ~kspace.any(axis=(0, 1, 2))] = 0
        sampled = (kspace != 0).any(axis=1)
        held = sampled.any(axis=(1, 2))  # empty slices are common
        called = np.broadcast_to(mask[:, 0], sampled.shape)[held].sum()
        empty = 1 - sampled.sum() / called if called else 0.0
        if stored_mask and empty > 0.02 and not blank:
            blank.append(True)
            warnings.warn(
                f"{one_line(path)}: {empty:.0%} of the samples that its mask calls measured are exactly zero; if they were "
                "not measured, store the true mask, or none",
                stacklevel=2,
            )
        if kspace.any():
            nonzero.append(True)
        elif not nonzero:  # an empty slice is common, an empty scan is not: look at the whole file once
            if not zero_mask.any():
                raise InputError(
                    f"{one_line(path)}: k-space is zero everywhere{' that its mask calls measured' if stored_mask else ''}; there is nothing to reconstruct"
                )
            nonzero.append(True)
        return Acquisition(
            torch.from_numpy(kspace),
            torch.from_numpy(mask),
            None if probability is None else torch.from_numpy(probability),
            None,
            None if variance is None else float(variance),
        )

    return Scan(
        path=path,
        format=FORMAT,
        shape=shape,
        read=read,
        geometry=geometry,
        mask_source="stored" if stored_mask else "zeros",
        simulated=bool(simulated) if isinstance(simulated, (bool, int)) else None,
        has_reference=has_reference,
        image_matrix=None if encoding is None else _image_matrix(encoding, shape),
        acquired_columns=acquired_columns,
        acquisition=one_line(acquisition, 40) if isinstance(acquisition, str) and acquisition != "unknown" else None,
        acceleration=float(acceleration) if isinstance(acceleration, (int, float)) else None,
    )


def _encoding(file: h5py.File, path: Path) -> Encoding | None:
    """What the header says; None without one that can be read: nothing else depends on it."""
    if not has(file, "ismrmrd_header"):
        return None
    try:
        return read_encoding(
            checked_dataset(file, path, "ismrmrd_header", (0,), "OS", sparse=True)[()], path, voxel=1.0
        )
    except InputError:
        return None


def _image_matrix(encoding: Encoding, shape: tuple[int, int, int, int]) -> tuple[int, int] | None:
    """(y, x) of the image that the header asks for, where it is smaller than k-space: without the oversampling."""
    y, x = shape[-2:]
    smaller = (min(encoding.recon_matrix[0], y), min(encoding.recon_matrix[1], x))
    return smaller if encoding.matrix[0] == y and smaller != (y, x) else None


def _acquired_columns(encoding: Encoding, shape: tuple[int, int, int, int]) -> tuple[int, int] | None:
    """The columns that are no padding, by a header that fits k-space (M4Raw's does not: its axes are swapped)."""
    first, last = encoding.acquired_lines
    return (first, last) if encoding.matrix == (shape[2], shape[3]) and 0 < last - first < shape[3] else None


def _sampled(path: Path, slices: int) -> Iterator[np.ndarray]:
    """Where each slice has samples, (y, x) bool, within a stored mask."""
    with open_hdf5(path) as file:
        dataset = _kspace(file, path)
        shape, mask_stored = _full_shape(dataset), has(file, "mask")
        for index in range(slices):
            sampled = (_samples(dataset, path, index, index + 1)[0] != 0).any(axis=0)
            if mask_stored:
                sampled &= _plane(file, path, "mask", shape, index, index + 1)[0, 0] > 0
            yield sampled


def read_scan_reference(path: Path, index: int | None = None) -> np.ndarray:
    """The reference image (slice, y, x) float32 of a scan file, or (y, x), slice `index` of it. InputError when it has none."""
    with open_hdf5(path) as file:
        order = REFERENCES if len(_kspace(file, path).shape) == 3 else REFERENCES[::-1]
        found = [name for name in order if has(file, name)]
        if not found:
            raise InputError(f"{one_line(path)} holds no reference ({' or '.join(REFERENCES)}); give a file that does")
        dataset = checked_dataset(file, path, found[0], (3,), "fiub", streamed=index is not None)
        return finite_float32(path, found[0], dataset[() if index is None else index])


def write_scan(
    path: Path | str,
    kspace_slices: Iterable[np.ndarray],
    shape: tuple[int, int, int, int],
    *,
    mask: np.ndarray,
    probability: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    geometry: Geometry | None = None,
    image_matrix: tuple[int, int] | None = None,
    acquired_columns: tuple[int, int] | None = None,
    attributes: dict | None = None,
    force: bool = False,
) -> None:
    """Write a scan file, complete or not at all; slices are taken one after the other and never held together.

    kspace_slices: (coils, y, x) complex64 each, shape[0] of them. shape: (slices, coils, y, x).
    mask, probability: (x,), (y, x) or (slices, y, x). reference: (slices, y, x).
    image_matrix, acquired_columns: as in `Scan`. attributes: stored as they are; max and norm of the reference and `acquisition` are added as fastMRI has them.
    Errors: OutputError; ValueError for arrays that do not fit each other.
    """
    slices, coils, y, x = shape
    planes = {"mask": mask, "probability": probability}
    planes = {name: np.asarray(value, dtype=np.float32) for name, value in planes.items() if value is not None}
    for name, value in planes.items():
        if value.shape not in ((x,), (y, x), (slices, y, x)):
            raise ValueError(f"{name} must be (x,), (y, x) or (slices, y, x) for k-space {shape}; got {value.shape}")
    if reference is not None and (np.ndim(reference) != 3 or len(reference) != slices):
        raise ValueError(f"the reference must be (slices, y, x) with {slices} slices; got {np.shape(reference)}")
    stored_shape = (slices, y, x) if coils == 1 else (slices, coils, y, x)
    with create_hdf5(path, {"kspace": stored_shape}, ((one,) for one in kspace_slices), force) as file:
        for name, value in planes.items():
            file[name] = value
        file["ismrmrd_header"] = _header((y, x), image_matrix or (y, x), acquired_columns or (0, x))
        extra = {"acquisition": "unknown"}
        if reference is not None:
            reference = np.asarray(reference, dtype=np.float32)
            file[REFERENCES[0] if coils == 1 else REFERENCES[1]] = reference
            extra |= {
                "max": float(reference.max()),
                "norm": float(np.linalg.norm(reference.ravel().astype(np.float64))),
            }
        write_attributes(file, {**extra, **(attributes or {})}, geometry)


def _header(matrix: tuple[int, int], image_matrix: tuple[int, int], acquired_columns: tuple[int, int]) -> str:
    """The part of an ISMRMRD header that fastMRI's own loader needs: matrix sizes, and which columns are padding."""
    sizes = [f"<matrixSize><x>{y}</x><y>{x}</y><z>1</z></matrixSize>" for y, x in (matrix, image_matrix)]
    first, last = acquired_columns
    limits = f"<minimum>0</minimum><maximum>{last - first - 1}</maximum><center>{matrix[1] // 2 - first}</center>"
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
        f"<encodedSpace>{sizes[0]}</encodedSpace><reconSpace>{sizes[1]}</reconSpace>"
        f"<encodingLimits><kspace_encoding_step_1>{limits}</kspace_encoding_step_1></encodingLimits>"
        "<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
    )


def _kspace(file: h5py.File, path: Path) -> h5py.Dataset:
    return checked_dataset(file, path, "kspace", (3, 4), "c", streamed=True)


def _full_shape(kspace: h5py.Dataset) -> tuple[int, int, int, int]:
    slices, *coils, y, x = kspace.shape
    return slices, (coils or [1])[0], y, x


def _samples(dataset: h5py.Dataset, path: Path, start: int, stop: int) -> np.ndarray:
    """(stop - start, coils, y, x) complex64, native byte order. InputError: NaN or infinite."""
    with np.errstate(over="ignore"):
        kspace = dataset[start:stop].astype(np.complex64, copy=False)
    if not np.isfinite(kspace).all():
        first = start + next(index for index, one in enumerate(kspace) if not np.isfinite(one).all())
        raise InputError(
            f"{one_line(path)}: k-space holds NaN or infinite samples, first in slice {first}; expected finite"
        )
    return kspace if kspace.ndim == 4 else kspace[:, None]


def _plane_dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    return checked_dataset(file, path, name, (1, 2, 3), "fiub", sparse=True)


def _check_plane(path: Path, name: str, found: tuple[int, ...], shape: tuple[int, int, int, int]) -> None:
    slices, _, y, x = shape
    if found not in ((x,), (y, x), (slices, y, x)):
        raise InputError(
            f"{one_line(path)}: {name!r} has shape {found}, which does not fit the k-space; "
            f"expected (x,) = {(x,)}, (y, x) = {(y, x)} or (slice, y, x) = {(slices, y, x)}"
        )


def _check_reference(path: Path, name: str, found: tuple[int, ...], shape: tuple[int, int, int, int]) -> None:
    """One image for each slice, of about the matrix's size: fastMRI's lack the readout oversampling, a few are larger."""
    slices, _, y, x = shape
    if found[0] != slices or not all(n / 3 <= m <= 3 * n for m, n in zip(found[1:], (y, x), strict=True)):
        raise InputError(
            f"{one_line(path)}: {name!r} has shape {found}, which does not fit k-space of (slice, y, x) = {(slices, y, x)}"
        )


def _possible(probability: np.ndarray, mask: np.ndarray) -> bool:
    """Whether a probability is in [0, 1], and positive where there is a sample."""
    return bool(((0 <= probability) & (probability <= 1) & ((probability > 0) | (mask == 0))).all())


def _plane(
    file: h5py.File, path: Path, name: str, shape: tuple[int, int, int, int], start: int, stop: int
) -> np.ndarray:
    """A mask or probability as (1 or stop - start, 1, y, x) float32."""
    dataset = _plane_dataset(file, path, name)
    _check_plane(path, name, dataset.shape, shape)
    values = finite_float32(path, name, dataset[start:stop] if dataset.ndim == 3 else dataset[()])
    values = values if values.ndim == 3 else np.broadcast_to(values, shape[-2:])[None]
    return np.array(values[:, None])
