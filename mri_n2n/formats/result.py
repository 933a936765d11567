"""Reconstructions as HDF5: `reconstruction` (slice, y, x) float32 magnitude, as in fastMRI's result files, and `image`,
the complex (slice, y, x) or (slice, coil, y, x) it comes from, and `sensitivity_maps` (slice, coil, y, x) if it was
made with them, and `coil_mixing` (coil, the scan's coil) where its coils were mixed. Attributes: note, geometry, and what the writer adds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mri_n2n.acquisition import Geometry
from mri_n2n.formats.hdf5 import (
    GEOMETRY_ATTRIBUTES,
    checked_dataset,
    create_hdf5,
    finite_float32,
    open_hdf5,
    read_geometry,
    scalar_attributes,
    write_attributes,
)

FORMAT = "result-hdf5"
NOTE = "research use only"


def write_result(
    path: Path | str,
    slices: Iterable[tuple[np.ndarray, ...]],
    shapes: dict[str, tuple[int, ...]],
    attributes: dict | None = None,
    geometry: Geometry | None = None,
    force: bool = False,
    coil_mixing: np.ndarray | None = None,
) -> None:
    """Write a result file, complete or not at all.

    shapes: of `image`, (slice, y, x) or (slice, coil, y, x), and, with sensitivity maps, of `sensitivity_maps`.
    slices: one slice of the reconstruction, real, and complex ones of each, taken one after the other.
    coil_mixing: (new, coils), what made the coils of the maps of those of the scan.
    Errors: OutputError; ValueError for arrays that do not fit each other.
    """
    shape = shapes["image"]
    if len(shape) not in (3, 4):
        raise ValueError(f"the image must be (slice, y, x) or (slice, coil, y, x); got {shape}")
    every = {"reconstruction": (shape[0], *shape[-2:]), **shapes}
    with create_hdf5(path, every, slices, force, real=("reconstruction",)) as file:
        if coil_mixing is not None:
            file["coil_mixing"] = np.asarray(coil_mixing, dtype=np.complex64)
        write_attributes(file, {"note": NOTE, **(attributes or {})}, geometry)


def read_header(path: Path | str) -> tuple[dict[str, object], Geometry | None]:
    """(attributes, geometry) of a result file, without its image. Errors: NotFoundError, InputError."""
    path = Path(path)
    with open_hdf5(path) as file:
        attributes = {name: value for name, value in scalar_attributes(file).items() if name not in GEOMETRY_ATTRIBUTES}
        return attributes, read_geometry(file, path)


def read_result(path: Path | str) -> tuple[np.ndarray, dict[str, object], Geometry | None]:
    """(reconstruction (slice, y, x) float32, attributes, geometry) of a file. Errors: NotFoundError, InputError."""
    path = Path(path)
    with open_hdf5(path) as file:
        dataset = checked_dataset(file, path, "reconstruction", (3,), "fiub")
        reconstruction = finite_float32(path, "reconstruction", dataset[()])
    return reconstruction, *read_header(path)
