"""A finite budget of scan time: many slices measured twice, or few measured often

After Lehtinen et al. 2018 (supplement, "capture budget"): the scan time of 32 slices measured 20 times each. Case 1: targets that are as clean as the
budget allows, the mean of 19 noisy repetitions of 32 slices, one input each. Case 2: the same 640 measurements, every pair of
repetitions of a slice as input and target. Case 3: the same scan time spent on 320 slices, measured twice each. Complex
noise of standard deviation 25 of 255 (of the maximum), 128x128, slices of subjects 01, 03, 09, chosen evenly; moved and mirrored as
all trainings here. The residual U-Net of `--body n2v` with 16 channels, batches of 1, the moving average of its weights. Three
trainings of each case, which differ in initial weights and order; equal time (equal steps, which cost the same), so nine trainings
of `--minutes` in all. Tested as `benchmark corruptions`, part gaussian-fixed. Differences are paired, of the same seed and
slice: their mean, with two standard errors over all seeds and slices, which are too narrow, as slices of one subject are alike and
share three networks; and the least and the most of the three seeds' means, which verdicts go by: each case above the one
before with every seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mri_n2n.acquisition import Acquisition
from mri_n2n.batches import drawn_movement, moved_pair
from mri_n2n.benchmarks.common import SEED, Setting, digest, made_now, made_of, steps_in, table, verdict
from mri_n2n.benchmarks.corruptions import NOISY, ROWS, test_images, tested, trainings
from mri_n2n.benchmarks.methods import kept_step_seconds
from mri_n2n.benchmarks.subjects import data_folder
from mri_n2n.checkpoint import load_network, save_tensors
from mri_n2n.device import choose_device, choose_precision
from mri_n2n.errors import NotFoundError
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.options import TrainOptions
from mri_n2n.pairs import Pair, joined
from mri_n2n.schedule import set_schedule
from mri_n2n.simulation import seeded
from mri_n2n.steps import new_optimizer, training_step
from mri_n2n.training import moving_average, new_network, sources_of, with_seed

TESTED = ROWS["gaussian-fixed"]
DEVIATION = TESTED.protocol["strength"][0]
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """averaged: one repetition as input, the mean of the others as target."""

    slices: int
    repetitions: int
    averaged: bool = False


CASES = {
    "case 1: means of 19 as targets": Case(32, 20, averaged=True),
    "case 2: the same measurements, in pairs": Case(32, 20),
    "case 3: ten times the slices, twice each": Case(320, 2),
}


def measurements(images: Tensor, repetitions: int) -> Tensor:
    """Noisy images (slices, repetitions, y, x) of images (slices, 1, y, x)."""
    noise = [
        torch.randn((repetitions, *image.shape[1:]), dtype=torch.complex64, generator=seeded(SEED, "budget", index))
        for index, image in enumerate(images)
    ]
    return images + DEVIATION * torch.stack(noise)


def batches_of(measured: Tensor, case: Case, options: TrainOptions, seed: int) -> Iterator[list[Pair]]:
    """Endless batches of a case, of measurements (slices, repetitions, y, x)."""
    draw = seeded(seed, "budget order")
    full = torch.ones(1, 1, *measured.shape[-2:])
    while True:
        batch = []
        for _ in range(options.batch_size):
            one = measured[int(torch.randint(len(measured), (), generator=draw))]
            first, second = one[torch.randperm(case.repetitions, generator=draw)[:2]]
            if case.averaged:
                first, second = one[0], one[1:].mean(dim=0)
            pair = Pair(Acquisition(fft2c(first[None, None]), full), second[None, None], full, "image")
            batch.append(moved_pair(pair, *drawn_movement(pair.input, options.protocol, draw)))
        yield [joined(batch)]


def train_case(measured: Tensor, case: Case, options: TrainOptions, seed: int, path: Path) -> None:
    """Train on the measurements and write the weights, once."""
    if path.exists():
        return
    device, made = choose_device(options.device), made_now()
    precision = choose_precision(options.precision, device)
    network = with_seed(seed, partial(new_network, options, device, precision))
    average = AveragedModel(network, avg_fn=partial(moving_average, options.average))
    optimizer = new_optimizer(network, options.learning_rate)
    batches = batches_of(measured, case, options, seed)
    for step in range(options.steps):
        set_schedule(optimizer, options, step / options.steps)
        training_step(network, optimizer, next(batches), device, precision)
        average.update_parameters(network)
    header = {"network": options.network, "network_options": options.network_options, "made": made}
    save_tensors(path, average.module.state_dict(), header)


def run(setting: Setting) -> str:
    data, quick = data_folder(setting.data), setting.quick
    folder = setting.output / f"budget{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    base = trainings(data, "gaussian-fixed")[NOISY]
    sources, needed = sources_of(base).train, max(case.slices for case in CASES.values())
    if (there := sum(source.slices for source in sources)) < needed:
        raise NotFoundError(f"case 3 takes {needed} slices to train on, and {data} has {there} of them")
    images = torch.cat([ifft2c(source.load()) for source in sources])
    [seconds] = kept_step_seconds({"step": base}, folder, quick).values()
    options = replace(base, steps=steps_in(setting.minutes, seconds, quick))
    tests = test_images(data, TESTED, quick)
    found, made = {}, []  # label -> PSNR (seeds, slices)
    for label, case in CASES.items():
        chosen = torch.linspace(0, len(images) - 1, case.slices).round().long()
        measured, scores = measurements(images[chosen], case.repetitions), []
        for seed in SEEDS:
            path = folder / f"{label.split(':')[0].replace(' ', '-')}-seed-{seed}-{digest(options)}.safetensors"
            train_case(measured, case, options, seed, path)
            network, header = load_network(path)
            made.append(header["made"])
            scores.append(tested(partial(reconstruct_acquisition, network), tests)[0])
        found[label] = np.array(scores)
    rows = [
        [label, case.slices, case.repetitions, options.steps, float(found[label].mean()), between(found[label])]
        for label, case in CASES.items()
    ]
    header = ["", "slices", "repetitions", "steps", "PSNR per slice (dB)", "least to most of three seeds"]
    return (
        f"{setting.minutes:g} minutes of training each. Trained on: {made_of(made)}.\n\n{table(header, rows)}"
        + "".join(against(found, *pair) for pair in zip(list(CASES)[1:], CASES))
        + "\n"
    )


def between(values: np.ndarray) -> str:
    """Of values (seeds, slices), the seeds' means."""
    means = values.mean(axis=1)
    return f"{means.min():.2f} to {means.max():.2f}"


def against(found: dict[str, np.ndarray], later: str, before: str) -> str:
    """How far a case is above another, seed by seed and slice by slice."""
    differences = found[later] - found[before]
    error = 2 * differences.std(ddof=1) / differences.size**0.5
    means = differences.mean(axis=1)
    name = lambda label: label.split(":")[0]  # noqa: E731
    return (
        f"\n- {name(later)} is {differences.mean():+.2f} dB from {name(before)} (± {error:.2f}, two standard errors over "
        f"{differences.shape[0]} seeds x {differences.shape[1]} slices; seeds {means.min():+.2f} to {means.max():+.2f}); wanted: above "
        f"with every seed, as in the paper, {verdict(means.min() > 0)}."
    )
