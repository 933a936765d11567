"""Data sets of measured scans: repetitions, which are training pairs (a study's own, and M4Raw), and single scans."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path

from torch import Tensor

from mri_n2n.errors import InputError, NotFoundError, UserError
from mri_n2n.files import RAW, stem
from mri_n2n.folders import files_in, subjects_of, unique_names
from mri_n2n.repetitions import Repetition, m4raw_repetitions, repetitions_of
from mri_n2n.sources import Selection, Source, Split, divide, slice_range
from mri_n2n.volumes import estimated_probabilities, load_m4raw, load_pairs


def find_pairs(folder: Path, selection: Selection) -> Split:
    train, validation = files_in(folder, [f"*{suffix}" for suffix in RAW], [("train", "validation"), ("train", "val")])
    groups = repetitions_of(train), repetitions_of(validation)
    if not {**groups[0], **groups[1]}:
        raise NotFoundError(
            f"{_lacking('repeated scans (NAME_rep1.h5, NAME_rep2.h5 ...)', folder)}; simulate some with: "
            f"mkdir -p {folder}; mri-n2n simulate VOLUME.nii.gz -o {folder / 'NAME.h5'} --repetitions 2"
        )
    return _repetition_split(folder, *groups, selection)


def find_m4raw(folder: Path, selection: Selection) -> Split:
    splits = [("multicoil_train", "multicoil_val"), ("train", "validation"), ("train", "val")]
    train, validation = files_in(folder, ("*.h5",), splits)
    groups = m4raw_repetitions(train), m4raw_repetitions(validation)
    if not {**groups[0], **groups[1]}:
        raise NotFoundError(
            f"no M4Raw scans with two repetitions (ID_T101.h5, ID_T102.h5 ...) in {folder}; download them from "
            "where https://doi.org/10.1038/s41597-023-02181-4 says, and unpack them there"
        )
    return _repetition_split(folder, *groups, selection, full=True)


def find_scans(folder: Path, selection: Selection) -> Split:
    """Raw scans that were acquired once each, undersampled."""
    train, validation = files_in(folder, [f"*{suffix}" for suffix in RAW], [("train", "validation"), ("train", "val")])
    if repeated := [path.name for path in train if re.search(r"_rep\d+$", stem(path))]:
        warnings.warn(
            f"{repeated[0]} looks like one of several repetitions; --dataset pairs learns from all", stacklevel=3
        )
    if not train + validation:
        raise NotFoundError(
            f"{_lacking('raw scans (' + ', '.join(RAW) + ')', folder)}; give --data a directory that holds some"
        )
    groups = ({path: [Repetition(path)] for path in part} for part in (train, validation))
    return _repetition_split(folder, *groups, selection)


def _lacking(what: str, folder: Path) -> str:
    return f"no {what} in {folder}" if folder.exists() else f"there is no directory {folder}"


def _repetition_split(
    folder: Path,
    train: dict[Path, list[Repetition]],
    validation: dict[Path, list[Repetition]],
    selection: Selection,
    full: bool = False,
) -> Split:
    """full: fully sampled repetitions, phase-encoded along y."""
    if selection.matrix_size is not None:
        raise UserError("measured repetitions are used as they were measured; leave out the matrix size")
    names = unique_names(folder, [*train, *validation])
    subjects = subjects_of(folder, [*train, *validation])
    probabilities: dict[tuple[int, int], Tensor] = {}  # filled below, once the split is known

    def source(stem: Path, repetitions: list[Repetition]) -> Source:
        scans = [repetition.open() for repetition in repetitions]
        shapes = {scan.shape for scan in scans}
        if len(shapes) > 1:
            raise InputError(f"the repetitions of {stem.name} differ in shape ({sorted(shapes)}); take them alike")
        start, stop = slice_range(stem, next(iter(shapes))[0], selection.slices)
        load = (
            partial(load_m4raw, tuple(repetitions), names[stem], start, stop)
            if full
            else partial(load_pairs, tuple(repetitions), names[stem], start, stop, probabilities)
        )
        return Source(names[stem], subjects[stem], stop - start, load, scans[0].simulated)

    split = divide([source(*item) for item in train.items()], [source(*item) for item in validation.items()], selection)
    if not full:
        probabilities.update(estimated_probabilities([s.load.args[0] for s in split.train]))
    return split
