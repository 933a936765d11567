"""NIfTI-1 and NIfTI-2 volumes in one file (.nii, .nii.gz), to the specification at https://nifti.nimh.nih.gov.

A volume array (i, j, k) becomes slices (slice, y, x): the slice axis first, then the higher of the other two as y and
the lower as x. The header is read and checked before memory is taken; nibabel interprets what is in it.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import h5py
import nibabel
import numpy as np

from mri_n2n.acquisition import Geometry
from mri_n2n.errors import InputError, OutputError
from mri_n2n.files import atomic_output, check_readable, one_line
from mri_n2n.formats.hdf5 import UNITS, check_size, finite_float32, size_limit, usable_affine
from mri_n2n.formats.result import NOTE

FORMAT = "nifti"
# Negative values down to this share of the maximum are what an interpolation of magnitudes leaves.
UNDERSHOOT = 0.05
VOXELS_AT_ONCE = 2**20  # of a volume that is written
_CLASSES = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
_DEFLATE_LIMIT = 1032  # gzip cannot expand more than this


def is_nifti(start: bytes) -> bool:
    """Whether (uncompressed) bytes are the start of a NIfTI header, in one file or with a separate .img."""
    found = _size_and_order(start)
    return found is not None and start[(at := 344 if found[0] == 348 else 4) : at + 2] in (b"n+", b"ni")


def read_volume(path: Path | str, axis: int = 2, *, kinds: str = "fiu") -> tuple[np.ndarray, Geometry]:
    """(array (slice, y, x) float32, geometry) of a magnitude volume, slices along array axis `axis`; scl_slope applied.

    Any real type and byte order; kinds: the letters of numpy's dtype.kind, of which "c" gives complex64. Errors: NotFoundError; InputError for no NIfTI, complex or RGB, not three axes, sizes
    that are negative, empty or beyond the limit (see hdf5.MAX_GIB), truncated, a scale or values that are not finite,
    a singular affine.
    """
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2; got {axis}")
    path = check_readable(path)
    with _opened(path) as (stream, compressed):
        header, shape, offset = _checked_header(stream, path)
        dtype = _checked_type(header, path, kinds)
        slope, intercept = _checked_scale(header, path)
        geometry = _checked_geometry(header, path, shape, axis)
        size = math.prod(shape) * dtype.itemsize
        check_size(path, "the volume", max(size, math.prod(shape) * _in_memory(dtype).itemsize), size_limit())
        check_size(path, "the space before the data", offset, size_limit())
        available = path.stat().st_size * (_DEFLATE_LIMIT if compressed else 1)
        if offset + size > available:
            raise _truncated(path, f"its header declares {shape} voxels, {size} bytes, more than the file can hold")
        volume = _read_data(stream, path, shape, dtype, offset - header.sizeof_hdr, slope, intercept)
    # On disk i runs fastest: the array is (k, j, i), and axis a of the volume is its axis 2 - a.
    return np.ascontiguousarray(volume.transpose(_to_slices(axis, reverse=True))), geometry


def volume_shape(path: Path | str) -> tuple[int, int, int]:
    """The sizes (i, j, k) that a NIfTI header declares; nothing else is read. Errors: NotFoundError, InputError."""
    path = check_readable(path)
    with _opened(path) as (stream, _):
        return _checked_header(stream, path)[1]


def is_complex(path: Path | str) -> bool:
    """Whether a NIfTI header declares complex numbers. Errors: NotFoundError, InputError."""
    path = check_readable(path)
    with _opened(path) as (stream, _):
        return _checked_type(_checked_header(stream, path)[0], path, "fiuc").kind == "c"


def volume_geometry(path: Path | str, axis: int = 2) -> Geometry:
    """Where the voxels of a volume lie, slices along array axis `axis`. Errors: NotFoundError, InputError."""
    path = check_readable(path)
    with _opened(path) as (stream, _):
        header, shape, _ = _checked_header(stream, path)
        return _checked_geometry(header, path, shape, axis)


def write_nifti(
    path: Path | str,
    array: np.ndarray | h5py.Dataset,
    geometry: Geometry | None,
    force: bool = False,
    *,
    simulated: bool = False,
) -> None:
    """Write (slice, y, x) as a float32 NIfTI-1 volume in the array order that `geometry` was read with, gzip for .gz.

    A dataset of a file is read part by part. Without a geometry slices go along the last axis, voxels are 1 and both codes 0: place
    and size unknown. The affine goes into both the sform and (without its shears) the qform, each with its own code. The description
    says that it is for research only, and, when `simulated`, that its k-space was.
    Errors: OutputError.
    """
    if array.ndim != 3:
        raise ValueError(f"a volume must have axes (slice, y, x); got {array.shape}")
    if max(array.shape) > 32767:
        raise OutputError(f"cannot write {one_line(path)}: NIfTI-1 allows 32767 voxels an axis, not {array.shape}")
    geometry = geometry or Geometry(tuple(map(tuple, np.eye(4).tolist())), 2, 0, 0, "unknown")
    order = np.argsort(_to_slices(geometry.slice_axis)).tolist()  # the array's axis of each of the file's
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape([array.shape[axis] for axis in order])
    affine = np.asarray(geometry.affine, dtype=np.float64)
    header.set_qform(affine, geometry.qform_code)
    header.set_sform(affine, geometry.sform_code)
    header.set_slope_inter(1, 0)
    header.set_xyzt_units(geometry.spatial_unit)
    header["descrip"] = (f"{NOTE}; simulated k-space" if simulated else NOTE).encode()
    header["magic"], header["vox_offset"] = b"n+1", 352
    last = array.shape[order[2]]
    at_once = max(1, VOXELS_AT_ONCE * last // max(1, array.size))
    with atomic_output(path, force) as temporary, open(temporary, "wb") as raw:
        compressed = Path(path).name.lower().endswith(".gz")
        # No time and no name in the gzip header: equal volumes make equal files.
        with gzip.GzipFile("", "wb", 3, raw, mtime=0) if compressed else nullcontext(raw) as stream:
            stream.write(header.binaryblock + bytes(4))  # four zeros: no extensions
            for start in range(0, last, at_once):
                part = [slice(None)] * 3
                part[order[2]] = slice(start, start + at_once)
                block = np.asarray(array[tuple(part)], dtype=header.get_data_dtype()).transpose(order)
                stream.write(block.tobytes(order="F"))


def _to_slices(axis: int, *, reverse: bool = False) -> tuple[int, int, int]:
    """The transposition of a volume (i, j, k), or with `reverse` of (k, j, i), to (slice, y, x)."""
    low, high = (a for a in range(3) if a != axis)
    order = (axis, high, low)
    return tuple(2 - a for a in order) if reverse else order


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The uncompressed bytes of a file, and whether it is compressed: by its first two bytes, whatever its name.

    What cannot be read inside the block becomes an InputError.
    """
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if compressed else nullcontext(raw) as stream:
                yield stream, compressed
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _truncated(path, one_line(error)) from None
    except OSError as error:
        raise InputError(f"{one_line(path)} cannot be read: {one_line(error)}") from None


