"""What `reconstruct` writes: which files a scan's results are, whether they may be written, and the files beside NAME.h5."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import scipy
import torch

import mri_n2n
from mri_n2n.acquisition import Scan
from mri_n2n.bids import fields, make_dataset, place
from mri_n2n.errors import OutputError
from mri_n2n.files import restore_folder, sha256_of, stem
from mri_n2n.formats import write_nifti
from mri_n2n.formats.derived_dicom import Layout, write_series
from mri_n2n.formats.fastmri_hdf5 import read_scan_reference
from mri_n2n.page.build import page_html
from mri_n2n.page.reconstructed import Given, page_of_reconstruction
from mri_n2n.report import comparison_figure
from mri_n2n.resample import crop_or_pad

BARS = "uncertainty"  # the name of the volume of error bars


@dataclass(frozen=True)
class Target:
    """Where the results of one scan go: `directory`/`name` and a suffix each; `root` is the output directory.

    more: names of further volumes, NAME.more.nii.gz. report: also NAME.html, see `page`."""

    directory: Path
    name: str
    root: Path
    bids: bool = False
    more: tuple[str, ...] = ()
    report: bool = False

    @property
    def label(self) -> str:
        """The name, from the output directory on."""
        return (self.directory.relative_to(self.root) / self.name).as_posix()

    @property
    def h5(self) -> Path:
        return self.directory / f"{self.name}.h5"

    @property
    def nifti(self) -> Path:
        return self.directory / f"{self.name}.nii.gz"

    @property
    def picture(self) -> Path:
        return self.directory / f"{self.name}.png"

    @property
    def sidecar(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def dicom(self) -> Path:
        return self.directory / f"{self.name}.dicom"

    @property
    def page(self) -> Path:
        return self.directory / f"{self.name}.html"

    @property
    def files(self) -> tuple[Path, ...]:
        page = (self.page,) if self.report else ()
        return self.h5, self.nifti, self.picture, *page, self.sidecar, *map(self.further, self.more)

    def further(self, name: str) -> Path:
        return self.directory / f"{self.name}.{name}.nii.gz"


def target_of(scan: Path, output: Path, *, bids: bool) -> Target:
    """Errors: OptionError with `bids` for a name that is not BIDS's."""
    folder, name = place(stem(scan)) if bids else (Path(), stem(scan))
    return Target(output / folder, name, output, bids)


def check_target(target: Target, inputs: Sequence[Path], force: bool, *, dicom: bool) -> None:
    """OutputError when the output lies in what is no directory, a file exists and not `force`, is a directory, or is one of the inputs; or where with `force` the
    folder of DICOM files to be replaced holds anything else."""
    first = next(folder for folder in (target.directory, *target.directory.absolute().parents) if folder.exists())
    if not first.is_dir():
        raise OutputError(f"cannot write into {target.directory}: {first} is no directory")
    if not os.access(first, os.W_OK):
        raise OutputError(f"cannot write into {target.directory}: {first} is not writable")
    for file in target.files:
        if file.is_dir():
            raise OutputError(f"{file} is a directory; choose another -o")
        if file.exists() and any(path.exists() and file.samefile(path) for path in inputs):
            raise OutputError(f"{file} is an input itself; choose another -o")
        if os.path.lexists(file) and not force:
            raise OutputError(f"{file} exists; give --force to replace it, or another -o")
    if (bars := target.further(BARS)) not in target.files and os.path.lexists(bars):
        raise OutputError(f"{bars} is of an earlier result; remove it, give --uncertainty to replace it, or another -o")
    if not target.report and os.path.lexists(target.page):
        raise OutputError(f"{target.page} may be of an earlier result; remove it, or choose another -o")
    folder = target.dicom
    restore_folder(folder)
    if not os.path.lexists(folder):
        return
    if not dicom:
        raise OutputError(f"{folder} is of an earlier result; remove it, give --dicom to replace it, or another -o")
    if not force:
        raise OutputError(f"{folder} exists; give --force to replace it, or another -o")
    if folder.is_symlink() or not folder.is_dir():
        raise OutputError(f"{folder} is no folder of DICOM files; choose another -o")
    if any(path.exists() and folder.samefile(path.parent) for path in inputs):
        raise OutputError(f"{folder} holds an input; choose another -o")
    if not all(re.fullmatch(r"[0-9]{4,}\.dcm", file.name) and file.is_file() for file in folder.iterdir()):
        raise OutputError(f"{folder} holds other files than an earlier result's; move them, or choose another -o")


