"""Raw scans from one format to another: without loss, or not at all unless told to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mri_n2n.acquisition import Scan
from mri_n2n.errors import OptionError, OutputError
from mri_n2n.formats import cfl, mrd_writing, numpy_array, open_scan, read_reference, write_scan

SIMULATED = "word on whether it is simulated"
CROPPED, PADDED = "matrix of the image without oversampling", "header's word on padding"
NAMED = "acquisition and acceleration by name"
# What each format has room for, by the suffix of its files.
ROOM = {
    ".h5": {"geometry", "mask", "probability", "reference", "noise variance", SIMULATED, CROPPED, PADDED, NAMED},
    ".cfl": set(),
    ".npy": set(),
    ".mrd": {"geometry", "mask", "noise variance", SIMULATED},
}


def convert(
    source: Path | str,
    target: Path | str,
    *,
    format: str | None = None,
    repetition: int | None = None,
    lossy: bool = False,
    force: bool = False,
) -> list[str]:
    """Write a raw scan as fastMRI's HDF5 (.h5), BART's (.cfl and .hdr), NumPy's (.npy) or ISMRMRD's (.mrd).

    Returns what was left out, which is nothing unless `lossy`. Errors: NotFoundError, InputError, OutputError,
    OptionError for a suffix that names no format, and for what the target has no room for.
    """
    target = Path(target)
    if target.suffix not in ROOM:
        raise OptionError(f"the suffix says the format: {', '.join(ROOM)}; got {target.name!r}")
    scan = open_scan(source, format, repetition)
    pair = lambda path: {path, *(path.with_suffix(suffix) for suffix in (".cfl", ".hdr"))}  # noqa: E731
    inputs = pair(scan.path) if scan.format == cfl.FORMAT else {scan.path}
    outputs = pair(target) if target.suffix == ".cfl" else {target}
    if any(a.exists() and b.exists() and a.samefile(b) for a in inputs for b in outputs):
        raise OutputError(f"{target} is the input itself; choose another name")
    lost = sorted(what(scan, repetition) - ROOM[target.suffix])
    if lost and not lossy:
        raise OptionError(f"{target.suffix} files have no room for: {', '.join(lost)}; give --lossy to leave it out")
    slices = (scan.read(i, i + 1) for i in range(scan.shape[0]))
    kspace = (one.kspace[0].numpy() for one in slices)
    if target.suffix == ".cfl":
        cfl.write_scan(target, kspace, scan.shape, force)
    elif target.suffix == ".npy":
        numpy_array.write_scan(target, kspace, scan.shape, force)
    elif target.suffix == ".mrd":
        mrd_writing.write_scan(target, slices, scan, force)
    else:
        planes = {name: plane(scan, name) for name in ("mask", "probability")}
        first = scan.read(0, 1)
        attributes = {name: getattr(scan, name) for name in ("simulated", "acquisition", "acceleration")}
        attributes["noise_variance"] = first.noise_variance
        reference = read_reference(scan.path) if scan.has_reference else None
        write_scan(target, kspace, scan.shape, **planes, reference=reference, geometry=scan.geometry,
                   image_matrix=scan.image_matrix, acquired_columns=scan.acquired_columns, attributes=attributes, force=force)  # fmt: skip
    return lost


def what(scan: Scan, repetition: int | None) -> set[str]:
    """What a scan holds beside its samples."""
    first = scan.read(0, 1)
    held = {
        "geometry": scan.geometry is not None,
        "mask": scan.mask_source == "stored",
        "probability": first.probability is not None,
        "reference": scan.has_reference,
        "noise variance": first.noise_variance is not None,
        "noise covariance": scan.noise_covariance is not None,
        SIMULATED: scan.simulated is not None,
        CROPPED: scan.image_matrix is not None,
        PADDED: scan.acquired_columns is not None,
        NAMED: scan.acquisition is not None or scan.acceleration is not None,
        f"all of {scan.repetitions} repetitions (--repetition chooses one, else their mean is written)": scan.repetitions
        > 1
        and repetition is None,
    }
    return {name for name, is_held in held.items() if is_held}


def plane(scan: Scan, name: str) -> np.ndarray | None:
    """The mask or probability of a scan, (y, x), or (slices, y, x) where slices differ."""
    values = [getattr(scan.read(i, i + 1), name) for i in range(scan.shape[0])]
    if values[0] is None:
        return None
    stacked = np.stack([value[0, 0].numpy() for value in values])
    return stacked[0] if (stacked == stacked[0]).all() else stacked
