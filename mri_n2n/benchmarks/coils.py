"""Several coils: the time of sensitivity maps beside sigpy's, how far off they are, and the memory of a whole reconstruction

`maps` and `memory`: a simulated scan (closed-form phantoms, no data needed): 16 coils, 320x320, 4x undersampled lines with a full centre of 24,
noise of 0.5 % of the maximum, in a file of fastMRI's layout. Maps: seconds per slice of `coils.sensitivity_maps` and of sigpy's
`EspiritCalib`, which is not part of this package, with the same calibration width, kernel, threshold and crop and the same
number of threads, in turns in one run; their largest difference, up to phase, over pixels inside the object where both are
not zero. Memory: the most that a process of `mri-n2n reconstruct` ever held (VmHWM of Linux) with the bundled weights on the
CPU, less that of the same command on one slice of 32x32: interpreter, libraries, weights. It is held against 1.5 times the sum of the
k-space of the slices in flight, those that are read and reconstructed at once, all coils as stored, and the model, the
weights as stored; one slice of one coil shows what the network takes at work. Scans of 16 slices and of 256 tell whether it grows with
them. They are measured with one pass of the network per slice, the mean over mirror images, the default, on a short one.
`regions`: how far off maps are that come from few samples, on slices of the test subject's volumes under 8 simulated coils, without
noise and with: |c - S S^H c| / |c| over the coil images c, all samples known, S the maps found from a calibration region alone. In
bold what is in use.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mri_n2n.benchmarks.common import SEED, Setting, peak_memory, table, verdict
from mri_n2n.benchmarks.subjects import data_folder, test_sources
from mri_n2n.checkpoint import BUNDLED
from mri_n2n.coils import (
    PATCHES,
    SIDE,
    calibration_region,
    low_resolution_maps,
    patch_side,
    region_of_maps,
    sensitivity_maps,
)
from mri_n2n.formats import write_scan
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import PIXELS_AT_ONCE
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.phantom import phantom_kspace, random_head
from mri_n2n.simulation import seeded, sensitivities

PARTS = ("maps", "memory", "regions")
COILS, MATRIX, CENTER, EVERY, NOISE = 16, 320, 24, 4, 0.005
SLICES = (16, 256)
MIRRORED_SLICES = 4
HEADS = 4  # different slices; they come again in a longer scan
ESPIRIT = {"kernel": 6, "threshold": 0.02, "crop": 0.95}
REGION_COILS, REGION_NOISE, REGION_SIDES = 8, 0.05, (*range(4, 11), 12, 14, 16, 20)
MIB = 2**20


def phantom_slices(count: int, matrix: int) -> list[Tensor]:
    """Full k-space (coils, y, x) of `count` heads under the same coils, with noise of `NOISE` of the image's maximum."""
    found = []
    for index in range(count):
        head = random_head(seeded(SEED, "coils", "head", index))
        kspace = phantom_kspace((matrix, matrix), COILS, seeded(SEED, "coils"), real=False, head=head)
        noise = torch.randn(kspace.shape, dtype=kspace.dtype, generator=seeded(SEED, "coils", "noise", index))
        found.append(kspace + NOISE * root_sum_of_squares(ifft2c(kspace[None])).max() * noise)
    return found


