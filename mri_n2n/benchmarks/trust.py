"""Error without a reference: estimated from a second acquisition, against the truth

The T1W volume of subject 04 at 128x128, reconstructed with the bundled weights (network alone) from one acquisition,
10x roulette with one coil and 6x Gaussian lines with 8 simulated coils (one mask for all slices), without noise and with complex noise
of a standard deviation of 2 % of the maximum. Then 200 second acquisitions are drawn, each with noise of its own and a mask for all slices (where it says so: one for
each slice) of the same kind, and the error is estimated from each as `evaluate --second-acquisition` does, told the noise variance; with noise also from
two of them, not told, as with `--third-acquisition`. The truth is the mean squared error of the coil images, sum over coils of |S' x' - S x|^2, with the image x' and
the maps S' that the reconstruction used; with one coil that of the complex image. Intervals are those of this scan: the
chance of the second mask and noise. Volume: over all slices, PSNR by the image's own maximum. Simulated k-space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.benchmarks.common import SEED, Setting, table, verdict
from mri_n2n.benchmarks.subjects import TEST_CONTRAST, data_folder, test_sources
from mri_n2n.checkpoint import BUNDLED, load_network
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.errors import NotFoundError
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.masks import draw_mask
from mri_n2n.simulation import measure, seeded, sensitivities
from mri_n2n.trust.design import Design, design_of
from mri_n2n.trust.error_estimate import Estimate, Level, Terms, estimate, level_of_two, terms_of

MATRIX, DRAWS = 128, 200
NOISE = 0.02


@dataclass(frozen=True)
class Case:
    title: str
    kind: str
    acceleration: float
    coils: int
    noise: float
    third: bool = False
    for_each: bool = False  # slice, a mask of its own


CASES = (
    Case("one coil, roulette 10x", "roulette", 10.0, 1, 0.0),
    Case("the same, a mask for each slice", "roulette", 10.0, 1, 0.0, for_each=True),
    Case("one coil, roulette 10x, noise", "roulette", 10.0, 1, NOISE),
    Case("the same, with a third acquisition", "roulette", 10.0, 1, NOISE, third=True),
    Case("8 coils, Gaussian lines 6x", "gaussian-lines", 6.0, 8, 0.0),
    Case("the same, a mask for each slice", "gaussian-lines", 6.0, 8, 0.0, for_each=True),
    Case("8 coils, Gaussian lines 6x, noise", "gaussian-lines", 6.0, 8, NOISE),
    Case("the same, with a third acquisition", "gaussian-lines", 6.0, 8, NOISE, third=True),
)


@dataclass(frozen=True)
class Reconstructed:
    """predicted: F S' x' (slices, coils, y, x). full: F S x of the truth. peak: of the image."""

    predicted: Tensor
    full: Tensor
    peak: float

    @property
    def error(self) -> float:
        """The mean squared error of an image."""
        slices, _, y, x = self.full.shape
        return (self.predicted - self.full).abs().double().square().sum().item() / (slices * y * x)


def reconstructed(case: Case, images: Tensor) -> Reconstructed:
    """Of the true images (slices, 1, y, x)."""
    if case.coils > 1:
        images = images * sensitivities(case.coils, tuple(images.shape[-2:]), seeded(SEED, "trust maps"))
    full = fft2c(images)
    first = drawn(case, full, "first")
    if case.coils > 1:
        first, _ = with_sensitivity_maps(first)
    network, _ = load_network(BUNDLED)
    found = reconstruct_acquisition(network, first)
    maps = first.sensitivity_maps
    return Reconstructed(fft2c(found if maps is None else maps * found), full, found.abs().max().item())


def drawn(case: Case, full: Tensor, *about: object) -> Acquisition:
    draw = seeded(SEED, "trust", case.kind, case.noise, *about)
    hermitian = case.coils == 1
    sampling = draw_mask(case.kind, tuple(full.shape[-2:]), case.acceleration, draw, hermitian=hermitian)
    return measure(full, sampling, draw, noise_variance=case.noise**2)


def estimated(case: Case, image: Reconstructed, number: int) -> Estimate:
    """From one second acquisition, or from two."""
    slices, _, y, x = image.full.shape
    if case.for_each:
        parts = [
            part for index in range(slices) for part in _parts(case, image, slice(index, index + 1), number, index)[0]
        ]
        return estimate(parts, slices * y * x)
    parts, doubt = _parts(case, image, slice(None), number)
    return estimate(parts, slices * y * x, doubt)


def _parts(
    case: Case, image: Reconstructed, of: slice, number: int, *about: object
) -> tuple[list[tuple[Terms, Design]], float]:
    """(what each mask says of slices, doubt of the noise level)."""
    several = [drawn(case, image.full[of], number, part, *about) for part in range(1 + case.third)]
    level = Level(torch.tensor(case.noise**2, dtype=torch.float64))
    if case.third:
        both = (several[0].mask * several[1].mask)[0, 0] > 0
        level = level_of_two([(a - b)[:, both] for a, b in zip(*(one.kspace for one in several), strict=True)])
    parts = []
    for one in several:
        mask = one.mask[0, 0]
        terms = [terms_of(residual, mask, level.variance) for residual in one.mask * (image.predicted[of] - one.kspace)]
        total = sum(terms[1:], terms[0]).times(1 / len(several))
        parts.append((total, design_of(mask, one.probability[0, 0])))
    return parts, level.doubt


def run(setting: Setting) -> str:
    data, quick = data_folder(setting.data), setting.quick
    source = next((s for s in test_sources(data, MATRIX) if TEST_CONTRAST in s.name), None)
    if source is None:
        raise NotFoundError(f"the test subject in {data} has no {TEST_CONTRAST} volume")
    images = ifft2c(source.load()[:: 24 if quick else 1])
    rows, said = [], []
    for case in CASES:
        image = reconstructed(case, images)
        found = [estimated(case, image, number) for number in range(10 if quick else DRAWS)]
        row, remark = judged(case, image, found)
        rows.append(row)
        said.append(remark)
    header = [
        "",
        "PSNR, truth (dB)",
        "PSNR, estimates: mean (dB)",
        "5 % to 95 % of them",
        "bias of MSE",
        "covered by 95 %",
    ]
    return table(header, rows) + "".join(said)


def judged(case: Case, image: Reconstructed, found: list[Estimate]) -> tuple[list, str]:
    """(row, verdicts)."""
    psnr = lambda value: 10 * math.log10(image.peak**2 / value) if value > 0 else math.inf  # noqa: E731
    values, truth = np.array([one.value for one in found]), image.error
    bias, error = values.mean() / truth - 1, 2 * values.std(ddof=1) / len(values) ** 0.5 / truth
    covered = float(np.mean([one.low <= truth <= one.high for one in found]))
    decibels = sorted(psnr(value) for value in values)
    low, high = (decibels[round(share * (len(decibels) - 1))] for share in (0.05, 0.95))
    mean = psnr(values.mean())
    row = [case.title, psnr(truth), mean, f"{low:.2f} to {high:.2f}", f"{bias:+.2%} ± {error:.2%}", f"{covered:.1%}"]
    within = abs(bias) <= (max(0.02, error) if case.noise else 0.02)
    remark = f"\n- {case.title}: bias under 2 %{' or its own interval' if case.noise else ''}, {verdict(within)}"
    remark += f"; covered in 92 to 98 % of the draws, {verdict(0.92 <= covered <= 0.98)}"
    if not case.noise:
        most = max(abs(low - psnr(truth)), abs(high - psnr(truth)))
        remark += f"; within 0.15 dB in 90 % of the draws, {verdict(most <= 0.15)} ({most:.2f})"
    return row, remark + "."
