"""`evaluate RECON --second-acquisition SCAN`: files -> the error of a reconstruction where nobody has a reference."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.coils import combine
from mri_n2n.errors import InputError
from mri_n2n.files import one_line
from mri_n2n.formats import detect, open_scan
from mri_n2n.formats.hdf5 import checked_dataset, open_hdf5
from mri_n2n.formats.result import FORMAT as RESULT
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.masks import is_along
from mri_n2n.resample import crop_or_pad
from mri_n2n.trust.agreement import agreement
from mri_n2n.trust.design import Design, design_of
from mri_n2n.trust.error_estimate import CONFIDENCE, Estimate, Terms, estimate, product_terms, terms_of

# Residuals below this share of the samples are rounding: these samples are in the image.
ROUNDING = 1e-8


@dataclass(frozen=True)
class Quality:
    """What a second acquisition says of a reconstruction, of all slices or of one. mse: of the complex image, in squared
    intensity; psnr: dB, by the image's own largest magnitude; nmse: over the image's own energy."""

    mse: Estimate
    psnr: Estimate
    nmse: Estimate


@dataclass(frozen=True)
class Judged:
    """A reconstruction judged. coverage: the share of k-space locations that the second acquisition could have sampled, of which the
    estimate speaks. noise: where its level is from. peak: the image's largest magnitude."""

    name: str
    second: str
    volume: Quality
    slices: tuple[Quality, ...]
    peak: float
    coverage: float
    noise: str
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
        return _judged(result, acquisitions, reconstruction, second, third)


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
        """InputError for a scan of another shape."""
        slices, coils, *matrix = scan.shape
        image = scan.image_matrix or tuple(matrix)
        wanted = self.coils if self.mixing is None else self.mixing.shape[1]
        if (slices, coils, *image) != (self.shape[0], wanted, *self.shape[1:]):
            raise InputError(
                f"{one_line(scan.path)} has {slices} slices, {coils} coils and images of {image[0]} x {image[1]}; {self.path.name} was "
                f"made of {self.shape[0]}, {wanted} and {self.shape[1]} x {self.shape[2]}"
            )


def open_result(path: Path):
    """Context manager of a `Result`. Errors: NotFoundError, InputError."""
    from contextlib import contextmanager

    @contextmanager
    def opened() -> Iterator[Result]:
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

    return opened()


def _judged(result: Result, scans: list[Scan], reconstruction: Path, second: Path, third: Path | None) -> Judged:
    slices, y, x = result.shape
    designs: dict[str, Design] = {}
    shared: dict[str, Terms] = {}
    quality, peak, energy, coverage, kept, left = [], 0.0, [], 0.0, 0.0, 0.0
    single: list[tuple[Terms, Design]] = []
    for index in range(slices):
        image, maps = result.slice(index)
        residuals, masks, chances, variances = [], [], [], []
        for scan in scans:
            acquisition = _without_oversampling(scan.read(index, index + 1), (y, x), scan.path)
            kspace = acquisition.kspace if result.mixing is None else combine(result.mixing, acquisition.kspace)
            predicted = fft2c(image if maps is None else maps * image)
            mask = acquisition.mask[0, 0]
            found = agreement(predicted, kspace[0], mask)
            if found.differences:
                raise InputError(
                    f"{one_line(scan.path)} differs from {reconstruction.name} in slice {index} by {' and '.join(found.differences)}: what it says "
                    "of errors would be that"
                )
            residual = mask * (predicted - kspace[0])
            kept, left = kept + kspace.abs().square().sum().item(), left + residual.abs().square().sum().item()
            residuals.append(residual)
            masks.append(mask)
            chances.append(_probability(acquisition, scan.path)[0, 0])
            variances.append(_variance(acquisition, scan, result.mixing))
        if len(scans) == 2:
            same = torch.equal(*masks)
            mask, chance = masks[0] * masks[1], chances[0] if same else chances[0].double() * chances[1]
            terms = product_terms(*residuals, mask)
        else:
            mask, chance = masks[0], chances[0]
            if variances[0] is None:
                raise InputError(
                    f"the noise level of {one_line(second)} is not known; give --third-acquisition, with which it is not needed"
                )
            terms = terms_of(residuals[0], mask, variances[0])
        key = hashlib.sha256(mask.numpy().tobytes() + chance.double().numpy().tobytes()).hexdigest()
        if key not in designs:
            designs[key] = design_of(mask, chance)
        shared[key] = shared[key] + terms if key in shared else terms
        single.append((terms, designs[key]))
        peak = max(peak, (image.abs().square().sum(dim=0).sqrt().max()).item())
        energy.append(image.abs().double().square().sum().item())
        coverage += (chance > 0).double().mean().item() / slices
    if left <= ROUNDING * kept:
        raise InputError(
            f"{one_line(second)} says nothing of {reconstruction.name}: its samples are those of the image, which was made of them"
        )
    pixels = y * x
    whole = estimate([(shared[key], designs[key]) for key in shared], pixels * slices)
    if whole.high < 0:
        raise InputError(
            f"{reconstruction.name} is closer to {one_line(second)} than its noise allows: it had a part in the image, or its noise is less "
            "than it says"
        )
    quality = [_quality(estimate([part], pixels), peak, own / pixels) for part, own in zip(single, energy, strict=True)]
    volume = _quality(whole, peak, sum(energy) / (pixels * slices))
    noise = "not needed: the product of two acquisitions" if third is not None else "as the second acquisition says"
    simulated = [result.simulated, *(scan.simulated for scan in scans)]
    said = True if True in simulated else None if None in simulated else False
    return Judged(reconstruction.name, second.name, volume, tuple(quality), peak, coverage, noise, said)