def line_mask(matrix: int) -> Tensor:
    """(x,): every fourth line, and the central ones."""
    mask = torch.zeros(matrix)
    mask[::EVERY] = 1
    mask[matrix // 2 - CENTER // 2 :][:CENTER] = 1
    return mask


def write_file(path: Path, heads: list[Tensor], slices: int) -> None:
    """The scan file of `slices` slices, the heads in turn."""
    coils, matrix = heads[0].shape[0], heads[0].shape[-1]
    mask = line_mask(matrix)
    write_scan(
        path,
        ((heads[index % len(heads)] * mask).numpy() for index in range(slices)),
        (slices, coils, matrix, matrix),
        mask=mask.numpy(),
        attributes={"simulated": True},
    )


def in_turns(first: Callable[[], object], second: Callable[[], object], count: int) -> tuple[list[float], list[float]]:
    """Seconds of both, `count` times in turns; one run of each before them does not count."""
    seconds = ([], [])
    for number in range(count + 1):
        for step, kept in zip((first, second), seconds):
            started = time.perf_counter()
            step()
            if number:
                kept.append(time.perf_counter() - started)
    return seconds


def disagreement(maps: np.ndarray, theirs: np.ndarray, inside: np.ndarray) -> float:
    """Largest difference of maps (coils, y, x) over pixels inside where both are not zero, after the best common phase."""
    where = inside & maps.any(axis=0) & theirs.any(axis=0)
    ours, theirs = maps[:, where], theirs[:, where]
    turn = (ours.conj() * theirs).sum(axis=0)
    return float(np.abs(ours * turn / np.abs(turn) - theirs).max())


def maps_section(heads: list[Tensor], quick: bool) -> str:
    """The table of times and agreement; one line when sigpy is not installed."""
    try:
        from sigpy.mri.app import EspiritCalib
    except ImportError:
        started = time.perf_counter()
        sensitivity_maps(heads[0][None], (CENTER, CENTER), **ESPIRIT)
        return f"\nsigpy is not installed, so there is no comparison; maps of one slice: {time.perf_counter() - started:.2f} s.\n"
    mask = line_mask(heads[0].shape[-1])
    rows = []
    for number, head in enumerate(heads[:1] if quick else heads):
        kspace = head * mask
        found = {}

        def ours(kspace: Tensor = kspace, found: dict = found) -> None:
            found["ours"] = sensitivity_maps(kspace[None], (CENTER, CENTER), **ESPIRIT)[0].numpy()

        def theirs(kspace: Tensor = kspace, found: dict = found) -> None:
            options = {"calib_width": CENTER, "kernel_width": 6, "thresh": 0.02, "crop": 0.95, "show_pbar": False}
            found["theirs"] = EspiritCalib(kspace.numpy(), **options).run()

        mine, other = in_turns(ours, theirs, 1 if quick else 3)
        image = root_sum_of_squares(ifft2c(head[None]))[0].numpy()
        apart = disagreement(found["ours"], found["theirs"], image > 0.1 * image.max())
        rows.append([number, mine, other, [b / a for a, b in zip(mine, other)], apart])
    ratios = [ratio for row in rows for ratio in row[3]]
    shown = [[n, statistics.median(a), statistics.median(b), f"{apart:.1e}"] for n, a, b, _, apart in rows]
    worst = max(row[-1] for row in rows)
    return table(["slice", "maps, s", "sigpy's, s", "largest difference"], shown) + (
        f"\nsigpy's time over ours: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); wanted: at least 1, "
        f"{verdict(statistics.median(ratios) >= 1)}. Largest difference {worst:.1e}; wanted: at most 1e-2, {verdict(worst <= 1e-2)}. "
        f"Both with {torch.get_num_threads()} threads allowed.\n"
    )


def peak(path: Path, output: Path, *options: str) -> tuple[float, float]:
    """(MiB, seconds): the most memory that `mri-n2n reconstruct` of one file held, and how long it took."""
    command = ["reconstruct", str(path), "-o", str(output), "--device", "cpu", "--quiet", *options]
    started = time.perf_counter()
    return peak_memory(command), time.perf_counter() - started


def memory_section(heads: list[Tensor], folder: Path, quick: bool) -> str:
    """The table of memory and time of whole processes."""
    if not Path("/proc/self/status").exists():
        return "The memory of a process is measured on Linux only.\n"
    matrix = heads[0].shape[-1]
    write_file(folder / "tiny.h5", phantom_slices(1, 32), 1)
    base, base_seconds = peak(folder / "tiny.h5", folder / "out")
    in_flight = max(1, PIXELS_AT_ONCE // (COILS * matrix**2))
    kspace, model = in_flight * COILS * matrix**2 * 8 / MIB, BUNDLED.stat().st_size / MIB
    allowed = 1.5 * (kspace + model)
    write_file(folder / "single.h5", [head[:1] for head in heads], 1)  # what the network takes at work
    single, single_seconds = peak(folder / "single.h5", folder / "out", "--no-flips")
    rows, peaks = [[1, 1, "--no-flips", single, single - base, single_seconds]], []
    long = (2, 4) if quick else SLICES
    for slices, options in [(n, ("--no-flips",)) for n in long] + ([] if quick else [(MIRRORED_SLICES, ())]):
        scan = folder / f"{slices}.h5"
        write_file(scan, heads, slices)
        most, seconds = peak(scan, folder / "out", *options)
        peaks.append(most)
        rows.append([COILS, slices, *(options or ["default"]), most, most - base, seconds / slices])
    header = ["coils", "slices", "", "peak, MiB", "above the baseline, MiB", "seconds per slice"]
    above, grown = max(peaks) - base, peaks[1] / peaks[0]
    return table(header, rows) + (
        f"\nBaseline {base:.0f} MiB in {base_seconds:.1f} s. In flight: {in_flight} slice{'s' * (in_flight > 1)}, {kspace:.1f} MiB of "
        f"k-space, and weights of {model:.1f} MiB; wanted: at most {allowed:.1f} MiB above the baseline, "
        f"{verdict(above <= allowed)} (at most {above / (kspace + model):.1f} times their sum, wanted 1.5). {long[1]} slices "
        f"take {grown:.3f} of the memory of {long[0]}; wanted: at most 1.05, {verdict(grown <= 1.05)}.\n"
    )


def calibration_mask(shape: tuple[int, int], side: int, lines: bool) -> Tensor:
    """(y, x): `side` x `side` samples about the centre, or as many whole lines."""
    mask = torch.zeros(shape)
    first = [n // 2 - side // 2 for n in shape]
    mask[slice(None) if lines else slice(first[0], first[0] + side), first[1] : first[1] + side] = 1
    return mask


def off(images: Tensor, maps: Tensor) -> float:
    """Which share of coil images (slices, coils, y, x), by norm, maps lose."""
    return ((images - maps * (maps.conj() * images).sum(dim=1, keepdim=True)).norm() / images.norm()).item()


def regions_section(data: Path, quick: bool) -> str:
    """The table of what maps lose, by calibration region and by how they are found."""
    matrix = (64, 64) if quick else (256, 256)
    quiet, noisy = [], []  # (coil images, k-space, noise variance)
    for number, source in enumerate(test_sources(data, matrix[0])):
        image = ifft2c(source.load()[source.slices // 2][None])
        images = image * sensitivities(REGION_COILS, matrix, seeded(SEED, "regions", number))
        level = REGION_NOISE * image.abs().max().item()
        noise = level * torch.randn(
            images.shape, dtype=images.dtype, generator=seeded(SEED, "regions", "noise", number)
        )
        quiet.append((images, fft2c(images), 0.0))
        noisy.append((images, fft2c(images) + noise, level**2))
    rows = []
    for lines in (True, False):
        for side in REGION_SIDES[::4] if quick else REGION_SIDES:
            mask = calibration_mask(matrix, side, lines)
            high, wide = calibration_region(mask)
            used = patch_side(region_of_maps((high, wide)))
            cells = []
            for kernel in (None, *(k for k, _ in PATCHES[::-1])):
                if kernel is not None and side < kernel + 1:
                    cells.append("")
                    continue
                region = (min(high, max(SIDE, SIDE**2 // wide)), min(wide, max(SIDE, SIDE**2 // high)))
                texts = []
                for scans in (quiet, noisy):
                    found = [
                        low_resolution_maps(kspace * mask)
                        if kernel is None
                        else sensitivity_maps(kspace * mask, region, kernel=kernel, noise_variance=variance)
                        for _, kspace, variance in scans
                    ]
                    losses = [off(images, maps) for (images, *_), maps in zip(scans, found, strict=True)]
                    texts.append(f"{statistics.mean(losses):.1%}")
                text = ", ".join(texts)
                cells.append(f"**{text}**" if kernel == used else text)
            rows.append([f"{side} lines" if lines else f"{side} x {side}", *cells])
    sides = [f"ESPIRiT, patches of {k}" for k, _ in PATCHES[::-1]]
    return table(["calibration region", "low resolution", *sides], rows) + (
        f"\nMeans over {len(quiet)} scans, without noise and with noise of {REGION_NOISE:.0%} of the image's maximum, of known variance.\n"
    )


def run(setting: Setting, part: str) -> str:
    quick = setting.quick
    if part == "regions":
        return regions_section(data_folder(setting.data), quick)
    heads = phantom_slices(1 if quick else HEADS, 96 if quick else MATRIX)
    if part == "maps":
        return maps_section(heads, quick)
    with tempfile.TemporaryDirectory() as folder:
        return memory_section(heads, Path(folder), quick)
