"""Many scans judged by second acquisitions: their mean, and an interval for scans like them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mri_n2n.errors import InputError, NotFoundError
from mri_n2n.files import RAW, one_line, stem, suffix_of
from mri_n2n.trust.error_estimate import CONFIDENCE, Estimate
from mri_n2n.trust.second_acquisition import Judged, Quality, judge

RESAMPLED, SEED = 10_000, 0


@dataclass(frozen=True)
class Population:
    """scans: judged one by one. quality: their means, None of a single one, with the interval of the mean over scans like these.
    alone: names of reconstructions without a second acquisition."""

    scans: tuple[Judged, ...]
    quality: Quality | None
    alone: tuple[str, ...]


def judge_all(reconstructions: Path, second: Path, third: Path | None = None) -> Population:
    """Result files of a directory, each against the scan of the same name in `second`; NAME_rep1 and NAME_rep2 are the same name.

    Errors: NotFoundError, InputError: those of `judge`, with the first scan that is refused.
    """
    results = _named(reconstructions, (".h5", ".hdf5"))
    others = [_named(folder, RAW) for folder in (second, third) if folder is not None]
    both = [name for name in results if all(name in found for found in others)]
    if not both:
        raise InputError(f"no file of {reconstructions.name} has a partner of the same name in {second.name}")
    scans = tuple(judge(results[name], *(found[name] for found in others)) for name in both)
    alone = tuple(results[name].name for name in results if name not in both)
    return Population(scans, population_of([scan.volume for scan in scans]), alone)


def population_of(scans: Sequence[Quality]) -> Quality | None:
    """Means over scans, and their percentile bootstrap (Efron, Ann. Stat. 7, 1979); None of fewer than two."""
    if len(scans) < 2:
        return None
    names = ("mse", "psnr", "nmse")
    values = np.array([[getattr(one, name).value for name in names] for one in scans])
    drawn = np.random.default_rng(SEED).integers(len(scans), size=(RESAMPLED, len(scans)))
    with np.errstate(invalid="ignore"):
        means = values[drawn].mean(axis=1)
        low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        middle = values.mean(axis=0)
    return Quality(*(Estimate(*map(float, one)) for one in zip(middle, low, high, strict=True)))


def _named(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise NotFoundError(
            f"{folder}: no such directory; of a directory of reconstructions the others are directories too"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and suffix_of(path) in suffixes and not path.name.startswith("."):
            name = re.sub(r"_rep\d+$", "", stem(path))
            if name in found:
                raise InputError(
                    f"{found[name].name} and {path.name} of {one_line(folder)} have one name; keep one of them there"
                )
            found[name] = path
    return found
