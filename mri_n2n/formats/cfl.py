"""BART's raw arrays: NAME.hdr, a text header with the sizes, and NAME.cfl, complex64 in column-major order.

Of BART's dimensions, two of READ, PHS1 and PHS2 are the matrix (the earlier one is y, the later x); COIL, SLICE and AVG are
coils, slices and repetitions. https://bart-doc.readthedocs.io
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mri_n2n.acquisition import Scan
from mri_n2n.errors import InputError, OptionError
from mri_n2n.files import atomic_outputs, check_free, check_readable, one_line
from mri_n2n.formats.hdf5 import FILE_FACTOR, check_size, size_limit
from mri_n2n.formats.sampling import reader

FORMAT = "cfl"
COIL, SLICE, AVERAGE = 3, 13, 14


def is_cfl(path: Path) -> bool:
    """Whether `path` is one of a pair NAME.cfl, NAME.hdr whose header is BART's."""
    header = path.with_suffix(".hdr")
    if path.suffix not in (".cfl", ".hdr") or not header.is_file():
        return False
    with open(check_readable(header), "rb") as file:
        return file.read(12) == b"# Dimensions"


def open_scan(path: Path | str, repetition: int | None = None) -> Scan:
    """Check a pair of files; slices are read from the map of NAME.cfl. repetition: one of AVG; None: their mean.

    Errors: NotFoundError, InputError.
    """
    path = Path(path)
    sizes = read_sizes(path)
    sizes += [1] * (16 - len(sizes))
    matrix = [axis for axis in (0, 1, 2) if sizes[axis] > 1]
    others = [axis for axis in range(3, len(sizes)) if sizes[axis] > 1 and axis not in (COIL, SLICE, AVERAGE)]
    if len(matrix) != 2 or others:
        raise InputError(
            f"{one_line(path)} has sizes {sizes}; expected two of READ, PHS1, PHS2 above 1, and coils, slices, averages"
        )
    shape = (sizes[SLICE], sizes[COIL], sizes[matrix[0]], sizes[matrix[1]])
    check_size(path, "one slice", 8 * math.prod(shape[1:]), size_limit())
    repetitions = sizes[AVERAGE]
    if repetition is not None and not 0 <= repetition < repetitions:
        raise OptionError(f"{one_line(path)} has repetitions 0 to {repetitions - 1}; no number {repetition}")
    chosen = range(repetitions) if repetition is None else (repetition,)

    def read_slice(number: int) -> np.ndarray:
        """(coils, y, x) complex64: the mean over the repetitions in which a location was sampled."""
        mapped = np.memmap(path.with_suffix(".cfl"), np.complex64, "r", shape=tuple(sizes), order="F")
        axes = (AVERAGE, SLICE, COIL, *matrix)
        rest = tuple(axis for axis in range(16) if axis not in axes)
        array = mapped.transpose(*axes, *rest)[(..., *(0 for _ in rest))]
        total, count = 0, 0
        for one in chosen:
            samples = np.asarray(array[one, number])
            total, count = total + samples, count + (samples != 0).any(axis=0)
        if not np.isfinite(total).all():
            raise InputError(
                f"{one_line(path)}: k-space holds NaN or infinite samples in slice {number}; expected finite"
            )
        return (total / np.maximum(count, 1)).astype(np.complex64)

    return Scan(
        path=path,
        format=FORMAT,
        shape=shape,
        read=reader(path, shape, read_slice),
        geometry=None,
        mask_source="zeros",
        simulated=None,
        has_reference=False,
        repetitions=repetitions,
        more=(path.with_suffix(".hdr" if path.suffix == ".cfl" else ".cfl"),),
    )


def read_sizes(path: Path) -> list[int]:
    """The sizes in the header, checked against the file of samples. Errors: NotFoundError, InputError."""
    header, samples = check_readable(path.with_suffix(".hdr")), check_readable(path.with_suffix(".cfl"))
    with open(header, "rb") as file:
        lines = file.read(2**16).decode(errors="replace").splitlines()
    try:
        sizes = [int(word) for word in lines[lines.index("# Dimensions") + 1].split()]
    except (ValueError, IndexError):
        raise InputError(f"{one_line(header)} is no header of BART: no line of sizes after '# Dimensions'") from None
    if not 1 <= len(sizes) <= 16 or not all(0 < size < 2**31 for size in sizes):
        raise InputError(f"{one_line(header)} declares sizes {one_line(sizes, 80)}; expected up to 16, all positive")
    size = 8 * math.prod(sizes)
    check_size(path, "the scan", size, size_limit() * FILE_FACTOR)
    if samples.stat().st_size != size:
        raise InputError(
            f"{one_line(samples)} has {samples.stat().st_size} bytes, its header declares {size}; truncated?"
        )
    return sizes


def write_scan(
    path: Path | str, kspace_slices: Iterable[np.ndarray], shape: tuple[int, int, int, int], force: bool
) -> None:
    """Write slices (coils, y, x) of a scan of shape (slices, coils, y, x) as NAME.cfl and NAME.hdr, both or none.

    Errors: OutputError; OptionError for a matrix of one line or column, of which nobody could tell which it is.
    """
    path = Path(path)
    slices, coils, y, x = shape
    if min(y, x) < 2:
        raise OptionError(f"a matrix of {y} x {x} cannot be written for BART, where an axis of length 1 is none")
    sizes = [y, x, 1, coils, *[1] * 9, slices, 1, 1]
    for target in (path.with_suffix(".cfl"), path.with_suffix(".hdr")):
        check_free(target, force)
    with atomic_outputs(path.parent, path.stem, force) as folder:
        (folder / f"{path.stem}.hdr").write_text("# Dimensions\n" + " ".join(map(str, sizes)) + "\n")
        with open(folder / f"{path.stem}.cfl", "wb") as file:
            for one in kspace_slices:
                file.write(np.ascontiguousarray(one.transpose(0, 2, 1), dtype="<c8").tobytes())
