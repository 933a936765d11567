"""DICOM, written: single-frame MR images of a reconstruction, derived from a source series (PS3.3 A.4, MR Image).

Patient, study, frame of reference and acquisition are the source's; the place of every voxel is the scan's own.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import mri_n2n
from mri_n2n.acquisition import MILLIMETRES, Scan
from mri_n2n.errors import InputError
from mri_n2n.files import one_line
from mri_n2n.formats.dicom import MR_IMAGE, OWN, Series, number
from mri_n2n.formats.result import NOTE

if TYPE_CHECKING:
    from pydicom import Dataset

LEVELS = 65535  # of uint16


@dataclass(frozen=True)
class Layout:
    """How slice arrays (slice, y, x) become DICOM planes (rows, columns).

    turn: transpose, flip rows, flip columns, in this order. order: the scan's slices in the order of the files.
    sources: of each file, the header of the series' image that lies nearest.
    positions: (files, 3), the centre of the first pixel, mm in L, P, S. row, column: unit vectors as in `Series`.
    pixel_spacing: mm (between rows, between columns). slice_spacing: mm along the normal. thickness: mm of a slice.
    """

    turn: tuple[bool, bool, bool]
    order: tuple[int, ...]
    sources: tuple[Dataset, ...]
    positions: np.ndarray
    row: np.ndarray
    column: np.ndarray
    pixel_spacing: tuple[float, float]
    slice_spacing: float
    thickness: float | None


def lay_out(scan: Scan, series: Series) -> Layout:
    """Place a scan's slices by its own affine, in the order and view of the series.

    Errors: InputError for a scan without geometry or of a unit that is not known, for
    pixels that are no rectangles, and where the scan's slices are not the series': their normals differ (|cosine| <
    0.999), or a centre lies more than half a slice spacing from all of the series' slices, or outside their pixels.
    """
    geometry, name = scan.image_geometry, one_line(scan.path.name)
    if geometry is None or not (geometry.qform_code or geometry.sform_code):
        raise InputError(
            f"{name} says nothing of where its slices lie (no geometry, or both codes 0); no DICOM is made"
        )
    if geometry.spatial_unit not in MILLIMETRES:
        raise InputError(f"{name} does not say the unit of its geometry; DICOM needs millimetres, and none are assumed")
    low, high = (axis for axis in range(3) if axis != geometry.slice_axis)
    # (x, y, slice, 1) -> mm in R, A, S -> L, P, S
    affine = np.asarray(geometry.affine, dtype=np.float64)[:3, [low, high, geometry.slice_axis, 3]]
    affine = affine * MILLIMETRES[geometry.spatial_unit] * np.array([[-1.0], [-1.0], [1.0]])
    spacing = np.linalg.norm(affine[:, :2], axis=0)
    x_axis, y_axis = (affine[:, :2] / spacing).T
    if abs(x_axis @ y_axis) > 1e-3:
        raise InputError(f"{name}: its affine shears the slices; DICOM has rectangular pixels only")
    slices, (y, x) = scan.shape[0], scan.image_matrix or scan.shape[-2:]
    centres = affine @ [[(x - 1) / 2] * slices, [(y - 1) / 2] * slices, range(slices), [1] * slices]
    nearest = _nearest(np.cross(x_axis, y_axis), centres.T, series, name)
    turn = max(product((False, True), repeat=3), key=lambda turn: _likeness(turn, x_axis, y_axis, series))
    transposed, flip_rows, flip_columns = turn
    size = (x, y) if transposed else (y, x)  # rows, columns
    row, column = (y_axis, x_axis) if transposed else (x_axis, y_axis)
    across, down = spacing[[1, 0]] if transposed else spacing
    row, column = (-row if flip_columns else row), (-column if flip_rows else column)
    positions = centres.T - row * across * (size[1] - 1) / 2 - column * down * (size[0] - 1) / 2
    # In the order of the series' images, and of several that are nearest to one, the way the series goes on the whole.
    along = series.positions @ series.normal
    sense = np.sum((along - along.mean()) * (np.arange(len(along)) - (len(along) - 1) / 2))
    order = np.lexsort((centres.T @ series.normal * (-1 if sense < 0 else 1), nearest))
    slice_spacing = abs(float(affine[:, 2] @ np.cross(row, column)))
    # An affine holds spacing, not thickness: where the spacing is the series', the thickness is too; else it is unknown.
    equal = abs(slice_spacing - series.slice_spacing) < 0.01 * series.slice_spacing
    return Layout(
        turn,
        tuple(order.tolist()),
        tuple(series.headers[i] for i in nearest[order]),
        positions[order],
        row,
        column,
        (float(down), float(across)),
        slice_spacing,
        number(series.headers[0], "SliceThickness") if equal else None,
    )


def _nearest(normal: np.ndarray, centres: np.ndarray, series: Series, name: str) -> np.ndarray:
    """Of each slice, the index of the series' nearest. centres: (slices, 3). Errors: InputError, see `lay_out`."""
    cosine = abs(float(normal @ series.normal)) / np.linalg.norm(normal)
    if cosine < 0.999:
        degrees = np.degrees(np.arccos(min(cosine, 1)))
        raise InputError(f"the slices of {name} and of the DICOM series are {degrees:.1f} degrees apart; give its own")
    distance = np.abs((centres @ series.normal)[:, None] - (series.positions @ series.normal)[None])
    nearest = distance.argmin(axis=1)
    for slice_, (centre, source) in enumerate(zip(centres, nearest, strict=True), start=1):
        away = distance[slice_ - 1, source]
        if away > 0.5 * series.slice_spacing * (1 + 1e-6):
            raise InputError(
                f"slice {slice_} of {name} lies {away:.1f} mm from the nearest of the DICOM series, whose slices are "
                f"{series.slice_spacing:.4g} mm apart; give the series of this scan"
            )
        from_first = centre - series.positions[source]
        place = from_first @ series.column / series.pixel_spacing[0], from_first @ series.row / series.pixel_spacing[1]
        if not all(-0.5 <= at <= size - 0.5 for at, size in zip(place, series.size, strict=True)):
            raise InputError(
                f"the centre of slice {slice_} of {name} lies outside the images of the DICOM series; give its own"
            )
    return nearest