def _size_and_order(start: bytes) -> tuple[int, str] | None:
    return next(
        ((size, order) for size in _CLASSES for order in "<>" if start[:4] == struct.pack(order + "i", size)),
        None,
    )


def _checked_header(stream: BinaryIO, path: Path) -> tuple[nibabel.Nifti1Header, tuple[int, int, int], int]:
    """Header, shape and offset of the data."""
    start = stream.read(348)
    if not is_nifti(start):
        raise InputError(f"{one_line(path)} is no NIfTI volume (.nii or .nii.gz expected)")
    size, order = _size_and_order(start)
    start += stream.read(size - len(start))
    if len(start) < size:
        raise _truncated(path, "the header is incomplete")
    header = _CLASSES[size](start, order, check=False)
    if not header["magic"].item().startswith(b"n+"):
        raise InputError(f"{one_line(path)} is half of a .hdr/.img pair; convert it to one .nii file")
    rank, *sizes = (int(n) for n in header["dim"])
    sizes = sizes[:rank] if 1 <= rank <= 7 else []
    if not sizes or min(sizes) < 1:
        raise InputError(f"{one_line(path)}: its header is damaged, dimensions {header['dim'].tolist()} make no sense")
    if len(sizes) < 3 or any(n > 1 for n in sizes[3:]):
        raise InputError(f"{one_line(path)} has shape {tuple(sizes)}; expected one volume with three axes")
    offset = float(header["vox_offset"])
    offset = size + 4 if offset == 0 else offset
    if not size <= offset < 2**62:
        raise InputError(f"{one_line(path)}: its header is damaged, the data cannot begin at byte {offset:g}")
    return header, tuple(sizes[:3]), int(offset)


