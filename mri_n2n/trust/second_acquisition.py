"""`evaluate RECON --second-acquisition SCAN`: files -> the error of a reconstruction where nobody has a reference."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.coils import combine
from mri_n2n.errors import InputError
from mri_n2n.evaluation import places_differ
from mri_n2n.files import one_line
from mri_n2n.formats import detect, open_scan
from mri_n2n.formats.hdf5 import checked_dataset, open_hdf5, read_geometry
from mri_n2n.formats.result import FORMAT as RESULT
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import is_along
from mri_n2n.noise import noise_variance_at_most
from mri_n2n.resample import crop_or_pad
from mri_n2n.trust.agreement import agreement, faint
from mri_n2n.trust.design import EQUIDISTANT, Design, design_of
from mri_n2n.trust.error_estimate import Level, Quality, Terms, estimate, level_of_two, quality_of, terms_of

# Residuals below this share of the samples are rounding: these samples are in the image.
ROUNDING = 1e-8
# Two acquisitions whose difference has more than this many times the variance that their outermost samples allow differ otherwise.
MORE_THAN_NOISE = 3.0


@dataclass(frozen=True)
class Judged:
    """A reconstruction judged. coverage: the share of k-space locations that the second acquisition could have sampled, of which the
    estimate speaks. noise: where its level is from. level: the standard deviation of the noise of a sample, mean over coils. peak: the image's largest magnitude."""

    name: str
    second: str
    third: str | None
    volume: Quality
    slices: tuple[Quality, ...]
    peak: float
    coverage: float
    noise: str
    level: float
    simulated: bool | None


def judge(reconstruction: Path, second: Path, third: Path | None = None) -> Judged:
    """The mean squared error of the complex image in a result file (its own maps and coil mixing) against the truth, from
    one or two acquisitions that had no part in it, with an interval for this scan: the chance of the second's mask and noise.

    Errors: NotFoundError; InputError where files do not fit each other and where an assumption fails: a second acquisition of unknown
    sampling probability, of lines at equal distances, of unknown noise without a third, or one that the image has in it.
    """
    acquisitions = [open_scan(path) for path in ([second] if third is None else [second, third])]
    with open_result(reconstruction) as result:
        for scan in acquisitions:
            result.check_fits(scan)
        return _judged(result, acquisitions)


@dataclass(frozen=True)
class Result:
    """A result file that is open. shape: (slices, y, x) of its image."""

    path: Path
    file: h5py.File
    shape: tuple[int, int, int]
    coils: int
    mixing: Tensor | None
    simulated: bool | None

    def slice(self, index: int) -> tuple[Tensor, Tensor | None]:
        """(complex coil images or one image (coils or 1, y, x), maps (coils, y, x) or None)."""
        image = torch.from_numpy(self.file["image"][index].reshape(-1, *self.shape[1:]))
        maps = self.file["sensitivity_maps"][index] if "sensitivity_maps" in self.file else None
        return image, None if maps is None else torch.from_numpy(maps)

    def check_fits(self, scan: Scan) -> None:
        """InputError for a scan of another shape, or in another place."""
        if places_differ(read_geometry(self.file, self.path), scan.image_geometry):
            raise InputError(
                f"the acquisition {one_line(scan.path)} and the image {one_line(self.path)} lie in different places or orientations"
            )
        slices, coils, *matrix = scan.shape
        image = scan.image_matrix or tuple(matrix)
        wanted = self.coils if self.mixing is None else self.mixing.shape[1]
        if (slices, coils, *image) != (self.shape[0], wanted, *self.shape[1:]):
            raise InputError(
                f"the acquisition {one_line(scan.path)} has {slices} slices, {coils} coils and images of {image[0]} x {image[1]}; the image {one_line(self.path)} was "
                f"made of {self.shape[0]}, {wanted} and {self.shape[1]} x {self.shape[2]}"
            )


@contextmanager
def open_result(path: Path) -> Iterator[Result]:
    """Errors: NotFoundError, InputError."""
    if detect(path) != RESULT:
        raise InputError(f"{one_line(path)} is no result of reconstruct (HDF5), which has the complex image")
    with open_hdf5(path) as file:
        image = checked_dataset(file, path, "image", (3, 4), "c", streamed=True)
        slices, *coils, y, x = image.shape
        if "sensitivity_maps" in file:
            coils = [checked_dataset(file, path, "sensitivity_maps", (4,), "c", streamed=True).shape[1]]
        mixing = None
        if "coil_mixing" in file:
            mixing = torch.from_numpy(checked_dataset(file, path, "coil_mixing", (2,), "c")[()])
        simulated = file.attrs.get("simulated")
        simulated = None if simulated is None else bool(simulated)
        yield Result(path, file, (slices, y, x), coils[0] if coils else 1, mixing, simulated)


