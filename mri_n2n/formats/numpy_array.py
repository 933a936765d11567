"""Complex k-space in NumPy's .npy files: (y, x), (coils, y, x) or (slices, y, x), (slices, coils, y, x); centred."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError

import numpy as np

from mri_n2n.acquisition import Scan
from mri_n2n.errors import InputError, OptionError
from mri_n2n.files import atomic_output, check_readable, one_line
from mri_n2n.formats.hdf5 import FILE_FACTOR, check_size, size_limit
from mri_n2n.formats.sampling import reader

FORMAT = "npy"
# Three axes can be coils or slices first: whoever knows says which.
FORMATS = {"npy": None, "npy-coils": 1, "npy-slices": 0}


def open_scan(path: Path | str, format: str = "npy") -> Scan:
    """Check a file; slices are read from its map, and nothing is unpickled.

    Errors: NotFoundError; InputError; OptionError for three axes without a word on what the first one is.
    """
    path = check_readable(path)
    array = _mapped(path)
    if array.dtype.kind != "c" or array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise InputError(
            f"{one_line(path)} must be complex with 2 to 4 axes, none empty; got {array.dtype} {array.shape}"
        )
    check_size(path, "the scan", array.nbytes, size_limit() * FILE_FACTOR)
    first = FORMATS[format]
    if array.ndim == 3 and first is None:
        raise OptionError(
            f"{one_line(path)} has three axes {array.shape}; say --format npy-coils (coils, y, x) or npy-slices (slices, y, x)"
        )
    *leading, y, x = array.shape
    leading = (
        [1, 1] if not leading else leading if len(leading) == 2 else [1, *leading] if first == 1 else [*leading, 1]
    )
    shape = (*leading, y, x)
    check_size(path, "one slice", array.nbytes // shape[0], size_limit())

    def read_slice(number: int) -> np.ndarray:
        with np.errstate(over="ignore"):
            kspace = np.array(_mapped(path).reshape(shape)[number], dtype=np.complex64)
        if not np.isfinite(kspace).all():
            raise InputError(
                f"{one_line(path)}: k-space holds NaN or infinite samples in slice {number}; expected finite"
            )
        return kspace

    return Scan(path, "npy", shape, reader(path, shape, read_slice), None, "zeros", None, False)


def _mapped(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            start = file.read(12)
        # Before numpy takes memory for it: two bytes of length in the first version, four in the others.
        length = int.from_bytes(start[8:10] if start[6:7] == b"\x01" else start[8:12], "little")
        if length > path.stat().st_size:
            raise ValueError("its header is longer than the file")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, TypeError, OverflowError, SyntaxError, RecursionError, TokenError) as error:
        raise InputError(f"{one_line(path)} is no readable .npy array ({one_line(error, 120)})") from None


def write_scan(
    path: Path | str, kspace_slices: Iterable[np.ndarray], shape: tuple[int, int, int, int], force: bool
) -> None:
    """Write slices (coils, y, x) as one complex64 array (slices, coils, y, x), complete or not at all."""
    with atomic_output(path, force) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<c8", "fortran_order": False, "shape": shape})
        for one in kspace_slices:
            file.write(np.ascontiguousarray(one, dtype="<c8").tobytes())
