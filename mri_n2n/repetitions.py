"""Scans that were acquired several times: which files, or which parts of one file, are repetitions of each other."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mri_n2n.acquisition import Scan
from mri_n2n.errors import InputError
from mri_n2n.files import stem
from mri_n2n.formats import detect, open_scan
from mri_n2n.formats.cfl import FORMAT as CFL
from mri_n2n.formats.mrd import FORMAT as MRD

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

    Scans with one repetition are left out, with a warning. Errors: InputError for files that cannot be read, and for two
    that are the same repetition.
    """
    groups: dict[Path, dict[int, Repetition]] = defaultdict(dict)
    for path in paths:
        if match := re.fullmatch(r"(.+)_rep(\d+)", stem(path)):
            _add(groups[path.with_name(match[1])], int(match[2]), Repetition(path))
        elif detect(path) in SEVERAL:
            for number in range(open_scan(path).repetitions):
                _add(groups[path.with_name(stem(path))], number, Repetition(path, number))
    return _with_two(groups)


def m4raw_repetitions(paths: list[Path]) -> dict[Path, list[Repetition]]:
    """The same of M4Raw's files, ID_T101.h5, ID_T102.h5 ...: contrast and repetition."""
    groups: dict[Path, dict[int, Repetition]] = defaultdict(dict)
    for path in paths:
        if match := M4RAW_NAME.fullmatch(path.name):
            _add(groups[path.with_name(f"{match[1]}_{match[2]}")], int(match[3]), Repetition(path))
    return _with_two(groups)


def _add(group: dict[int, Repetition], number: int, repetition: Repetition) -> None:
    if number in group:
        raise InputError(
            f"{group[number].path.name} and {repetition.path.name} are both repetition {number} of one scan; keep one of them"
        )
    group[number] = repetition


def _with_two(groups: dict[Path, dict[int, Repetition]]) -> dict[Path, list[Repetition]]:
    for scan in [scan for scan, found in groups.items() if len(found) < 2]:
        warnings.warn(f"{scan.name} has a single repetition and is left out; Noise2Noise needs two", stacklevel=5)
        del groups[scan]
    return {scan: [found[number] for number in sorted(found)] for scan, found in groups.items()}