def _likeness(turn: tuple[bool, bool, bool], x_axis: np.ndarray, y_axis: np.ndarray, series: Series) -> float:
    """How near rows and columns come to the series'; 2 is the same."""
    transposed, flip_rows, flip_columns = turn
    row, column = (y_axis, x_axis) if transposed else (x_axis, y_axis)
    return float((-1 if flip_columns else 1) * (row @ series.row) + (-1 if flip_rows else 1) * (column @ series.column))


def write_series(folder: Path, volume: np.ndarray, layout: Layout, *, simulated: bool | None) -> None:
    """Write magnitudes (slice, y, x) as 0001.dcm, 0002.dcm ... of a new series into `folder`, which is made.

    Pixels are uint16: intensity = RescaleSlope x stored value, one slope for all, so that the largest intensity is
    65535; rounding is at most half a slope. Errors: OSError of the disk.
    """
    from pydicom.uid import generate_uid
    from pydicom.valuerep import format_number_as_ds

    folder.mkdir()
    slope = format_number_as_ds(float(volume.max()) / LEVELS or 1.0)
    window = float(np.percentile(volume, 99.5)) or float(volume.max()) or 1.0
    series_uid = generate_uid(prefix=None)
    with warnings.catch_warnings():  # of pydicom, about values of the source that do not conform: they show these
        warnings.simplefilter("ignore")
        for file, index in enumerate(layout.order, start=1):
            image = _derived(layout, file, simulated)
            image.SeriesInstanceUID = series_uid
            image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "0", slope, "US"  # US: unspecified
            image.WindowCenter, image.WindowWidth = format_number_as_ds(window / 2), format_number_as_ds(window)
            image.VOILUTFunction = "LINEAR_EXACT"  # LINEAR wants widths of 1 and more
            pixels = turned(np.rint(volume[index].astype(np.float64) / float(slope)).astype("<u2"), layout.turn)
            image.Rows, image.Columns = pixels.shape
            image.PixelData = np.ascontiguousarray(pixels).tobytes()
            image.save_as(folder / f"{file:04}.dcm", enforce_file_format=True)


def turned(image: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """An array (y, x) as a plane (rows, columns); see `Layout`."""
    transposed, flip_rows, flip_columns = turn
    image = image.T if transposed else image
    return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _derived(layout: Layout, file: int, simulated: bool | None) -> Dataset:
    """All of file number `file` (from 1) but its series and pixels."""
    from pydicom import Dataset
    from pydicom.datadict import keyword_for_tag
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    from pydicom.valuerep import format_number_as_ds

    source = layout.sources[file - 1]
    image = Dataset({tag: copy.deepcopy(source[tag]) for tag in source.keys() if keyword_for_tag(tag) not in OWN})
    image.ensure_file_meta()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = MR_IMAGE, generate_uid(prefix=None)
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    now = _now(source)
    for what in ("InstanceCreation", "Series", "Content"):
        setattr(image, f"{what}Date", now.strftime("%Y%m%d"))
        setattr(image, f"{what}Time", now.strftime("%H%M%S"))
    said = f"Reconstructed by mri-n2n {mri_n2n.__version__} with a neural network; {NOTE}"
    image.DerivationDescription = f"{said}; simulated k-space" if simulated else said
    image.SeriesDescription = f"mri-n2n, {NOTE}"
    image.SeriesNumber = 1000 + int(number(source, "SeriesNumber") or 0)  # so that viewers list it apart
    image.InstanceNumber = file
    image.SourceImageSequence = [_reference(source)]
    image.ContributingEquipmentSequence = [*image.get("ContributingEquipmentSequence", []), _equipment()]
    exact = lambda values: [format_number_as_ds(float(value)) for value in values]  # noqa: E731
    position = layout.positions[file - 1]
    image.ImagePositionPatient = exact(position)
    image.ImageOrientationPatient = exact([*layout.row, *layout.column])
    image.PixelSpacing = exact(layout.pixel_spacing)
    (image.SpacingBetweenSlices,) = exact([layout.slice_spacing])
    (image.SliceLocation,) = exact([position @ np.cross(layout.row, layout.column)])
    image.SliceThickness = None if layout.thickness is None else format_number_as_ds(layout.thickness)
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    return image


def _reference(source: Dataset) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    return item


def _equipment() -> Dataset:
    """This software, beside the scanner, which remains the equipment of the series."""
    from pydicom import Dataset

    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions = "mri-n2n", "mri-n2n", mri_n2n.__version__
    return item


def _code(value: str, meaning: str) -> Dataset:
    from pydicom import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _now(source: Dataset) -> datetime:
    """The time, in the zone that the header says its times are in."""
    offset = str(source.get("TimezoneOffsetFromUTC") or "").strip()
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdecimal():
        minutes = 60 * int(offset[1:3]) + int(offset[3:])
        if minutes < 24 * 60:
            return datetime.now(timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)))
    return datetime.now()