def _in_memory(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.complex64 if dtype.kind == "c" else np.float32)


def _checked_type(header: nibabel.Nifti1Header, path: Path, kinds: str) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (nibabel.spatialimages.HeaderDataError, KeyError):
        raise InputError(f"{one_line(path)}: its header names the unknown data type {header['datatype']}") from None
    if dtype.kind not in kinds or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        expected = "real or complex numbers" if "c" in kinds else "a magnitude volume (int or float)"
        raise InputError(f"{one_line(path)} holds {one_line(dtype, 60)}; expected {expected}")
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise InputError(f"{one_line(path)}: its header is damaged, {dtype} has not {header['bitpix']} bits")
    return dtype


def _checked_scale(header: nibabel.Nifti1Header, path: Path) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:  # the specification: not scaled
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError(f"{one_line(path)}: its scale (scl_slope {slope:g}, scl_inter {intercept:g}) is not finite")
    return slope, intercept


def _checked_geometry(header: nibabel.Nifti1Header, path: Path, shape: tuple[int, int, int], axis: int) -> Geometry:
    """The affine as nibabel and the specification choose it: sform, else qform, else voxel sizes alone.

    A qform that puts voxels elsewhere than the sform does cannot be kept beside it: its code becomes 0.
    """
    # The specification: a qfac of 0 means 1; voxel sizes are positive.
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    header["pixdim"][1:4] = abs(header["pixdim"][1:4])
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    try:
        affine = header.get_best_affine()
        usable = usable_affine(affine) and qform_code in range(6) and sform_code in range(6)
    except (nibabel.spatialimages.HeaderDataError, ValueError):
        usable = False
    if not usable:
        raise InputError(f"{one_line(path)}: its header is damaged, the affine (qform, sform, pixdim) makes no sense")
    if qform_code and sform_code and not _agree(header, affine, shape):
        qform_code = 0
    unit = int(header["xyzt_units"]) & 7
    unit = UNITS[unit] if unit < len(UNITS) else "unknown"
    return Geometry(tuple(tuple(map(float, row)) for row in affine), axis, qform_code, sform_code, unit)


def _agree(header: nibabel.Nifti1Header, affine: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether the qform puts the corners of the volume within a tenth of a voxel of where `affine` puts them."""
    try:
        difference = header.get_qform() - affine
    except (nibabel.spatialimages.HeaderDataError, ValueError):
        return False
    corners = np.array(list(np.ndindex(2, 2, 2))) * shape
    distance = np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1)
    return bool(distance.max() < 0.1 * np.linalg.norm(affine[:3, :3], axis=0).min())


def _read_data(
    stream: BinaryIO,
    path: Path,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    skip: int,
    slope: float,
    intercept: float,
) -> np.ndarray:
    """The volume as (k, j, i) float32 or complex64, read plane by plane."""
    while skip > 0:
        skipped = len(stream.read(min(skip, 2**20)))
        if not skipped:
            raise _truncated(path, "the data are missing")
        skip -= skipped
    i, j, k = shape
    volume, size = np.empty((k, j, i), dtype=_in_memory(dtype)), i * j * dtype.itemsize
    for index in range(k):
        plane = stream.read(size)
        if len(plane) < size:
            raise _truncated(path, f"plane {index + 1} of {k} is incomplete")
        values = np.frombuffer(plane, dtype)
        if (slope, intercept) != (1.0, 0.0):
            values = values.astype(np.complex128 if dtype.kind == "c" else np.float64) * slope + intercept
        if dtype.kind == "c":
            parts = (finite_float32(path, "volume", part).reshape(j, i) for part in (values.real, values.imag))
            volume.real[index], volume.imag[index] = parts
        else:
            volume[index] = finite_float32(path, "volume", values).reshape(j, i)
    for _ in range(16):  # at its end gzip compares the checksum, which damage in the middle does not survive
        if not stream.read(2**20):
            return volume
    raise InputError(f"{one_line(path)} goes on long after the volume that its header describes; it is damaged")


def _truncated(path: Path, detail: str) -> InputError:
    return InputError(f"{one_line(path)} is truncated or damaged: {detail}; fetch it again")
