"""DICOM series for tests, made from the MR image that pydicom brings along; nothing is downloaded."""

from pathlib import Path

import numpy as np
import pydicom
import torch
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from mri_n2n.acquisition import Geometry
from mri_n2n.checkpoint import build_network, save_tensors
from mri_n2n.formats import write_scan
from mri_n2n.fourier import fft2c

# Oblique: a rotation about two axes. Columns: the directions of row, column and normal in L, P, S.
A, B = 0.4, -0.3
ROTATION = np.array([[np.cos(A), -np.sin(A), 0], [np.sin(A), np.cos(A), 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, np.cos(B), -np.sin(B)], [0, np.sin(B), np.cos(B)]]
)
ORIGIN = np.array([-31.0, 12.5, 40.25])


def mr_image() -> pydicom.Dataset:
    return pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))


def write_series(
    folder: Path,
    *,
    slices: int = 4,
    rotation: np.ndarray = ROTATION,
    origin: np.ndarray = ORIGIN,
    pixel_spacing: tuple[float, float] = (1.25, 0.75),
    slice_spacing: float = 3.5,
    size: tuple[int, int] = (18, 22),
    numbers: list[int] | None = None,
    change=lambda image, number: None,
) -> Path:
    """Write slices of one series, each `slice_spacing` mm further along the normal.

    pixel_spacing: mm (between rows, between columns). size: (rows, columns). numbers: InstanceNumber of each slice.
    change: called with each data set and its place, from 0, before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, place = generate_uid(), mr_image()
    study, frame = place.StudyInstanceUID, place.FrameOfReferenceUID
    for number in range(slices):
        image = mr_image()
        image.StudyInstanceUID, image.FrameOfReferenceUID, image.SeriesInstanceUID = study, frame, series
        image.SOPInstanceUID = generate_uid()
        image.InstanceNumber = number + 1 if numbers is None else numbers[number]
        image.ImageOrientationPatient = [f"{value:.12f}" for value in (*rotation[:, 0], *rotation[:, 1])]
        image.ImagePositionPatient = [f"{value:.9f}" for value in origin + number * slice_spacing * rotation[:, 2]]
        image.PixelSpacing = list(pixel_spacing)
        image.SliceThickness, image.SpacingBetweenSlices = 3.0, slice_spacing
        image.Rows, image.Columns = size
        image.PixelData = np.full(size, 100 * number, dtype="<i2").tobytes()
        image.PatientBirthDate, image.AccessionNumber = "19700101", "ACC-4711"
        image.BurnedInAnnotation, image.LossyImageCompression = "NO", "00"
        block = image.private_block(0x0029, "SOMEBODY'S NOTES", create=True)
        block.add_new(1, "LO", "a private note")
        change(image, number)
        image.save_as(folder / f"IM{number:03}", enforce_file_format=True)
    return folder


def affine_ras(
    rotation: np.ndarray = ROTATION,
    origin: np.ndarray = ORIGIN,
    pixel_spacing: tuple[float, float] = (1.25, 0.75),
    slice_spacing: float = 3.5,
) -> np.ndarray:
    """Voxel (column, row, slice) of such a series -> mm in R, A, S."""
    affine = np.eye(4)
    affine[:3, :3] = rotation * [pixel_spacing[1], pixel_spacing[0], slice_spacing]
    affine[:3, 3] = origin
    return np.diag([-1, -1, 1, 1]) @ affine


def read_slices(volume: np.ndarray, axis: int) -> np.ndarray:
    """The slices (slice, y, x) of a volume array: y is the higher, x the lower of the other axes."""
    low, high = (a for a in range(3) if a != axis)
    return np.ascontiguousarray(volume.transpose(axis, high, low))


def write_scan_at(
    path: Path, volume: np.ndarray, affine: np.ndarray, *, axis: int = 2, unit: str = "mm", codes=(1, 1), simulated=True
) -> Path:
    """A fully sampled scan of a volume array (i, j, k) with slices along `axis`: its image is the volume."""
    slices = read_slices(volume, axis).astype(np.complex64)
    kspace = fft2c(torch.from_numpy(slices)).numpy()[:, None]
    geometry = Geometry(tuple(map(tuple, affine.tolist())), axis, *codes, unit)
    write_scan(
        path, iter(kspace), kspace.shape, mask=np.ones(kspace.shape[-2:], np.float32), geometry=geometry,
        attributes={"simulated": simulated},
    )  # fmt: skip
    return path


def exact_weights(path: Path) -> Path:
    """Weights whose image of fully sampled k-space is its Fourier transform: hard data consistency comes last."""
    options = {"cascades": 1, "channels": 8, "levels": 2}
    state = build_network("unrolled", options).state_dict()
    save_tensors(path, state, {"network": "unrolled", "network_options": options})
    return path


def read_voxels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) places in R, A, S millimetres and (n,) intensities of all pixels, by PS3.3 C.7.6.2.1.1 and C.11.1."""
    places, values = [], []
    for path in sorted(folder.iterdir()):
        image = pydicom.dcmread(path)
        row, column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = (float(value) for value in image.PixelSpacing)
        r, c = (index.ravel()[:, None] for index in np.indices((image.Rows, image.Columns)))
        place = np.array(image.ImagePositionPatient, float) + row * between_columns * c + column * between_rows * r
        places.append(place * [-1, -1, 1])
        values.append(image.pixel_array.ravel() * float(image.RescaleSlope) + float(image.RescaleIntercept))
    return np.concatenate(places), np.concatenate(values)