def result_attributes(scan: Scan) -> dict:
    """The attributes of NAME.h5."""
    simulated = {} if scan.simulated is None else {"simulated": scan.simulated}
    return {"software": f"mri-n2n {mri_n2n.__version__}"} | simulated


def write_beside(
    folder: Path,
    target: Target,
    scan: Scan,
    zero_filled: np.ndarray,
    given: Given | None,
    layout: Layout | None,
    facts: dict,
    redo: dict,
    volumes: dict[str, np.ndarray],
    started: float,
) -> dict:
    """Write NIfTI, picture, DICOM where there is a `layout`, page where it is asked for, and sidecar into `folder`, where NAME.h5
    is complete.

    volumes: further ones (slice, y, x), by their names in `target.more`.
    zero_filled: (y, x), the middle slice.
    given: what a page shows beside it, None without one.
    facts: what the sidecar says of this reconstruction beside what the scan says itself. redo: what it says of how to make it
    again, beside the files it was made of.
    started: when it began, on the clock of `time.monotonic`. Returns the sidecar.
    """
    here = replace(target, directory=folder)
    slices, coils, y, x = scan.shape
    with h5py.File(here.h5) as file:  # slice by slice, but for those who look at the whole volume
        stored = file["reconstruction"]
        write_nifti(here.nifti, stored, scan.image_geometry, simulated=bool(scan.simulated))
        middle, image_matrix = (zero_filled, stored[slices // 2]), list(stored.shape[1:])
        reconstruction = None if layout is given is None else stored[()]
    reference = read_scan_reference(scan.path, slices // 2) if scan.has_reference else None
    if reference is not None and reference.shape != zero_filled.shape:  # fastMRI's references lack the oversampling
        middle = tuple(crop_or_pad(torch.from_numpy(image), *reference.shape).numpy() for image in middle)
    notes = ["simulated k-space"] if scan.simulated else []
    notes += ["see the warnings in its .json"] if facts["warnings"] else []
    given_as = "noisy" if "denoise" in facts else "zero-filled"
    comparison_figure(
        reference, *middle, here.picture, geometry=scan.image_geometry, note=" | ".join(notes), given=given_as
    )
    written = [here.h5, here.nifti]
    for name, volume in volumes.items():
        write_nifti(here.further(name), volume, scan.image_geometry, simulated=bool(scan.simulated))
        written.append(here.further(name))
    if layout is not None:
        write_series(here.dicom, reconstruction, layout, simulated=scan.simulated)
        written += sorted(here.dicom.iterdir())
    sidecar = fields(scan.path.name, scan.simulated) if target.bids else {}
    sidecar |= {
        "note": "research use only",
        "software": {
            "mri-n2n": mri_n2n.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "input": {
            "name": scan.path.name,
            "sha256": sha256_of(scan.path),
            "format": scan.format,
            "simulated": scan.simulated,
        },
        "output": target.label,
        "output_sha256": {file.relative_to(folder).as_posix(): sha256_of(file) for file in written},
        "slices": slices,
        "coils": coils,
        "noise_whitened": scan.noise_covariance is not None,
        "matrix": [y, x],
        "image_matrix": image_matrix,
        "intensity": "the input's own scale",
        "geometry": "unknown: the input has none" if scan.geometry is None else "as the input's",
        "mask_source": scan.mask_source,
    }
    sidecar |= facts
    files = [{"name": path.name, "sha256": sha256_of(path)} for path in (scan.path, *scan.more)]
    sidecar["redo"] = redo | {"files": files}
    if given is not None:
        page = page_of_reconstruction(
            stem(scan.path), sidecar, reconstruction, given, scan.image_geometry, volumes.get(BARS)
        )
        here.page.write_text(page_html(page), encoding="utf-8")
        sidecar["output_sha256"][here.page.name] = sha256_of(here.page)
    sidecar["seconds"] = round(time.monotonic() - started, 2)
    here.sidecar.write_text(json.dumps(sidecar, indent=2) + "\n")
    if target.bids:
        make_dataset(target.root)
    return sidecar
