"""Complex images in NIfTI: one complex volume, or two real ones: magnitude and phase, or real and imaginary part.

In data sets the two are told by BIDS' entity `part`: NAME_part-mag_T1w.nii.gz and NAME_part-phase_T1w.nii.gz, or part-real
and part-imag (https://bids-specification.readthedocs.io).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mri_n2n.acquisition import Geometry
from mri_n2n.errors import InputError
from mri_n2n.files import one_line
from mri_n2n.formats.nifti import read_volume

# first part -> (second part, what it is)
PARTS = {"mag": ("phase", "phase"), "real": ("imag", "imaginary")}
_PART = re.compile(r"_part-(mag|phase|real|imag)(?=[_.])")


@dataclass(frozen=True)
class ImageFiles:
    """Where an image is: one file of magnitudes or complex numbers, or two, with the phase or the imaginary part second."""

    first: Path
    phase: Path | None = None
    imaginary: Path | None = None


def read_images(files: ImageFiles, axis: int = 2) -> tuple[np.ndarray, Geometry]:
    """(array (slice, y, x), geometry): float32 magnitudes of one real file, else complex64.

    Phase is in radians, or in a scanner's units, -4096 to 4096 or 0 to 4095 for a whole turn; others are refused.
    Errors: those of `read_volume`, and InputError for two files of other shapes or places.
    """
    array, geometry = read_volume(files.first, axis=axis, kinds="fiuc")
    second = files.phase or files.imaginary
    if second is None:
        return array, geometry
    other, place = read_volume(second, axis=axis)
    if array.dtype.kind == "c":
        raise InputError(f"{one_line(files.first)} is complex already; leave out {one_line(second)}")
    if other.shape != array.shape or not np.allclose(place.affine, geometry.affine, atol=1e-3):
        raise InputError(
            f"{one_line(files.first)} {array.shape} and {one_line(second)} {other.shape} differ in shape or place; "
            "they must be two parts of one image"
        )
    if files.imaginary:
        return array + 1j * other, geometry
    if array.min(initial=0) < 0:
        raise InputError(f"{one_line(files.first)} has negative values; the magnitude of a phase has none")
    return array * np.exp(1j * _radians(other, second)).astype(np.complex64), geometry


def pairs_of_parts(paths: list[Path]) -> list[ImageFiles]:
    """Files sorted into images by BIDS' entity `part`; those without it are images of their own.

    Errors: InputError for a phase, real or imaginary part without its other half; a magnitude needs none.
    """
    parts = {path: match[1] for path in paths if (match := _PART.search(path.name))}
    images = [ImageFiles(path) for path in paths if path not in parts]
    used = set()
    for path in (path for path, part in parts.items() if part in PARTS):
        name, role = PARTS[parts[path]]
        other = path.with_name(_PART.sub(f"_part-{name}", path.name))
        if other in parts:
            images.append(ImageFiles(path, **{role: other}))
            used |= {path, other}
        elif parts[path] == "mag":
            images.append(ImageFiles(path))
            used.add(path)
    if alone := [path for path in parts if path not in used]:
        raise InputError(f"{one_line(alone[0])} is one part of a complex image, and its other part is not there")
    return sorted(images, key=lambda image: (image.first.name, image.first))


def _radians(phase: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(phase.min()), float(phase.max())
    if max(-low, high) <= 2 * math.pi * 1.01:
        return phase
    # A whole turn, nearly: a smaller range is no sure sign of these units, and could be milliradians.
    for least, most, turn in ((-4096, 4096, 8192), (0, 4096, 4096)):
        if least - 1 <= low and high <= most + 1 and high - low > 0.9 * turn:
            return phase * (2 * math.pi / turn)
    raise InputError(
        f"{one_line(path)}: phase from {low:g} to {high:g}; expected radians, or a scanner's -4096 to 4096 or 0 to 4095"
    )