def _quality(mse: Estimate, peak: float, energy: float) -> Quality:
    in_db = lambda value: 10 * math.log10(peak**2 / value) if value > 0 and peak > 0 else math.inf  # noqa: E731
    over = lambda value: value / energy if energy > 0 else math.nan  # noqa: E731
    return Quality(
        mse,
        Estimate(in_db(mse.value), in_db(mse.high), in_db(mse.low)),
        Estimate(*map(over, (mse.value, mse.low, mse.high))),
    )


def _probability(acquisition: Acquisition, path: Path) -> Tensor:
    if acquisition.probability is not None:
        return acquisition.probability
    if acquisition.mask.all():
        return acquisition.mask
    raise InputError(
        f"{one_line(path)} does not store the probability with which its samples were drawn, without which they cannot be weighted; "
        "convert it with its design, or acquire the second repetition fully sampled"
    )


def _variance(acquisition: Acquisition, scan: Scan, mixing: Tensor | None) -> Tensor | None:
    """E|n|^2 of a sample of each coil (coils, 1, 1), mixed as the image's were; None where it is not known."""
    coils = acquisition.kspace.shape[1]
    covariance = scan.noise_covariance
    if covariance is None and acquisition.noise_variance is not None:
        covariance = float(torch.as_tensor(acquisition.noise_variance).flatten()[0]) * torch.eye(coils)
    if covariance is None:
        return None
    covariance = covariance.to(torch.complex128)
    matrix = torch.eye(coils, dtype=torch.complex128) if mixing is None else mixing.to(torch.complex128)
    return (matrix @ covariance @ matrix.mH).diagonal().real[:, None, None]


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


def to_json(judged: Judged) -> dict:
    """As plain numbers; what JSON has no number for is None."""
    number = lambda value: value if math.isfinite(value) else None  # noqa: E731
    plain = lambda e: {name: number(getattr(e, name)) for name in ("value", "low", "high")}  # noqa: E731
    quality = lambda q: {name: plain(getattr(q, name)) for name in ("mse", "psnr", "nmse")}  # noqa: E731
    return {
        "name": judged.name,
        "second_acquisition": judged.second,
        "image": "complex",
        "interval": "scan",
        "confidence": CONFIDENCE,
        "peak": judged.peak,
        "coverage": round(judged.coverage, 6),
        "noise": judged.noise,
        "simulated": judged.simulated,
        **quality(judged.volume),
        "per_slice": [{"slice": index, **quality(one)} for index, one in enumerate(judged.slices)],
        "note": "research use only",
    }


def format_table(judged: Judged) -> str:
    """As plain text."""
    lines = [f"{'':10}  {'PSNR (dB)':>10}  {f'{CONFIDENCE:.0%} interval':>20}  {'NMSE':>10}"]
    rows = [(f"slice {index}", one) for index, one in enumerate(judged.slices)] if len(judged.slices) > 1 else []
    for name, one in [("volume", judged.volume), *rows]:
        between = f"{one.psnr.low:.2f} to {one.psnr.high:.2f}"
        lines.append(f"{name:10}  {one.psnr.value:10.2f}  {between:>20}  {one.nmse.value:10.5f}")
    lines += [
        "",
        f"Estimated from {judged.second}, without a reference: error of the complex image (that of the magnitude is at most as large), peak "
        f"{judged.peak:.4g}, its own largest magnitude. The interval is the chance of this acquisition's mask and noise.",
    ]
    if judged.coverage < 1:
        lines.append(f"It speaks of {judged.coverage:.1%} of k-space, where samples could be drawn.")
    if judged.simulated:
        lines.append("Simulated k-space: made from images, not measured.")
    return "\n".join(lines)
