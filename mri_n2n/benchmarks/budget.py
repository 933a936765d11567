"""A finite budget of scan time: many slices measured twice, or few measured often

After Lehtinen et al. 2018 (supplement, "capture budget"): the scan time of 32 slices measured 20 times each. Case 1: targets that are as clean as the
budget allows, the mean of 19 noisy repetitions of 32 slices, one input each. Case 2: the same 640 measurements, every pair of
repetitions of a slice as input and target. Case 3: the same scan time spent on 320 slices, measured twice each. Complex
noise of standard deviation 0.1 of the maximum, 128x128, slices of subjects 01, 03, 09, chosen evenly; the residual U-Net of `--body n2v`
with 16 channels, equal training time (equal steps, which cost the same). Tested as `benchmark corruptions`, part gaussian-fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.batches import moved_pair
from mri_n2n.benchmarks.common import Setting, hardware, made_now, steps_in, table, verdict
from mri_n2n.benchmarks.corruptions import CHANNELS, ROWS, test_images, tested, trainings
from mri_n2n.benchmarks.methods import kept_step_seconds
from mri_n2n.benchmarks.subjects import SEED, data_folder
from mri_n2n.checkpoint import load_network, save_tensors
from mri_n2n.device import choose_device, choose_precision
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.pairs import Pair, joined
from mri_n2n.protocol import Protocol
from mri_n2n.simulation import seeded
from mri_n2n.training import new_network, set_schedule, sources_of, training_step, with_seed

SLICES, REPETITIONS = 32, 20
DEVIATION = 0.1
CASES = {
    "case 1: means of 19 as targets": (SLICES, REPETITIONS, True),
    "case 2: the same measurements, in pairs": (SLICES, REPETITIONS, False),
    "case 3: ten times the slices, twice each": (SLICES * REPETITIONS // 2, 2, False),
}


def measurement(image: Tensor, index: int, repetition: int) -> Tensor:
    """A noisy image (1, 1, y, x), the same for ever."""
    noise = torch.randn(image.shape, dtype=torch.complex64, generator=seeded(SEED, "budget", index, repetition))
    return image + DEVIATION * noise


def pairs_of(images: Tensor, repetitions: int, averaged: bool, batch_size: int) -> Iterator[list[Pair]]:
    """Endless batches of a case: images (slices, 1, y, x), each measured `repetitions` times."""
    draw, protocol = seeded(SEED, "budget order"), Protocol()
    while True:
        batch = []
        for _ in range(batch_size):
            index = int(torch.randint(len(images), (), generator=draw))
            image = images[index : index + 1]
            first, second = torch.randperm(repetitions, generator=draw)[:2].tolist()
            if averaged:
                first = 0
                target = sum(measurement(image, index, r) for r in range(1, repetitions)) / (repetitions - 1)
            else:
                target = measurement(image, index, second)
            given = Acquisition(fft2c(measurement(image, index, first)), torch.ones(1, 1, *image.shape[-2:]))
            pair = Pair(given, target, torch.ones(1, 1, *image.shape[-2:]), "image")
            shift = tuple(
                round((2 * torch.rand((), generator=draw).item() - 1) * protocol.translation * n)
                for n in image.shape[-2:]
            )
            axes = tuple(axis for axis in (-2, -1) if torch.rand((), generator=draw) < 0.5)
            batch.append(moved_pair(pair, shift, axes))
        yield [joined(batch)]


def run(setting: Setting) -> str:
    data, quick = data_folder(setting.data), setting.quick
    folder = setting.output / f"budget{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    base = trainings(data, "gaussian-fixed")["corrupted targets"]
    [seconds] = kept_step_seconds({"step": base}, folder, quick).values()
    options = replace(base, steps=steps_in(setting.minutes, seconds, quick))
    train = torch.cat([ifft2c(source.load()) for source in sources_of(options).train])
    device = choose_device(options.device)
    precision = choose_precision("auto", device)
    tests, found = test_images(data, ROWS["gaussian-fixed"], quick), {}
    for label, (slices, repetitions, averaged) in CASES.items():
        path = folder / f"{label[:6].replace(' ', '-')}-{options.steps}.safetensors"
        if not path.exists():
            images = train[torch.linspace(0, len(train) - 1, min(slices, len(train))).long()]
            network = with_seed(SEED, partial(new_network, options, device, precision))
            optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate, betas=(0.9, 0.99))
            batches = pairs_of(images, repetitions, averaged, options.batch_size)
            for step in range(options.steps):
                set_schedule(optimizer, options, step / options.steps)
                training_step(network, optimizer, next(batches), device, precision)
            header = {
                "network": "denoiser",
                "network_options": {"body": "n2v", "channels": CHANNELS},
                "made": made_now(),
            }
            header["training"] = {"protocol": {}}
            save_tensors(path, network.state_dict(), header)
        found[label] = tested(load_network(path)[0], tests)[0]
    rows = [[label, *CASES[label][:2], options.steps, float(np.mean(found[label]))] for label in CASES]
    means = [float(np.mean(values)) for values in found.values()]
    ordered = means[0] < means[1] < means[2]
    return (
        f"{setting.minutes:g} minutes of training each, {hardware()}.\n\n"
        + table(["", "slices", "repetitions", "steps", "PSNR per slice (dB)"], rows)
        + f"\nWanted: each case above the one before, as in the paper, {verdict(ordered)}.\n"
    )
