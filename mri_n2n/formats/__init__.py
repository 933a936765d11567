"""Scans, volumes and results on disk: one module per format, chosen by content and never by a file's name."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import h5py
import numpy as np

from mri_n2n.acquisition import Scan
from mri_n2n.errors import InputError, NotFoundError, OptionError
from mri_n2n.files import check_readable, one_line
from mri_n2n.formats import cfl, fastmri_hdf5, mrd, nifti, numpy_array, result
from mri_n2n.formats.complex_nifti import ImageFiles, pairs_of_parts, read_images
from mri_n2n.formats.fastmri_hdf5 import write_scan
from mri_n2n.formats.hdf5 import contents, has, open_hdf5
from mri_n2n.formats.nifti import is_complex, read_volume, volume_geometry, volume_shape, write_nifti
from mri_n2n.formats.result import read_result, write_result

__all__ = [
    "ImageFiles",
    "detect",
    "is_complex",
    "open_scan",
    "pairs_of_parts",
    "read_images",
    "read_reference",
    "read_result",
    "read_volume",
    "volume_geometry",
    "volume_shape",
    "write_nifti",
    "write_result",
    "write_scan",
]


# Formats of raw scans, as `--format` takes them.
SCAN_FORMATS = (fastmri_hdf5.FORMAT, mrd.FORMAT, cfl.FORMAT, *numpy_array.FORMATS)


def open_scan(path: Path | str, format: str | None = None, repetition: int | None = None) -> Scan:
    """A raw scan of any format, checked but not loaded. format: one of `SCAN_FORMATS`; None: found from the content.

    repetition: one of several in the file; None: their mean. Errors: NotFoundError, InputError, OptionError.
    """
    path = Path(path)
    format = detect(path) if format is None else format
    if format == nifti.FORMAT:
        raise InputError(f"{one_line(path)} is a NIfTI volume of images, and no raw scan; denoise cleans such volumes")
    if format == mrd.FORMAT:
        return mrd.open_scan(path, repetition)
    if format == cfl.FORMAT:
        return cfl.open_scan(path, repetition)
    if repetition:
        raise OptionError(f"{one_line(path)} ({format}) holds one repetition, number 0; no number {repetition}")
    if format in numpy_array.FORMATS:
        return numpy_array.open_scan(path, format)
    return fastmri_hdf5.open_scan(path)


def detect(path: Path | str) -> str:
    """The format of a file, from its content: one of `SCAN_FORMATS`, "result-hdf5" or "nifti".

    Errors: NotFoundError; InputError for anything else, damaged files and known formats that are not read.
    """
    path = check_readable(path)
    if cfl.is_cfl(path):
        return cfl.FORMAT
    if h5py.is_hdf5(path):
        with open_hdf5(path) as file:
            for name, kind in (("kspace", fastmri_hdf5.FORMAT), ("reconstruction", result.FORMAT)):
                if has(file, name):
                    return kind
            if mrd.is_mrd(file):
                return mrd.FORMAT
            raise InputError(
                f"{one_line(path)} is HDF5 that holds {contents(file)}; "
                "expected a dataset 'kspace' (scan) or 'reconstruction' (result)"
            )
    if path.suffix == ".cfl" and not path.with_suffix(".hdr").exists():
        raise NotFoundError(f"no file {one_line(path.with_suffix('.hdr'))}, BART's header of {path.name}")
    start = _first_bytes(path)
    if nifti.is_nifti(start):
        return nifti.FORMAT
    if start[:6] == b"\x93NUMPY":
        return numpy_array.FORMAT
    known = {"DICOM": start[128:132] == b"DICM", "an empty file": not start}
    what = next((name for name, is_it in known.items() if is_it), "of an unknown format")
    raise InputError(
        f"{one_line(path)} is {what}; expected a raw scan ({', '.join(SCAN_FORMATS)}), a result (HDF5) or a NIfTI volume"
    )


def read_reference(path: Path | str, slice_axis: int = 2) -> np.ndarray:
    """A magnitude image (slice, y, x) float32: the reference in a scan file, a result's `reconstruction`, or a NIfTI
    volume with slices along `slice_axis`. Errors: NotFoundError, InputError."""
    kind = detect(path)
    if kind == nifti.FORMAT:
        return read_volume(path, axis=slice_axis)[0]
    if kind == result.FORMAT:
        return read_result(path)[0]
    if kind != fastmri_hdf5.FORMAT:
        raise InputError(f"{one_line(path)} is a raw scan ({kind}), which holds no reference")
    return fastmri_hdf5.read_scan_reference(Path(path))


def _first_bytes(path: Path) -> bytes:
    """The first 540 bytes, of the content where a file is compressed."""
    with open(path, "rb") as raw:
        try:
            start = raw.read(540)
        except OSError as error:
            raise InputError(f"{one_line(path)} cannot be read: {error.strerror}") from None
        if start[:2] != b"\x1f\x8b":
            return start
        raw.seek(0)
        try:
            return gzip.GzipFile(fileobj=raw).read(540)
        except (EOFError, zlib.error, OSError) as error:
            reason = one_line(error)
            raise InputError(f"{one_line(path)} is a truncated or damaged gzip file: {reason}") from None
