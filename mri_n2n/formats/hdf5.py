"""What all HDF5 files have in common here: nothing in one is read before it was checked.

An HDF5 file can name other files as the place of its data, and can declare terabytes in a kilobyte; both are refused.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from mri_n2n.acquisition import Geometry
from mri_n2n.errors import InputError, UserError
from mri_n2n.files import atomic_output, check_readable, one_line
from mri_n2n.formats.probe import survives

# The largest array held in memory at once: a volume, a reference, one slice of all coils, one HDF5 chunk. A file as a
# whole, which is read slice by slice, may declare FILE_FACTOR times as much. MRI_N2N_MAX_GIB in the environment
# replaces the number.
MAX_GIB = 4.0
FILE_FACTOR = 16
# No k-space or image compresses this well (masks do). 1 MiB is always allowed.
MAX_EXPANSION = 200

UNITS = ("unknown", "meter", "mm", "micron")  # of space, by their NIfTI code
GEOMETRY_ATTRIBUTES = ("affine", "slice_axis", "qform_code", "sform_code", "spatial_unit")


def size_limit() -> int:
    """The largest array that is read into memory, in bytes: MRI_N2N_MAX_GIB, by default 4 GiB. Errors: UserError."""
    text = os.environ.get("MRI_N2N_MAX_GIB", "")
    try:
        gib = float(text) if text else MAX_GIB
    except ValueError:
        gib = math.nan
    if not 0 < gib < math.inf:
        raise UserError(f"MRI_N2N_MAX_GIB must be a positive number (of GiB); got {one_line(text, 40)!r}")
    return int(gib * 2**30)


def check_size(path: Path, what: str, size: int, limit: int) -> None:
    """InputError when `size` bytes are more than `limit`."""
    if size > limit:
        raise InputError(
            f"{one_line(path)}: {what} declares {size / 2**30:.3g} GiB, more than the {limit / 2**30:.3g} GiB allowed; "
            "if that is meant, set MRI_N2N_MAX_GIB higher"
        )


@contextmanager
def open_hdf5(path: Path | str) -> Iterator[h5py.File]:
    """The file, read-only. Whatever the HDF5 library cannot read inside the block becomes an InputError.

    Errors: NotFoundError, InputError.
    """
    path = check_readable(path)
    if not h5py.is_hdf5(path):
        raise InputError(f"{one_line(path)} is no HDF5 file")
    survives(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(
            f"{one_line(path)} cannot be read, it is truncated or damaged ({one_line(error, 160)}); fetch it again"
        ) from error


def has(file: h5py.File, name: str) -> bool:
    """Whether the name is there, as anything; links are not followed."""
    return file.id.links.exists(name.encode())


def contents(file: h5py.File) -> str:
    """The names in a file, for an error message."""
    return one_line(", ".join(sorted(file)[:8]), 120) or "nothing"


def checked_dataset(
    file: h5py.File,
    path: Path,
    name: str,
    ranks: tuple[int, ...],
    kinds: str,
    *,
    streamed: bool = False,
    sparse: bool = False,
) -> h5py.Dataset:
    """The dataset, when its bytes are in this file, its size is allowed, and its rank and type are as expected.

    kinds: the letters of numpy's dtype.kind that are accepted. streamed: it is read along its first axis, so the memory
    limit applies to one slice (and one chunk) of it. sparse: it may compress to any degree, as masks do.
    Errors: InputError.
    """
    where = f"{one_line(path)}: dataset {name!r}"
    if not has(file, name):
        raise InputError(f"{one_line(path)} holds no dataset {name!r}; it holds {contents(file)}")
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{where} is a link; links are not followed, expected the data itself in the file")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{where} is a group or type; expected an array")
    if dataset.is_virtual:
        raise InputError(f"{where} is virtual, its data lie in other files and are not read; store them in one file")
    if dataset.id.get_create_plist().get_external_count():
        raise InputError(f"{where} is external, its data lie in other files and are not read; store them in one file")
    shape, dtype = dataset.shape, dataset.dtype
    if shape is None or len(shape) not in ranks or 0 in shape:
        expected = " or ".join(map(str, ranks))
        raise InputError(f"{where} must have {expected} axes, none of them empty; got shape {shape}")
    if dtype.kind not in kinds:
        expected = {"c": "complex numbers", "fiub": "real numbers", "V": "a table"}.get(kinds, "text")
        raise InputError(f"{where} must hold {expected}; got {one_line(dtype, 60)}")
    size, limit = math.prod(shape) * dtype.itemsize, size_limit()
    check_size(path, f"dataset {name!r}", size, limit * FILE_FACTOR if streamed else limit)
    check_size(path, f"one slice of {name!r}", size // (shape or (1,))[0], limit)
    if dataset.chunks:
        check_size(path, f"one chunk of {name!r}", math.prod(dataset.chunks) * dtype.itemsize, limit)
    stored = min(dataset.id.get_storage_size(), path.stat().st_size)
    if not sparse and size > MAX_EXPANSION * stored + 2**20:
        raise InputError(
            f"{where} declares {size / 2**20:.0f} MiB but the file stores {stored / 2**20:.3g} MiB of it; "
            "no scan compresses so well, the file is empty, damaged or made to exhaust memory"
        )
    return dataset


def finite_float32(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """The values as native float32. InputError: NaN or infinity, or what float32 cannot hold."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{one_line(path)}: {name!r} holds NaN or infinite values; expected finite intensities")
    return values


