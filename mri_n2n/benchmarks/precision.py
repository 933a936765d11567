"""bfloat16 against float32: what training and use lose by it

The default training (unrolled network, weighted Noise2Noise on fixed pairs, roulette 10x, one coil, 128x128, batches of 2), three times
in float32 and three times with the network in bfloat16 (Fourier transforms, data consistency, loss, weights and their moving average
stay in float32), of equal steps, each pair with a seed of its own for weights, masks and order. Reported on the T1W volume of subject
04, network alone, in float32 as `reconstruct` does. Then the same weights in use, in either precision, and how far the samples of
its images are from those measured, as a share of the largest. Processors without bfloat16 emulate it: the same rounding, slowly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from mri_n2n.benchmarks.common import Setting, comparison_options, made_of, score, table, trained, verdict
from mri_n2n.benchmarks.subjects import TestVolume, data_folder, test_volume
from mri_n2n.checkpoint import load_network
from mri_n2n.device import autocast
from mri_n2n.fourier import fft2c
from mri_n2n.inference import reconstruct_acquisition

SEEDS, STEPS, EVERY = (0, 1, 2), 120, 4
PRECISIONS = ("float32", "bfloat16")
TRAINING, USE, EXACT = 0.05, 0.01, 1e-5  # dB, dB, share of the largest sample


def used(weights: Path, test: TestVolume, precision: str) -> tuple[float, float]:
    """(PSNR per slice in dB, largest distance of an image's samples from the measured ones, as a share of the largest)."""
    network, _ = load_network(weights)
    with autocast(torch.device("cpu"), precision):
        images = reconstruct_acquisition(network, test.acquisition, flips=False)
    apart = (test.acquisition.mask * fft2c(images) - test.acquisition.kspace).abs().max()
    found = score(images[:, 0].abs().numpy(), test.reference)["slice_psnr"]
    return found, (apart / test.acquisition.kspace.abs().max()).item()


def run(setting: Setting) -> str:
    data, quick = data_folder(setting.data), setting.quick
    whole = test_volume(data, 128)
    some = torch.arange(0, len(whole.full), 4 * EVERY if quick else EVERY)
    test = TestVolume(whole.full[some], replace(whole.acquisition.slices(some), noise_variance=0.0))
    rows, made = [], []
    psnr: dict[tuple[str, str], list[float]] = {
        (trained_in, in_use): [] for trained_in in PRECISIONS for in_use in PRECISIONS
    }
    apart: list[float] = []
    for seed in SEEDS[: 1 if quick else None]:
        for trained_in in PRECISIONS:
            options = comparison_options(data, steps=4 if quick else STEPS, batch_size=2, precision=trained_in)
            options = replace(options, protocol=replace(options.protocol, seed=seed))
            folder = setting.output / f"precision-{trained_in}-{seed}{'-quick' if quick else ''}"
            made.append(trained(options, folder)["made"])
            for in_use in PRECISIONS:
                found, distance = used(folder / "weights.safetensors", test, in_use)
                psnr[trained_in, in_use].append(found)
                apart.append(distance)
    for trained_in in PRECISIONS:
        each = psnr[trained_in, "float32"]
        rows.append(
            [
                trained_in,
                ", ".join(f"{one:.2f}" for one in each),
                float(np.mean(each)),
                float(np.mean(psnr[trained_in, "bfloat16"])),
            ]
        )
    differences = np.subtract(psnr["bfloat16", "float32"], psnr["float32", "float32"])
    training = float(differences.mean())
    spread = ""
    if not quick:
        low, high = stats.t.interval(0.95, len(differences) - 1, training, stats.sem(differences))
        spread = f" (95 % interval over seeds: {low:+.2f} to {high:+.2f})"
    use = max(abs(a - b) for of in PRECISIONS for a, b in zip(psnr[of, "bfloat16"], psnr[of, "float32"], strict=True))
    return (
        f"{4 if quick else STEPS} steps each. Trained on: {made_of(made)}.\n\n"
        + table(["trained in", "PSNR of each seed (dB)", "mean (dB)", "used in bfloat16 (dB)"], rows)
        + f"\n- Training in bfloat16 is {training:+.3f} dB from float32{spread}; wanted: within {TRAINING}, {verdict(abs(training) <= TRAINING)}.\n"
        f"- In use bfloat16 differs by at most {use:.4f} dB; wanted: {USE}, {verdict(use <= USE)}. (`reconstruct` takes float32.)\n"
        f"- Samples differ from those measured by at most {max(apart):.1e} of the largest; wanted: {EXACT:.0e}, {verdict(max(apart) <= EXACT)}.\n"
    )
