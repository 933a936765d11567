"""A scan that checks its own reconstruction: error of what was not sampled, and error bars, against the truth

The T1W volume of subject 04 at 128x128, every sixth slice, acquired with masks of several kinds, one for each slice or one for all, and
reconstructed with the bundled weights (network alone); four such scans of each kind. `reconstruct --self-check` holds a tenth and a fifth of the
samples out in turn. The truth: the mean squared error of the coil images at locations without a sample where one could have been
(of coils, with the maps that the reconstruction used). Wanted: within 15 % for each volume. `--uncertainty` scales error bars on half of the held-out samples;
its coverage is the share of the other half within 90 % bars, wanted 87 to 93 %. The last two columns are of magnitude images: which share of the pixels is within
the error map of its truth, and the correlation of the two over the pixels, which show how far the map goes beyond what it claims. And the raw scan of `benchmark raw`, which nobody knows the truth of:
its coverage. Simulated k-space, but for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition, concatenate
from mri_n2n.benchmarks.common import SEED, Setting, table, verdict
from mri_n2n.benchmarks.raw import NAME as RAW
from mri_n2n.benchmarks.subjects import TEST_CONTRAST, data_folder, test_sources
from mri_n2n.checkpoint import BUNDLED, load_network
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.errors import NotFoundError
from mri_n2n.files import atomic_output
from mri_n2n.formats import open_scan
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.masks import draw_mask
from mri_n2n.report import Panel, montage
from mri_n2n.simulation import measure, seeded, sensitivities
from mri_n2n.trust.folds import divide
from mri_n2n.trust.self_check import Checked, check_itself

MATRIX, EVERY, SCANS = 128, 6, 4
WITHIN, LEAST, MOST = 0.15, 0.87, 0.93


@dataclass(frozen=True)
class Case:
    title: str
    kind: str
    acceleration: float
    coils: int = 1
    noise: float = 0.0
    one_mask: bool = False


CASES = (
    Case("one coil, roulette 4x", "roulette", 4.0),
    Case("one coil, roulette 10x", "roulette", 10.0),
    Case("the same, one mask for all slices", "roulette", 10.0, one_mask=True),
    Case("one coil, roulette 10x, noise 2 %", "roulette", 10.0, noise=0.02),
    Case("one coil, Gaussian points 6x", "gaussian-points", 6.0),
    Case("8 coils, Gaussian lines 6x", "gaussian-lines", 6.0, 8),
    Case("the same, one mask for all slices", "gaussian-lines", 6.0, 8, one_mask=True),
    Case("8 coils, Gaussian lines 6x, noise 2 %", "gaussian-lines", 6.0, 8, 0.02),
    Case("8 coils, random lines 4x", "random-lines", 4.0, 8),
    Case("8 coils, equispaced lines 4x", "equispaced-lines", 4.0, 8),
)


@dataclass(frozen=True)
class Outcome:
    """truth: of the locations that the check speaks for. within, correlation: of the error map and the true error of magnitudes."""

    checked: Checked
    truth: float
    within: float
    correlation: float
    panels: list[Panel]


def scanned(case: Case, full: Tensor, number: int) -> Acquisition:
    """Full k-space (slices, coils, y, x), measured: with one mask, or each slice with one of its own."""
    draw = seeded(SEED, "self-check", case.title, number)
    mask = partial(draw_mask, case.kind, (MATRIX, MATRIX), case.acceleration, draw, hermitian=case.coils == 1)
    parts = [full] if case.one_mask else full.split(1)
    return concatenate_slices([measure(part, mask(), draw, noise_variance=case.noise**2) for part in parts])


def concatenate_slices(parts: list[Acquisition]) -> Acquisition:
    return parts[0] if len(parts) == 1 else concatenate(parts)


def outcome(case: Case, images: Tensor, number: int, network: torch.nn.Module) -> Outcome:
    """Of true images (slices, 1, y, x)."""
    coil_images = images
    if case.coils > 1:
        coil_images = images * sensitivities(case.coils, (MATRIX, MATRIX), seeded(SEED, "trust maps"))
    full = fft2c(coil_images)
    scan = scanned(case, full, number)
    if case.coils > 1:
        scan, _ = with_sensitivity_maps(scan)
    read = lambda start, stop: scan.slices(torch.arange(start, stop))  # noqa: E731
    found = reconstruct_acquisition(network, scan)
    maps = scan.sensitivity_maps
    wrong = (fft2c(found if maps is None else maps * found) - full).abs().double().square().sum(dim=1)
    checked = check_itself(
        read, partial(reconstruct_acquisition, network), len(images), len(images), estimates=True, bars=True
    )
    planes = [value.expand(len(images), 1, MATRIX, MATRIX)[:, 0] for value in (scan.mask, scan.probability)]
    divided = [divide(*pair, with_maps=maps is not None, draw=seeded(SEED)) for pair in zip(*planes, strict=True)]
    spoken_for = torch.stack([torch.zeros(MATRIX, MATRIX) if one is None else one.spoken_for for one in divided])
    truth = (wrong * spoken_for).sum().item() / wrong.numel()
    error, bars = (found.abs() - images.abs()).abs()[:, 0], checked.bars.radius
    middle = len(images) // 2
    most = 3 * error[middle].square().mean().sqrt().item()
    shown = (("image", found.abs()[:, 0], 0.8), ("error", error, most), ("error map", bars, most))
    panels = [(f"{case.title}: {name}", one[middle].numpy(), (0.0, high)) for name, one, high in shown]
    correlation = float(np.corrcoef(error.flatten().numpy(), bars.flatten().numpy())[0, 1])
    return Outcome(checked, truth, (error <= bars).double().mean().item(), correlation, panels)


def run(setting: Setting) -> str:
    data, quick = data_folder(setting.data), setting.quick
    source = next((s for s in test_sources(data, MATRIX) if TEST_CONTRAST in s.name), None)
    if source is None:
        raise NotFoundError(f"the test subject in {data} has no {TEST_CONTRAST} volume")
    images, (network, _) = ifft2c(source.load()[:: 24 if quick else EVERY]), load_network(BUNDLED)
    rows, panels, far, off = [], [], [], []
    for case in CASES[::4] if quick else CASES:
        found = [outcome(case, images, number, network) for number in range(1 if quick else SCANS)]
        rows.append([case.title, *described(found)])
        if case.acceleration == 10.0 or case.coils > 1 and not case.noise:
            panels += found[0].panels
        far += [f"{case.title} ({ratio:.2f})" for ratio in map(ratio_of, found) if ratio and abs(ratio - 1) > WITHIN]
        coverage = float(np.mean([one.checked.bars.coverage for one in found]))
        off += [] if LEAST <= coverage <= MOST else [f"{case.title} ({coverage:.1%})"]
    header = [
        "",
        "PSNR of what was not sampled, truth (dB)",
        "estimated MSE / truth, each scan",
        "truth within 95 % interval",
        "coverage of error bars",
        "pixels within the map",
        "correlation",
    ]
    text = table(header, rows)
    text += f"\n- Within {WITHIN:.0%} for each volume: {verdict(not far)}{listed(far)}."
    text += f"\n- Coverage of 90 % bars within {LEAST:.0%} to {MOST:.0%}: {verdict(not off)}{listed(off)}."
    text += of_raw(next(data.rglob(f"{RAW}.npy"), None), network)
    if setting.docs is not None:
        with atomic_output(setting.docs / "images" / "selfcheck.png", force=True) as temporary:
            montage(panels, temporary, columns=6, note="simulated k-space")
        text += "\n\n![image, error and error map](images/selfcheck.png)"
    return text + "\n"


def listed(cases: list[str]) -> str:
    return f": not {'; '.join(cases)}" if cases else ""


def ratio_of(one: Outcome) -> float | None:
    return None if one.checked.error is None else one.checked.error.mse.value / one.truth


def described(found: list[Outcome]) -> list[object]:
    """Cells of a row."""
    ratios = [ratio for ratio in map(ratio_of, found) if ratio is not None]
    inside = [one.checked.error.mse.low <= one.truth <= one.checked.error.mse.high for one in found if ratio_of(one)]
    of = lambda name: float(np.mean([getattr(one, name) for one in found]))  # noqa: E731
    coverage = np.mean([one.checked.bars.coverage for one in found])
    said = ", ".join(f"{ratio:.2f}" for ratio in ratios) or f"says nothing: {found[0].checked.silence[0]}"
    counted = f"{sum(inside)} of {len(inside)}" if inside else ""
    return [-10 * math.log10(of("truth")), said, counted, f"{coverage:.1%}", f"{of('within'):.1%}", of("correlation")]


def of_raw(file: Path | None, network: torch.nn.Module) -> str:
    """Of the raw scan, in words; nothing where it is not among the data."""
    if file is None:
        return ""
    scan, _ = with_sensitivity_maps(open_scan(file, "npy-coils").read(0, 1))
    checked = check_itself(lambda *_: scan, partial(reconstruct_acquisition, network), 1, 1, estimates=True, bars=True)
    image = reconstruct_acquisition(network, scan).abs().max().item()
    psnr = [10 * math.log10(image**2 / value) for value in (checked.error.mse.value, checked.error.mse.high)]
    bars = checked.bars
    inside = verdict(LEAST <= bars.coverage <= MOST)
    return (
        f"\n- The raw 8-coil scan (probability estimated from its mask, noise unknown and so included): PSNR of what was not sampled {psnr[0]:.2f} dB "
        f"(at least {psnr[1]:.2f}); coverage {bars.coverage:.1%} of {bars.tested} held-out samples, {inside}."
    )
