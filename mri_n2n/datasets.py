"""Where training data comes from: folders of files, or phantoms, as `Source`s that are read when they are needed.

A source is one volume. Of files nothing but names and slice counts is held, so memory does not grow with the data set.
Training and validation share no subject; where given train and validation folders do, a warning says so.

To add a data set: write a function (folder, options) -> Split and add one line to `_FINDERS`, and its name to the choices in `arguments.py`.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py

from mri_n2n.errors import NotFoundError, UserError
from mri_n2n.folders import files_in, subjects_of, unique_names
from mri_n2n.formats import ImageFiles, is_complex, open_scan, pairs_of_parts, volume_shape
from mri_n2n.measured import find_m4raw, find_pairs, find_scans
from mri_n2n.sources import Selection, Source, Split, divide, slice_range
from mri_n2n.volumes import (
    load_fastmri,
    load_nifti,
    load_phantom,
)

PHANTOM_MATRIX = 128
IXI_SLICES = (25, 125)  # 25..124 of array axis 2, as in Lehtinen et al. 2018
IXI_NAME = re.compile(r"IXI(\d{3})-(Guys|HH|IOP)-(\d{4})-T1\.nii(\.gz)?")
# The first 60 T1 names of the archive in alphabetical order: 50 subjects up to number 63, 10 from 64 to 73.
IXI_LAST_TRAIN, IXI_LAST_VALIDATION = 63, 73


def find_sources(
    dataset: str,
    data: Path | None = None,
    *,
    matrix_size: int | None = None,
    axis: int = 2,
    slices: tuple[int, int] | None = None,
    validation_subjects: Sequence[str] | None = None,
    excluded_subjects: Sequence[str] = (),
    coils: int | None = None,
) -> Split:
    """The training and validation volumes of a data set; only headers are read.

    dataset: ixi, nifti, fastmri (fully sampled files, which training undersamples), pairs (repetitions: NAME_rep1.h5,
        NAME_rep2.h5 ..., or files that hold several), m4raw (fully sampled repetitions), scans (acquired once each) or phantom.
    data: its folder, searched with its subfolders; by default `default_folder(dataset)`. A folder that holds `train`
        and `validation` (or `val`) is split so, ixi as published, fastMRI's and M4Raw's own folders as they are named; any other
        by subject, the last fifth in alphabetical order for validation.
    matrix_size: resample every slice to a square of this size (see `resize_kspace`). axis: slice axis of NIfTI volumes.
    slices: (first, one past the last) of each volume; by default all, and 25..124 for ixi.
    validation_subjects: these for validation and all others for training, whatever the folders say; ("none",): all
        for training.
    excluded_subjects: in neither part: those kept for a test.
    coils: of phantoms; with them their k-space has coil sensitivities and phase.
    Errors: NotFoundError when there is nothing (it says how to get it), InputError for files that cannot be read,
        UserError for options that make no sense.
    """
    if dataset not in DATASETS:
        raise UserError(f"unknown dataset {dataset!r}; choose one of {', '.join(DATASETS)}")
    if matrix_size is not None and matrix_size < 8:
        raise UserError(f"the matrix size must be at least 8; got {matrix_size}")
    if axis not in (0, 1, 2):
        raise UserError(f"the slice axis must be 0, 1 or 2; got {axis}")
    if coils is not None and not 1 <= coils <= 128:
        raise UserError(f"phantoms have 1 to 128 coils; got {coils}")
    if slices is not None and not 0 <= slices[0] < slices[1]:
        raise UserError(f"slices must be (first, one past the last) with first < last; got {slices}")
    options = Selection(
        matrix_size, axis, slices, tuple(validation_subjects) if validation_subjects else None, tuple(excluded_subjects)
    )
    if axis != 2 and dataset in ("phantom", "fastmri", *MEASURED):
        raise UserError(f"--axis is the slice axis of NIfTI volumes; --dataset {dataset} holds slices already")
    if dataset == "phantom":
        if validation_subjects or excluded_subjects or data is not None:
            raise UserError("phantoms come from the package with a split of their own; leave out --data and subjects")
        return phantom_sources(matrix_size or PHANTOM_MATRIX, coils=coils)
    if coils is not None:
        raise UserError(
            "a number of coils is of --dataset phantom; those of other volumes are a matter of the protocol"
        )
    folder = default_folder(dataset) if data is None else Path(data)
    return _FINDERS[dataset](folder, options)


def default_folder(dataset: str) -> Path:
    """data/<dataset> below the current directory; the environment variable MRI_N2N_DATA replaces the `data` part."""
    return Path(os.environ.get("MRI_N2N_DATA") or "data") / dataset


# ---- phantoms ----


def phantom_sources(
    matrix_size: int = PHANTOM_MATRIX,
    *,
    coils: int | None = None,
    train: int = 40,
    validation: int = 4,
    slices: int = 8,
) -> Split:
    """Random phantoms; each follows from its name alone, so that every machine has the same ones.

    coils: with coil sensitivities and phase; None: one coil, real images.
    """

    def source(name: str) -> Source:
        return Source(name, name, slices, partial(load_phantom, name, slices, matrix_size, coils))

    return Split(
        [source(f"phantom-train-{i:03}") for i in range(train)],
        [source(f"phantom-validation-{i:03}") for i in range(validation)],
        "phantoms drawn for training and for validation",
    )


# ---- NIfTI volumes ----


def _find_nifti(folder: Path, options: Selection) -> Split:
    train, validation = files_in(folder, ("*.nii", "*.nii.gz"), [("train", "validation"), ("train", "val")])
    if not train + validation:
        raise NotFoundError(f"no NIfTI volumes (*.nii, *.nii.gz) in {folder}; give --data a directory that holds some")
    subjects = subjects_of(folder, train + validation)
    return _nifti_split(folder, train, validation, subjects, options)


def _nifti_split(
    folder: Path,
    train: list[Path],
    validation: list[Path],
    subjects: dict[Path, str],
    options: Selection,
    rule: str | None = None,
) -> Split:
    names = unique_names(folder, train + validation)

    def source(files: ImageFiles) -> Source:
        path = files.first
        start, stop = slice_range(path, volume_shape(path)[options.axis], options.slices)
        load = partial(load_nifti, files, names[path], start, stop, options.axis, options.matrix_size)
        has_phase = is_complex(path) or bool(files.phase or files.imaginary)
        return Source(names[path], subjects[path], stop - start, load, has_phase=has_phase)

    return divide(*([source(files) for files in pairs_of_parts(paths)] for paths in (train, validation)), options, rule)


def _find_ixi(folder: Path, options: Selection) -> Split:
    train, validation = files_in(folder, ("IXI*.nii", "IXI*.nii.gz"), [("train", "validation"), ("train", "val")])
    train, validation = ([path for path in paths if IXI_NAME.fullmatch(path.name)] for paths in (train, validation))
    if not train + validation:
        raise NotFoundError(
            f"no IXI T1 volumes (IXI002-Guys-0828-T1.nii.gz ...) in {folder}; "
            f"download them with: python data_scripts/download_ixi.py -o {folder}"
        )
    subjects = {path: path.name.split("-")[0] for path in train + validation}
    options = replace(options, slices=options.slices or IXI_SLICES)
    rule = None
    if not validation and not options.validation_subjects:
        train, validation, rule = official_ixi_split(train)
        if not validation:
            warnings.warn(f"{folder}: {rule}", stacklevel=3)
            rule = None
        elif (len(train), len(validation)) != (50, 10):
            warnings.warn(f"{folder}: {rule}", stacklevel=3)
    return _nifti_split(folder, train, validation, subjects, options, rule)


def official_ixi_split(paths: Sequence[Path]) -> tuple[list[Path], list[Path], str]:
    """(train, validation, words): the published 50 and 10 T1 subjects, or those of them that are among `paths`.

    Where `paths` lack either part entirely, all of them are returned as train and none as validation.
    """
    paths = sorted(paths, key=lambda path: path.name)
    number = {path: int(IXI_NAME.fullmatch(path.name)[1]) for path in paths}
    train = [path for path in paths if number[path] <= IXI_LAST_TRAIN]
    validation = [path for path in paths if IXI_LAST_TRAIN < number[path] <= IXI_LAST_VALIDATION]
    if not train or not validation:
        return list(paths), [], "holds none of the official training or validation subjects; split by subject instead"
    have = f"{len(train)} of the 50 official training subjects and {len(validation)} of the 10 for validation"
    if (len(train), len(validation)) == (50, 10):
        return train, validation, "the official 50 training and 10 validation subjects"
    return train, validation, f"holds {have}; using these only (dataset nifti uses every volume)"


# ---- fastMRI ----


def _find_fastmri(folder: Path, options: Selection) -> Split:
    kinds = [(f"{coils}coil_train", f"{coils}coil_val") for coils in ("multi", "single")]
    train, validation = files_in(folder, ("*.h5",), [*kinds, ("train", "validation"), ("train", "val")])
    train = _fully_sampled_folders(folder, train)
    if not train + validation:
        raise NotFoundError(
            f"no fastMRI files (*.h5) in {folder}; register at https://fastmri.med.nyu.edu, download, unpack there, "
            f"and check with: python data_scripts/prepare_fastmri.py {folder}"
        )
    names = unique_names(folder, train + validation)

    def source(path: Path) -> Source:
        scan = open_scan(path)
        start, stop = slice_range(path, scan.shape[0], options.slices)
        load = partial(load_fastmri, path, names[path], start, stop, options.matrix_size)
        return Source(names[path], patient(path) or names[path], stop - start, load, scan.simulated)

    return divide(list(map(source, train)), list(map(source, validation)), options)


def _fully_sampled_folders(folder: Path, paths: list[Path]) -> list[Path]:
    """Without test and challenge folders, which hold undersampled scans.

    Of multi- and single-coil folders the multi-coil ones: single-coil files are emulated from scans of the same people.
    """

    def inside(path: Path, pattern: str) -> bool:
        return path != folder and any(re.match(pattern, part) for part in path.relative_to(folder).parts[:-1])

    paths = [path for path in paths if not inside(path, r"(single|multi)coil_(test|challenge)")]
    multi = [path for path in paths if not inside(path, "singlecoil_")]
    return multi if any(inside(path, "multicoil_") for path in paths) else paths


def patient(path: Path) -> str | None:
    """A pseudonym of the `patient_id` of a checked scan file, equal for the scans of one person; None without one."""
    with h5py.File(path, "r") as file:
        identifier = file.attrs.get("patient_id")
    return None if identifier is None else hashlib.sha256(str(identifier).encode()).hexdigest()[:12]


_FINDERS: dict[str, Callable[[Path, Selection], Split]] = {
    "ixi": _find_ixi,
    "nifti": _find_nifti,
    "fastmri": _find_fastmri,
    "pairs": find_pairs,
    "m4raw": find_m4raw,
    "scans": find_scans,
}
DATASETS = (*_FINDERS, "phantom")
REPEATED = ("pairs", "m4raw")
MEASURED = (*REPEATED, "scans")  # as the scanner measured them
