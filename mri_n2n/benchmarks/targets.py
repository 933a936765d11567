"""Noisy against clean targets: the experiment of Lehtinen et al. 2018 on other data

The 2018 recipe at 128x128, trained twice with equal steps and seed: once with undersampled targets, new masks at every
step (`--pairs redrawn`, a simulation that no study can repeat), once with clean ones. Reported on the T1W volume of
subject 04, which no choice was made on; trained on subjects 01, 03, 09, validated on 12. Simulated k-space of magnitude
images (open_ms), roulette 10x.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mri_n2n.benchmarks.common import (
    Setting,
    comparison_options,
    reconstruct_with,
    score,
    table,
    trained,
    verdict,
    zero_filled,
)
from mri_n2n.benchmarks.subjects import TestVolume, data_folder, test_volume
from mri_n2n.fourier import ifft2c
from mri_n2n.operators import density_weights, root_sum_of_squares
from mri_n2n.options import TrainOptions

STEPS = 1500
TARGETS = {"undersampled": "noise2noise-2018", "clean": "supervised-2018"}


def recipe_options(data: Path, targets: str, quick: bool) -> TrainOptions:
    """The 2018 recipe: U-Net, batch 16, redrawn masks."""
    return comparison_options(
        data,
        steps=4 if quick else STEPS,
        network="unet",
        batch_size=16,
        learning_rate=1e-3,
        protocol={
            "method": TARGETS[targets],
            "pairs": "redrawn",
            "flips": False,
        },
    )


def density_compensated(test: TestVolume) -> np.ndarray:
    """Magnitude of the zero-filled images whose samples are divided by their probability, (slices, y, x)."""
    acquisition = test.acquisition
    return root_sum_of_squares(
        ifft2c(density_weights(acquisition.mask, acquisition.probability) * acquisition.kspace)
    ).numpy()


def run(setting: Setting) -> str:
    data, output, quick = data_folder(setting.data), setting.output, setting.quick
    test = test_volume(data, 128)
    before = score(zero_filled(test), test.reference)
    divided = score(density_compensated(test), test.reference)
    rows = [
        ["zero-filled", "", "", before["slice_psnr"], before["psnr"], f"{before['ssim']:.3f}"],
        [
            "the recipe's input: zero-filled, samples / p",
            "",
            "",
            divided["slice_psnr"],
            divided["psnr"],
            f"{divided['ssim']:.3f}",
        ],
    ]
    found = {}
    for targets in TARGETS:
        folder = output / f"recipe-{targets}{'-quick' if quick else ''}"
        header = trained(recipe_options(data, targets, quick), folder)
        found[targets] = after = score(reconstruct_with(folder / "weights.safetensors", test), test.reference)
        rows.append(
            [
                f"{targets} targets",
                header["step"],
                header["seconds"] / 60,
                after["slice_psnr"],
                after["psnr"],
                f"{after['ssim']:.3f}",
            ]
        )
    gap = found["clean"]["slice_psnr"] - found["undersampled"]["slice_psnr"]
    gain = min(f["slice_psnr"] for f in found.values()) - before["slice_psnr"]
    return table(["2018 recipe", "steps of 16", "minutes", "PSNR per slice (dB)", "PSNR volume (dB)", "SSIM"], rows) + (
        f"\nClean targets are {gap:+.2f} dB from undersampled ones (wanted: within 0.15, {verdict(abs(gap) <= 0.15)}); the lesser is {gain:.2f} dB above zero-filled "
        f"(wanted: 6, {verdict(gain >= 6)}). PSNR per slice: magnitudes clamped to [0, 1], peak 1 = the volume's maximum, mean over slices; "
        "volume: fastMRI's.\n"
    )
