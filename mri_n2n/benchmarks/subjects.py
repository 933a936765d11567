"""Whom the benchmarks train, choose and report on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.datasets import find_sources
from mri_n2n.errors import NotFoundError
from mri_n2n.files import atomic_output
from mri_n2n.fourier import ifft2c
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.phantom import phantom_kspace
from mri_n2n.simulation import acquire, seeded
from mri_n2n.sources import Source

SEED = 0
# open_ms (Lesjak et al., Neuroinformatics 2016): subjects 01, 03, 09, 12 train, 04 is reported and never chosen on.
TEST_SUBJECT, VALIDATION_SUBJECT = "patient04", "patient12"
TEST_CONTRAST = "T1W"
PHANTOMS, PHANTOM_SLICES = 5, 16


@dataclass(frozen=True)
class TestVolume:
    """The test volume, acquired once with one mask: full k-space (slices, 1, y, x), volume maximum 1."""

    full: Tensor
    acquisition: Acquisition

    @property
    def reference(self) -> np.ndarray:
        return root_sum_of_squares(ifft2c(self.full)).numpy()


def data_folder(data: Path | None) -> Path:
    if data is None or not data.is_dir():
        raise NotFoundError(
            "this benchmark needs --data DIR with NIfTI volumes of at least three subjects"
            + ("" if data is None else f"; there is no directory {data}")
        )
    return data


def subjects_in(data: Path) -> tuple[str, str]:
    """(test, validation): of open_ms as published, of other data the last subject by name and the one before."""
    split = find_sources("nifti", data, validation_subjects=("none",))
    subjects = sorted({source.subject for source in split.train})
    if len(subjects) < 3:
        raise NotFoundError(
            f"{data} holds volumes of {', '.join(subjects)}; at least three subjects are needed: to train on, to choose on, to test"
        )
    if {TEST_SUBJECT, VALIDATION_SUBJECT} <= set(subjects):
        return TEST_SUBJECT, VALIDATION_SUBJECT
    return subjects[-1], subjects[-2]


def test_sources(data: Path, matrix_size: int) -> list[Source]:
    """All volumes of the test subject."""
    test, _ = subjects_in(data)
    return find_sources("nifti", data, matrix_size=matrix_size, validation_subjects=(test,)).validation


def test_volume(data: Path, matrix_size: int, *, kind: str = "roulette", acceleration: float = 10.0) -> TestVolume:
    """The T1W volume of the test subject (its first without one), one mask for all slices from a seed of its own."""
    sources = test_sources(data, matrix_size)
    source = next((s for s in sources if TEST_CONTRAST in s.name), sources[0])
    full = source.load()
    return TestVolume(full, acquire(full, kind, acceleration, seeded(SEED, "test", kind), hermitian=True))


def phantom_folder(folder: Path, matrix_size: int) -> Path:
    """A folder of phantom volumes of some subjects, written when it is not there: for who has no data."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, PHANTOMS + 1):
        path = folder / f"phantom{number}_head.nii"
        if not path.exists():
            shape = (matrix_size, matrix_size)
            drawn = (phantom_kspace(shape, generator=seeded(SEED, path.name, i)) for i in range(PHANTOM_SLICES))
            images = torch.stack([ifft2c(one)[0].abs() for one in drawn])
            volume = nibabel.Nifti1Image(images.numpy().T.astype(np.float32), np.eye(4))
            with atomic_output(path, force=True) as temporary:
                temporary.write_bytes(volume.to_bytes())
    return folder