def scalar_attributes(file: h5py.File) -> dict[str, object]:
    """The file's attributes that are single numbers, truth values or texts, as Python objects; arrays are left out."""
    found = {}
    for name in file.attrs:
        attribute = file.attrs.get_id(name)
        if attribute.shape == () and (attribute.dtype.kind in "fiub" or h5py.check_string_dtype(attribute.dtype)):
            value = file.attrs[name]
            value = value.decode(errors="replace") if isinstance(value, bytes) else value
            found[name] = value.item() if isinstance(value, np.generic) else value
    return found


def read_geometry(file: h5py.File, path: Path) -> Geometry | None:
    """The geometry in the file's attributes, None when there is none. InputError: one that makes no sense."""
    if "affine" not in file.attrs:
        return None
    if file.attrs.get_id("affine").shape != (4, 4):
        raise InputError(f"{one_line(path)}: attribute 'affine' must be a 4x4 matrix")
    affine, known = np.asarray(file.attrs["affine"], dtype=np.float64), scalar_attributes(file)
    geometry = Geometry(
        tuple(tuple(map(float, row)) for row in affine),
        **{name: known[name] for name in GEOMETRY_ATTRIBUTES[1:] if name in known},
    )
    known = geometry.qform_code in range(6) and geometry.sform_code in range(6) and geometry.spatial_unit in UNITS
    if not (known and usable_affine(affine) and geometry.slice_axis in range(3)):
        raise InputError(f"{one_line(path)}: its geometry (attributes {', '.join(GEOMETRY_ATTRIBUTES)}) makes no sense")
    return geometry


def usable_affine(affine: np.ndarray) -> bool:
    """Whether a 4x4 matrix maps voxels to places one to one."""
    return bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine[:3, :3])) > 0


class _Sink(io.FileIO):
    """A file that keeps a failing disk, and a signal that comes meanwhile, from the HDF5 library, which crashes when it
    cannot write: the first error is kept for `hdf5_output` to raise."""

    error: BaseException | None = None

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        try:
            while len(view):
                view = view[super().write(view) :]
        except (OSError, KeyboardInterrupt) as error:
            self.error = self.error or error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except (OSError, KeyboardInterrupt) as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error:
            raise self.error


@contextmanager
def hdf5_output(path: Path | str, force: bool) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """A new empty file, complete or not at all, and a function that raises what the disk refused so far: whoever writes
    much calls it on the way. Errors: OutputError."""
    with atomic_output(path, force) as temporary, _Sink(temporary, "r+") as sink:
        try:
            with h5py.File(sink, "w") as file:
                yield file, sink.check
        except Exception:
            sink.check()  # the library's own complaint about what it could not read back is no cause
            raise
        sink.check()


@contextmanager
def create_hdf5(
    path: Path | str,
    shapes: dict[str, tuple[int, ...]],
    slices: Iterable[tuple[np.ndarray, ...]],
    force: bool,
    real: Sequence[str] = (),
) -> Iterator[h5py.File]:
    """A new file, complete or not at all, that holds slices one by one in complex64 datasets, or float32 for the `real` ones, of the
    given names and shapes, all with the same first axis.

    slices: one array for each dataset at a time, which must fill dataset[i], an axis of length 1 apart. The block adds
    the rest. Errors: OutputError; ValueError for slices of other shapes or numbers.
    """
    (number,) = {shape[0] for shape in shapes.values()}
    with hdf5_output(path, force) as (file, check_disk):
        kind = lambda name: np.float32 if name in real else np.complex64  # noqa: E731
        datasets = [file.create_dataset(name, shape, kind(name)) for name, shape in shapes.items()]
        count = 0
        for count, arrays in enumerate(slices, start=1):
            for dataset, array in zip(datasets, arrays, strict=True):
                if count > number or array.shape not in (dataset.shape[1:], (1, *dataset.shape[1:])):
                    raise ValueError(f"expected {number} slices {dataset.shape[1:]}; slice {count} is {array.shape}")
                dataset[count - 1] = array.reshape(dataset.shape[1:])
            check_disk()
        if count != number:
            raise ValueError(f"expected {number} slices; got {count}")
        yield file


def write_attributes(file: h5py.File, attributes: dict, geometry: Geometry | None) -> None:
    """Store attributes (None is left out) and geometry."""
    for name, value in attributes.items():
        if value is not None:
            file.attrs[name] = value
    if geometry is not None:
        file.attrs["affine"] = np.asarray(geometry.affine, dtype=np.float64)
        for name in GEOMETRY_ATTRIBUTES[1:]:
            file.attrs[name] = getattr(geometry, name)
