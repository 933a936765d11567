"""ISMRMRD (MRD) raw data in HDF5, written: readouts along y of the lines that were sampled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.errors import InputError, OptionError
from mri_n2n.files import one_line
from mri_n2n.formats.encoding import read_encoding
from mri_n2n.formats.hdf5 import hdf5_output
from mri_n2n.formats.mrd import HEAD
from mri_n2n.formats.mrd_notes import notes, places


def write_scan(path: Path | str, slices: Iterable[Acquisition], scan: Scan, force: bool) -> None:
    """Write single slices as readouts along y of the lines that were sampled, complete or not at all.

    Errors: OutputError; OptionError for masks that are no lines, since a readout is measured as a whole, for slices
    without any, and for sizes that the format has no numbers for.
    """
    _, coils, y, x = scan.shape
    fields, spacing = ({}, np.ones(3)) if scan.geometry is None else places(scan.geometry, scan.shape)
    header = _xml(scan, spacing, scan.read(0, 1).noise_variance)
    try:
        read_encoding(header, scan.path)
    except InputError as error:
        raise OptionError(f"MRD cannot hold this scan: {error}") from None
    if max(scan.shape) >= 2**16:
        raise OptionError(f"MRD cannot hold {one_line(scan.path)}: (slices, coils, y, x) = {scan.shape} are too many")
    vlen = h5py.vlen_dtype(np.float32)
    dtype = np.dtype([("head", HEAD), ("traj", vlen), ("data", vlen)])
    with hdf5_output(path, force) as (file, check_disk):
        data = file.create_dataset("dataset/data", (0,), dtype, maxshape=(None,), chunks=(64,))
        for number, acquisition in enumerate(slices):
            mask = acquisition.mask[0, 0].numpy()
            if (mask != mask[:1]).any():
                raise OptionError(f"{one_line(scan.path)} is sampled at points; MRD holds readouts, lines along y")
            lines = np.flatnonzero(mask[0])
            if not len(lines):
                raise OptionError(f"slice {number} of {one_line(scan.path)} has no samples; MRD has no empty slices")
            table = np.zeros(len(lines), dtype)
            head = table["head"]
            head["version"], head["number_of_samples"], head["center_sample"] = 1, y, y // 2
            head["available_channels"] = head["active_channels"] = coils
            head["scan_counter"] = len(data) + np.arange(len(lines))
            head["idx"]["kspace_encode_step_1"], head["idx"]["slice"] = lines, number
            for name, place in fields.items():
                head[name] = place[number]
            table["head"] = head
            for row, line in enumerate(lines):
                readout = np.ascontiguousarray(acquisition.kspace[0, :, :, line].numpy(), dtype=np.complex64)
                table[row]["traj"], table[row]["data"] = np.zeros(0, np.float32), readout.view(np.float32).ravel()
            data.resize(len(data) + len(lines), axis=0)
            data[len(data) - len(lines) :] = table
            check_disk()
        file["dataset/xml"] = np.array([header], h5py.string_dtype("ascii"))  # no other can the C library read


def _xml(scan: Scan, spacing: np.ndarray, noise_variance: float | None) -> str:
    """The header; its elements in the order of the format's schema."""
    _, _, y, x = scan.shape
    sizes = f"<matrixSize><x>{y}</x><y>{x}</y><z>1</z></matrixSize>"
    field = "".join(f"<{n}>{mm:.9g}</{n}>" for n, mm in zip("xyz", spacing[[1, 0, 2]] * (y, x, 1), strict=True))
    space = f"{sizes}<fieldOfView_mm>{field}</fieldOfView_mm>"
    limits = f"<minimum>0</minimum><maximum>{x - 1}</maximum><center>{x // 2}</center>"
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        "<experimentalConditions><H1resonanceFrequency_Hz>0</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace>"
        f"<encodingLimits><kspace_encoding_step_1>{limits}</kspace_encoding_step_1></encodingLimits>"
        f"<trajectory>cartesian</trajectory></encoding>{notes(scan, noise_variance)}</ismrmrdHeader>"
    )
