"""A volume of images as a fully sampled scan of one coil: what is done to scans can be done to it."""

from __future__ import annotations

import numpy as np
import torch

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.formats import nifti
from mri_n2n.formats.complex_nifti import ImageFiles, read_images
from mri_n2n.fourier import fft2c


def open_volume_as_scan(files: ImageFiles, axis: int = 2) -> Scan:
    """The scan whose image is the volume, kept in memory. Errors: those of `read_images`."""
    array, geometry = read_images(files, axis=axis)

    def read(start: int, stop: int) -> Acquisition:
        images = torch.from_numpy(np.ascontiguousarray(array[start:stop]))[:, None].to(torch.complex64)
        return Acquisition(fft2c(images), torch.ones(1, 1, *array.shape[1:]))

    slices, y, x = array.shape
    return Scan(
        path=files.first,
        format=nifti.FORMAT,
        shape=(slices, 1, y, x),
        read=read,
        geometry=geometry,
        mask_source="a volume of images, taken as fully sampled",
        simulated=None,
        has_reference=False,
        more=tuple(part for part in (files.phase, files.imaginary) if part),
        signed=not np.iscomplexobj(array) and bool(array.min() < -nifti.UNDERSHOOT * array.max()),
    )
