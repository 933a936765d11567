"""A raw multi-coil scan without any reference

`mri-n2n reconstruct` on a raw 8-coil slice (230x180, both axes phase-encoded, 12.4 % of the samples, un-normalised, no
reference; from the SigPy MRI tutorial, BSD 3-Clause, Copyright (c) 2019, mikgroup), with the bundled weights and sensitivity
maps from the scan's own centre; beside it BART `pics -e -S -i 100 -R W:3:0:0.005` (wavelets) with the same maps.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import h5py
import numpy as np

from mri_n2n.benchmarks.common import Setting, table
from mri_n2n.errors import NotFoundError
from mri_n2n.formats import cfl, open_scan, read_reference
from mri_n2n.fourier import ifft2c
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.reconstruction import reconstruct_files
from mri_n2n.report import montage

NAME = "brain_8ch_cartesian_undersampled"


def bart_pics(kspace: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Magnitude (y, x) of BART's wavelet reconstruction of one slice; kspace and maps (coils, y, x)."""
    if shutil.which("bart") is None:
        raise NotFoundError("this benchmark compares with BART; install it (Debian: apt-get install bart)")
    shape = (1, *kspace.shape)
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("kspace", kspace), ("maps", maps)):
            cfl.write_scan(Path(folder) / f"{name}.cfl", iter([array]), shape, force=False)
        command = ["bart", "pics", "-e", "-S", "-i", "100", "-R", "W:3:0:0.005", "kspace", "maps", "image"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return np.abs(open_scan(Path(folder) / "image.cfl").read(0, 1).kspace[0, 0].numpy())


def run(setting: Setting) -> str:
    data, docs = setting.data, setting.docs
    file = data / f"{NAME}.npy" if data and data.is_dir() else data
    if file is None or not file.is_file():
        raise NotFoundError(f"this benchmark needs --data with {NAME}.npy")
    results = setting.output / "raw-reconstruction"
    [sidecar] = reconstruct_files([file], results, format="npy-coils", force=True)
    picture = ""
    if docs is not None:
        kspace = open_scan(file, "npy-coils").read(0, 1).kspace
        with h5py.File(results / f"{file.stem}.h5") as result:
            maps = result["sensitivity_maps"][0]
        images = {
            "zero-filled": root_sum_of_squares(ifft2c(kspace))[0].numpy(),
            "bundled weights": read_reference(results / f"{file.stem}.h5")[0],
            "BART wavelets": bart_pics(kspace[0].numpy(), maps),
        }
        panels = [(name, image, (0.0, float(np.percentile(image, 99.5)))) for name, image in images.items()]
        montage(panels, docs / "images" / "raw.png", columns=3)
        picture = "\n![zero-filled, reconstruction and BART's of the raw scan](images/raw.png)\n"
    size = f"{sidecar['matrix'][0]} x {sidecar['matrix'][1]}"
    rows = [[sidecar["coils"], size, f"{sidecar['measured_share']:.1%}", sidecar["mask_source"], sidecar["seconds"]]]
    header = ["coils", "matrix (y x x)", "samples measured", "mask found from", "seconds"]
    return table(header, rows) + picture