@dataclass(frozen=True)
class Compared:
    """A slice of one acquisition beside what the image predicts of it. kspace, residual: (coils, y, x), mask, chance: (y, x)."""

    kspace: Tensor
    residual: Tensor
    mask: Tensor
    chance: Tensor


def _predicted(result: Result, index: int) -> Tensor:
    image, maps = result.slice(index)
    return fft2c(image if maps is None else maps * image)


def _compared(result: Result, scan: Scan, index: int, largest: float) -> Compared:
    """largest: sample of what the image predicts, over its slices."""
    acquisition = _without_oversampling(scan.read(index, index + 1), result.shape[1:], scan.path)
    kspace = acquisition.kspace[0] if result.mixing is None else combine(result.mixing, acquisition.kspace)[0]
    predicted, mask = _predicted(result, index), acquisition.mask[0, 0]
    found = agreement(predicted, kspace, mask)
    if found.differences and not faint(predicted, kspace, largest):
        raise InputError(
            f"the acquisition {one_line(scan.path)} and the image {one_line(result.path)} differ in slice {index} by {' and '.join(found.differences)}, whichever is at "
            "fault: what the one says of the other's errors would be that"
        )
    return Compared(kspace, mask * (predicted - kspace), mask, _probability(acquisition, scan.path)[0, 0])


def _judged(result: Result, scans: list[Scan]) -> Judged:
    slices, y, x = result.shape
    largest = max(_predicted(result, index).abs().max().item() for index in range(slices))
    if not largest > 0:
        raise InputError(f"the image {one_line(result.path)} is zero everywhere; there is nothing to judge")
    if len(scans) == 2:
        levels = 2 * [_level_of_two(result, scans, largest)]
        noise = "from the difference of two acquisitions"
    else:
        levels, noise = [_stated_level(result, scans[0])], "as the second acquisition says"
    designs: dict[bytes, Design] = {}
    together: dict[bytes, Terms] = {}
    of_scan: list[dict[bytes, Terms]] = [{} for _ in scans]
    alone: list[list[tuple[Terms, Design]]] = []
    energy, peak, coverage, samples, residuals = [], 0.0, 0.0, [0.0] * len(scans), [0.0] * len(scans)
    for index in range(slices):
        parts: dict[bytes, Terms] = {}
        for number, (scan, level) in enumerate(zip(scans, levels, strict=True)):
            one = _compared(result, scan, index, largest)
            samples[number] += one.kspace.abs().double().square().sum().item()
            residuals[number] += one.residual.abs().double().square().sum().item()
            key = hashlib.sha256(one.mask.numpy().tobytes() + one.chance.numpy().tobytes()).digest()
            designs[key] = designs[key] if key in designs else _design(one, scan.path)
            terms = terms_of(one.residual, one.mask, level.variance)
            _add(of_scan[number], key, terms)
            _add(parts, key, terms.times(1 / len(scans)))
            coverage += (one.chance > 0).double().mean().item() / (slices * len(scans))
        for key, terms in parts.items():
            _add(together, key, terms)
        alone.append([(terms, designs[key]) for key, terms in parts.items()])
        magnitude = result.slice(index)[0].abs().double().square().sum(dim=0)
        peak, energy = max(peak, magnitude.max().sqrt().item()), [*energy, magnitude.sum().item()]
    pixels = slices * y * x
    for scan, sample, residual, terms in zip(scans, samples, residuals, of_scan, strict=True):
        _refuse_own(result, scan, sample, residual)
        if estimate([(terms[key], designs[key]) for key in terms], pixels, levels[0].doubt).high < 0:
            raise InputError(
                f"the image {one_line(result.path)} is closer to the acquisition {one_line(scan.path)} than noise allows: it had a part in the "
                "image, or its noise is less than is said"
            )
    whole = estimate([(together[key], designs[key]) for key in together], pixels, levels[0].doubt)
    each = [estimate(parts, y * x, levels[0].doubt) for parts in alone]
    return Judged(
        result.path.name,
        scans[0].path.name,
        scans[1].path.name if len(scans) > 1 else None,
        quality_of(whole, peak, sum(energy) / pixels),
        tuple(quality_of(one, peak, own / (y * x)) for one, own in zip(each, energy, strict=True)),
        peak,
        coverage,
        noise,
        levels[0].variance.mean().sqrt().item(),
        _simulated([result.simulated, *(scan.simulated for scan in scans)]),
    )


