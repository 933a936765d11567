"""A raw multi-coil scan without any reference

`mri-n2n reconstruct` on a raw 8-coil slice (230x180, both axes phase-encoded, 12.4 % of the samples, un-normalised, no
reference; from the SigPy MRI tutorial, BSD 3-Clause, Copyright (c) 2019, mikgroup). Coils are reconstructed one by one with
the bundled weights and combined by root-sum-of-squares; sensitivity maps are not used yet.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mri_n2n.benchmarks.common import table
from mri_n2n.errors import NotFoundError
from mri_n2n.formats import write_scan
from mri_n2n.fourier import ifft2c
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.reconstruction import reconstruct_files
from mri_n2n.report import comparison_figure

NAME = "brain_8ch_cartesian_undersampled"


def run(data: Path | None, output: Path, docs: Path | None, quick: bool) -> str:
    file = data / f"{NAME}.npy" if data and data.is_dir() else data
    if file is None or not file.is_file():
        raise NotFoundError(f"this benchmark needs --data with {NAME}.npy")
    kspace = np.load(file, allow_pickle=False)
    scan = output / f"{NAME}.h5"
    output.mkdir(parents=True, exist_ok=True)
    write_scan(
        scan,
        iter([kspace]),
        (1, *kspace.shape),
        mask=None,
        probability=None,
        reference=None,
        geometry=None,
        attributes={"simulated": False},
        force=True,
    )
    [sidecar] = reconstruct_files([scan], output / "raw-reconstruction", force=True)
    picture = ""
    if docs is not None:
        from mri_n2n.formats import read_reference

        images = read_reference(output / "raw-reconstruction" / scan.name)
        zero_filled = root_sum_of_squares(ifft2c(torch.from_numpy(kspace)[None])).numpy()[0]
        (docs / "images").mkdir(parents=True, exist_ok=True)
        comparison_figure(None, zero_filled, images[0], docs / "images" / "raw.png")
        picture = "\n![zero-filled and reconstruction of the raw scan](images/raw.png)\n"
    rows = [
        [
            sidecar["coils"],
            f"{sidecar['matrix'][0]} x {sidecar['matrix'][1]}",
            f"{sidecar['measured_share']:.1%}",
            sidecar["mask_source"],
            sidecar["seconds"],
        ]
    ]
    return table(["coils", "matrix (y x x)", "samples measured", "mask found from", "seconds"], rows) + picture
