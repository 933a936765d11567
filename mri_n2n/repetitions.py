"""Scans that were acquired several times: which files, or which parts of one file, are repetitions of each other."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mri_n2n.acquisition import Scan
from mri_n2n.errors import UserError
from mri_n2n.formats import detect, open_scan
from mri_n2n.formats.cfl import FORMAT as CFL
from mri_n2n.formats.mrd import FORMAT as MRD

# Of BART's two files the samples.
SUFFIXES = (".h5", ".hdf5", ".mrd", ".cfl", ".npy")
SEVERAL = (MRD, CFL)  # formats that hold repetitions in one file
M4RAW_NAME = re.compile(r"(.+)_(T1|T2|FLAIR|GRE)0(\d+)\.h5")


@dataclass(frozen=True)
class Repetition:
    """One acquisition of a scan: a file, or one of those in it (`number`)."""

    path: Path
    number: int | None = None

    def open(self) -> Scan:
        return open_scan(self.path, None, self.number)


def repetitions_of(paths: list[Path]) -> dict[Path, list[Repetition]]:
    """Scan without suffix -> its repetitions, of NAME_rep1.h5, NAME_rep2.h5 ... and of files that hold several.

    Scans with one repetition are left out, with a warning.
    """
    groups: dict[Path, dict[int, Repetition]] = defaultdict(dict)
    for path in paths:
        if match := re.fullmatch(r"(.+)_rep(\d+)", path.stem):
            groups[path.with_name(match[1])][int(match[2])] = Repetition(path)
        elif _may_hold_several(path):
            count = open_scan(path).repetitions
            groups[path.with_suffix("")] |= {number: Repetition(path, number) for number in range(count)}
    return _with_two(groups)


def m4raw_repetitions(paths: list[Path]) -> dict[Path, list[Repetition]]:
    """The same of M4Raw's files, ID_T101.h5, ID_T102.h5 ...: contrast and repetition."""
    groups: dict[Path, dict[int, Repetition]] = defaultdict(dict)
    for path in paths:
        if match := M4RAW_NAME.fullmatch(path.name):
            groups[path.with_name(f"{match[1]}_{match[2]}")][int(match[3])] = Repetition(path)
    return _with_two(groups)


def _may_hold_several(path: Path) -> bool:
    try:
        return path.suffix != ".npy" and detect(path) in SEVERAL
    except UserError:
        return False  # no scan at all


def _with_two(groups: dict[Path, dict[int, Repetition]]) -> dict[Path, list[Repetition]]:
    for stem in [stem for stem, found in groups.items() if len(found) < 2]:
        warnings.warn(f"{stem.name} has a single repetition and is left out; Noise2Noise needs two", stacklevel=5)
        del groups[stem]
    return {stem: [found[number] for number in sorted(found)] for stem, found in groups.items()}