def _design(one: Compared, path: Path) -> Design:
    design = design_of(one.mask, one.chance)
    if design.equidistant:
        raise InputError(f"{one_line(path)}: {EQUIDISTANT}")
    return design


def _refuse_own(result: Result, scan: Scan, samples: float, residual: float) -> None:
    """InputError for an acquisition whose samples the image has in it, to rounding."""
    if residual <= ROUNDING * samples:
        raise InputError(
            f"the acquisition {one_line(scan.path)} says nothing of the image {one_line(result.path)}, which was made of its samples"
        )


def _add(terms: dict[bytes, Terms], key: bytes, more: Terms) -> None:
    terms[key] = terms[key] + more if key in terms else more


def _simulated(said: list[bool | None]) -> bool | None:
    return True if True in said else None if None in said else False


def _level_of_two(result: Result, scans: list[Scan], largest: float) -> Level:
    """Errors: InputError for acquisitions that have too few samples in common, or all of them."""
    differences, at_most = [], []
    for index in range(result.shape[0]):
        first, second = (_compared(result, scan, index, largest) for scan in scans)
        at_most.append(noise_variance_at_most(first.kspace[None], first.mask[None, None]).item())
        both = (first.mask * second.mask) > 0
        differences.append((first.kspace - second.kspace)[:, both])
    level = level_of_two(differences)
    names = " and ".join(one_line(scan.path) for scan in scans)
    if level is None:
        raise InputError(f"{names} have too few samples in common to tell their noise")
    if not level.variance.any():
        raise InputError(f"{names} have the very same samples; a third acquisition is one of its own")
    bound = np.nanmean(at_most) if not np.isnan(at_most).all() else math.inf
    if level.variance.mean().item() > MORE_THAN_NOISE * bound:
        raise InputError(
            f"{names} differ by more than noise, which their outermost samples bound: one is of something else"
        )
    return level


def _probability(acquisition: Acquisition, path: Path) -> Tensor:
    if acquisition.probability is not None:
        return acquisition.probability
    if acquisition.mask.all():
        return acquisition.mask
    raise InputError(
        f"{one_line(path)} does not store the probability with which its samples were drawn, without which they cannot be weighted; "
        "store it as `probability` in the scan's HDF5 (docs/files.md), or give one that is sampled fully"
    )


def _stated_level(result: Result, scan: Scan) -> Level:
    """E|n|^2 of a sample of each coil, mixed as the image's were. InputError where it is not known."""
    acquisition, covariance = scan.read(0, 1), scan.noise_covariance
    coils = acquisition.kspace.shape[1]
    variance = acquisition.noise_variance
    if covariance is None and variance is not None:
        variance = variance.flatten()[0].item() if isinstance(variance, torch.Tensor) else variance
        covariance = variance * torch.eye(coils, dtype=torch.complex128)
    if covariance is None:
        raise InputError(
            f"the noise level of {one_line(scan.path)} is not known; give --third-acquisition, with which it is not needed"
        )
    mixing = torch.eye(coils) if result.mixing is None else result.mixing
    mixing = mixing.to(torch.complex128)
    return Level((mixing @ covariance.to(torch.complex128) @ mixing.mH).diagonal().real[:, None, None])


def _without_oversampling(acquisition: Acquisition, matrix: tuple[int, int], path: Path) -> Acquisition:
    """The acquisition of the image's own field of view, along readouts, where there is more. InputError along phase-encoded axes."""
    for axis, size in ((-2, matrix[0]), (-1, matrix[1])):
        if acquisition.kspace.shape[axis] == size:
            continue
        if not is_along(acquisition.mask, axis):
            raise InputError(
                f"{one_line(path)} is larger than the image along a phase-encoded axis, where it cannot be cut"
            )
        y, x = acquisition.kspace.shape[-2:]
        shape = (size, x) if axis == -2 else (y, size)
        kspace = fft2c(crop_or_pad(ifft2c(acquisition.kspace), *shape))
        planes = {
            name: value.narrow(axis, 0, size)
            for name in ("mask", "probability")
            if (value := getattr(acquisition, name)) is not None
        }
        acquisition = replace(acquisition, kspace=kspace, **planes)
    return acquisition
