"""DICOM, read: the headers of one series of single-frame MR images, which images derived from it take over.

Terms and units are those of PS3.3 C.7.6.2 (image plane) and C.8.3 (MR image): patient coordinates L, P, S in mm.
pydicom is imported when it is needed: it is an optional dependency.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mri_n2n.errors import InputError, NotFoundError, OptionError
from mri_n2n.files import check_readable, one_line

if TYPE_CHECKING:
    from pydicom import Dataset

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = tuple(f"{MR_IMAGE}.{number}" for number in (1, 3, 4))  # multi-frame: enhanced, colour, legacy converted
DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR: a list of files, no image
LARGE = 2**20  # bytes; larger values stay in the file, and none of them is needed
REQUIRED = ("StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
# Kept of a header: these groups (patient; trial and de-identification; acquisition) ...
KEPT_GROUPS = (0x0010, 0x0012, 0x0018)
# ... without what tells of the source's own sampling and matrix,
DROPPED = ("AcquisitionMatrix", "ReconstructionDiameter", "PercentSampling",
           "PercentPhaseFieldOfView")  # fmt: skip
# and these: study, equipment, frame of reference, and what must go on being said of the pixels. All else is left out.
KEPT = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime",
    "StudyDescription", "AccessionNumber", "IssuerOfAccessionNumberSequence", "ReferringPhysicianName",
    "ReferringPhysicianIdentificationSequence", "ConsultingPhysicianName", "PhysiciansOfRecord",
    "PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy", "ProcedureCodeSequence",
    "ReferencedStudySequence", "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "AcquisitionDate",
    "AcquisitionTime", "AcquisitionDateTime", "AcquisitionNumber", "Modality", "Manufacturer", "ManufacturerModelName",
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "OperatorsName",
    "PerformingPhysicianName", "AnatomicRegionSequence", "Laterality", "FrameOfReferenceUID", "PositionReferenceIndicator",
    "SeriesNumber", "BurnedInAnnotation", "RecognizableVisualFeatures", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)  # fmt: skip
# The place of an image, which a derived one gets anew, and what tells images apart.
PLACE = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
OWN = (*PLACE, "Rows", "Columns", "NumberOfFrames", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "InstanceNumber",
       "SpacingBetweenSlices", "SliceThickness")  # fmt: skip


@dataclass(frozen=True)
class Series:
    """The headers of a series and where its slices lie.

    headers: data sets without pixels, in the order of InstanceNumber, or along the normal where that is missing.
    positions: (slices, 3), the centre of the first pixel of each, mm in L, P, S.
    row, column: (3,) unit vectors, in which the column and the row index grow. normal: row x column.
    pixel_spacing: mm (between rows, between columns). size: (rows, columns). slice_spacing: mm along the normal.
    """

    files: tuple[Path, ...]
    headers: tuple[Dataset, ...]
    positions: np.ndarray
    row: np.ndarray
    column: np.ndarray
    normal: np.ndarray
    pixel_spacing: tuple[float, float]
    size: tuple[int, int]
    slice_spacing: float


def require_pydicom() -> None:
    """Errors: OptionError with the command that installs it."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise OptionError("DICOM needs the package pydicom: python -m pip install 'pydicom>=3'") from None


def read_series(folder: Path | str) -> Series:
    """The one series of single-frame MR images among the files of a folder (not of folders in it); no pixel is read.

    Files that are no DICOM (no DICM at byte 128) and a DICOMDIR are passed over. Errors: OptionError without pydicom;
    NotFoundError; InputError for anything but one MR series, multi-frame images, deflated files, damaged headers,
    and a geometry that is missing or inconsistent. No error names what identifies a patient.
    """
    require_pydicom()
    folder = Path(folder)
    if not folder.exists():
        raise NotFoundError(f"no directory {one_line(folder)}")
    if not folder.is_dir():
        raise InputError(f"{one_line(folder)} is no directory; expected one with the files of a DICOM series")
    found = [(path, header) for path in sorted(folder.iterdir()) if (header := _header(path)) is not None]
    if not found:
        raise NotFoundError(f"{one_line(folder)} holds no DICOM images")
    kinds = Counter((header.get("SeriesInstanceUID"), str(header.get("Modality"))) for _, header in found)
    if len(kinds) > 1 or next(iter(kinds))[1] != "MR":
        counts = ", ".join(f"{one_line(kind, 16)} of {n} files" for (_, kind), n in kinds.items())
        raise InputError(
            f"{one_line(folder)} holds {len(kinds)} DICOM series ({one_line(counts)}); expected one, of MR"
        )
    for path, header in found:
        _check_kind(path, header)
    return _located(folder, *zip(*found, strict=True))


def _header(path: Path) -> Dataset | None:
    """The header of a DICOM image, None for any other file."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    if not path.is_file():
        return None
    with open(check_readable(path), "rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
    try:
        with warnings.catch_warnings():  # of pydicom, about values that do not conform: they show these
            warnings.simplefilter("ignore")
            meta = read_file_meta_info(path)
            syntax, stored = meta.get("TransferSyntaxUID"), meta.get("MediaStorageSOPClassUID")
            if syntax is not None and "Deflate" in syntax.name:
                raise InputError(f"{one_line(path)} is deflated; a small file could fill the memory, inflate it first")
            if stored == DIRECTORY:
                return None
            return _kept(dcmread(path, stop_before_pixels=True, defer_size=LARGE))
    except InputError:
        raise
    except Exception as error:  # pydicom raises errors of every kind; their texts may hold what identifies a patient
        raise InputError(f"{one_line(path)} is damaged DICOM ({type(error).__name__})") from None


def _kept(header: Dataset) -> Dataset:
    """What is needed of a header, without private elements, every value decoded."""
    from pydicom import Dataset
    from pydicom.datadict import tag_for_keyword

    names, dropped = ({tag_for_keyword(name) for name in listed} for listed in ((*KEPT, *OWN), DROPPED))
    kept = Dataset()
    for tag in header.keys():
        if tag in names or (tag.group in KEPT_GROUPS and tag.element and tag not in dropped):  # 0: a length
            kept[tag] = header[tag]
    kept.remove_private_tags()  # inside of sequences too
    for _ in kept.iterall():  # pydicom decodes a value when it is first looked at
        pass
    return kept


def number(header: Dataset, name: str) -> float | None:
    """A value that should be one number; None when it is none."""
    value = header.get(name)
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def _check_kind(path: Path, header: Dataset) -> None:
    kind = header.get("SOPClassUID")
    if kind in ENHANCED or str(header.get("NumberOfFrames") or 1) != "1":
        raise InputError(f"{one_line(path)} is multi-frame (enhanced) DICOM; only single-frame MR images are read")
    if kind != MR_IMAGE:
        raise InputError(f"{one_line(path)} is {one_line(getattr(kind, 'name', kind), 60)}; expected MR Image Storage")


def _located(folder: Path, files: tuple[Path, ...], headers: tuple[Dataset, ...]) -> Series:
    """The series, its geometry checked."""
    places = [_place(path, header) for path, header in zip(files, headers, strict=True)]
    orientations, positions, spacings, sizes = (np.array(values, dtype=float) for values in zip(*places, strict=True))

    def same(values: np.ndarray, tolerance: float) -> bool:
        return np.allclose(values, values[0], rtol=0, atol=tolerance)

    differing = {
        "ImageOrientationPatient": not same(orientations, 1e-3),
        "PixelSpacing": not same(spacings, 1e-3 * spacings.min()),
        "Rows or Columns": not same(sizes, 0),
    }
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        differing[name] = len({str(header.get(name)) for header in headers}) > 1
    if any(differing.values()):
        names = ", ".join(name for name, differs in differing.items() if differs)
        raise InputError(f"the slices of the series in {one_line(folder)} differ in {names}; expected one stack")
    if len({header.SOPInstanceUID for header in headers}) < len(headers):
        raise InputError(f"{one_line(folder)} holds several files of one SOPInstanceUID; expected each image once")
    row, column = orientations[0, :3], orientations[0, 3:]
    normal = np.cross(row, column)
    along = positions @ normal
    spacing = _slice_spacing(folder, along, headers[0])
    numbers = [number(header, "InstanceNumber") for header in headers]
    order = np.argsort(along if None in numbers or len(set(numbers)) < len(numbers) else numbers)
    pick = lambda values: tuple(values[i] for i in order)  # noqa: E731
    (rows, columns), pixel = sizes[0].astype(int).tolist(), spacings[0].tolist()
    return Series(
        pick(files), pick(headers), positions[order], row, column, normal, tuple(pixel), (rows, columns), spacing
    )


def _place(path: Path, header: Dataset) -> tuple:
    """(orientation, position, spacing, size) of a slice."""
    missing = [name for name in (*PLACE, *REQUIRED, "Rows", "Columns") if not header.get(name)]
    if missing:
        raise InputError(f"{one_line(path)} lacks {', '.join(missing)}; its slices cannot be placed")
    try:
        orientation, position, spacing = (np.array([float(v) for v in header.get(name)]) for name in PLACE)
        size = int(header.Rows), int(header.Columns)
    except (TypeError, ValueError):
        raise InputError(f"{one_line(path)}: its position, orientation or spacing is not readable") from None
    fits = orientation.shape == (6,) and position.shape == (3,) and spacing.shape == (2,) and (spacing > 0).all()
    if fits and np.isfinite([*orientation, *position, *spacing]).all():
        axes = orientation.reshape(2, 3)
        if np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
            return orientation, position, spacing, size
    raise InputError(f"{one_line(path)}: its position, orientation or spacing makes no sense")


def _slice_spacing(folder: Path, along: np.ndarray, header: Dataset) -> float:
    """mm between slices from their places along the normal; of a single slice as its header says."""
    if len(along) == 1:
        said = number(header, "SpacingBetweenSlices") or number(header, "SliceThickness")
        if not (said and said > 0):
            raise InputError(f"the slice in {one_line(folder)} has neither SpacingBetweenSlices nor SliceThickness")
        return said
    steps = np.diff(np.sort(along))
    spacing = float(np.median(steps))
    if not (spacing > 0 and np.allclose(steps, spacing, rtol=0, atol=0.05 * spacing)):
        raise InputError(
            f"the slices of the series in {one_line(folder)} lie {steps.min():.4g} to {steps.max():.4g} mm apart; "
            "expected a complete stack with even spacing"
        )
    return spacing
