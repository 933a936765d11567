"""Leave one subject out, five times: an interval for scans like these without any reference, and how far the default is from supervised training

Five trainings at 128x128 (roulette 10x, one coil, 400 steps of 2, everything else the default), each without one of the subjects 01, 03, 04, 09, 12 (another one validates), whose
volumes it then reconstructs (network alone, every fourth slice, one mask for each volume).

`estimate`: their error is estimated from a second acquisition, as `evaluate --second-acquisition` does of a directory: each volume has the interval of its scan, their mean the bootstrap over volumes; here over subjects too, which is what
is asked for a new subject, as volumes of one subject are alike. The truth is beside it. Which interval a sixth subject's mean would fall into nobody can say from five; what can be counted is how often
the interval from four subjects contains the fifth one's mean.

`supervised`: the same five trainings with clean targets, in as many steps, and the differences of each subject: PSNR per slice, magnitudes clamped to [0, 1], peak 1 =
the volume's maximum, mean over its slices. The interval of the mean over subjects is Student's.

Simulated k-space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

from mri_n2n.acquisition import Acquisition
from mri_n2n.benchmarks.common import SEED, Setting, comparison_options, made_of, table, trained, verdict
from mri_n2n.benchmarks.subjects import data_folder
from mri_n2n.checkpoint import load_network
from mri_n2n.datasets import find_sources
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.masks import draw_mask
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.simulation import measure, seeded
from mri_n2n.sources import Source
from mri_n2n.trust.design import design_of
from mri_n2n.trust.error_estimate import Quality, estimate, quality_of, terms_of
from mri_n2n.trust.population import population_of

MATRIX, STEPS, EVERY, ACCELERATION = 128, 400, 4, 10.0
PARTS = ("estimate", "supervised")
METHODS = ("noise2noise", "supervised")
BEHIND = -0.15  # dB of supervised training at most


@dataclass(frozen=True)
class Reconstructed:
    """One volume: subject, the estimate, and the true PSNR of the complex image by its own peak, in dB."""

    subject: str
    quality: Quality
    truth: float


def acquired(source: Source) -> tuple[torch.Tensor, list[Acquisition]]:
    """Full k-space of every fourth slice of a volume, and two acquisitions of it."""
    full, draw = source.load()[::EVERY], seeded(SEED, "population", source.name)
    sampling = lambda: draw_mask("roulette", (MATRIX, MATRIX), ACCELERATION, draw, hermitian=True)  # noqa: E731
    return full, [measure(full, sampling(), draw, noise_variance=0.0) for _ in range(2)]


def reconstructed(source: Source, network: torch.nn.Module) -> Reconstructed:
    full, (first, second) = acquired(source)
    image = reconstruct_acquisition(network, first)
    predicted, peak = fft2c(image), image.abs().max().item()
    mask = second.mask[0, 0]
    terms = [terms_of(one, mask, 0.0) for one in mask * (predicted - second.kspace)]
    pixels = image.numel()
    found = estimate([(sum(terms[1:], terms[0]), design_of(mask, second.probability[0, 0]))], pixels)
    energy = image.abs().double().square().mean().item()
    truth = (predicted - full).abs().double().square().mean().item()
    return Reconstructed(source.subject, quality_of(found, peak, energy), 10 * math.log10(peak**2 / truth))


def slice_psnr(source: Source, network: torch.nn.Module | None) -> float:
    """Mean over slices, in dB; without a network of the zero-filled images."""
    full, (first, _) = acquired(source)
    image = ifft2c(first.kspace) if network is None else reconstruct_acquisition(network, first)
    return float(psnr_per_slice(root_sum_of_squares(ifft2c(full)).numpy(), root_sum_of_squares(image).numpy()).mean())


def trained_without(
    subject: str, other: str, method: str, data: Path, setting: Setting
) -> tuple[torch.nn.Module, dict]:
    """A network that never saw one subject and was validated on another; and when and where it was made."""
    steps = 4 if setting.quick else STEPS
    options = comparison_options(data, steps=steps, batch_size=2, protocol={"method": method})
    options = replace(options, excluded_subjects=(subject,), validation_subjects=(other,))
    name = f"population-{subject}{'' if method == METHODS[0] else f'-{method}'}{'-quick' if setting.quick else ''}"
    made = trained(options, setting.output / name)["made"]
    return load_network(setting.output / name / "weights.safetensors")[0], made


def run(setting: Setting, part: str) -> str:
    data = data_folder(setting.data)
    volumes = find_sources("nifti", data, matrix_size=MATRIX, validation_subjects=("none",)).train
    subjects = sorted({source.subject for source in volumes})
    made: list[dict] = []
    found: dict[str, list[Reconstructed]] = {}
    scores: dict[str, list[float]] = {}
    for number, subject in enumerate(subjects[:2] if setting.quick else subjects):
        own = [source for source in volumes if source.subject == subject]
        networks = []
        for method in METHODS[: 1 if part == "estimate" else None]:
            network, when = trained_without(subject, subjects[number - 1], method, data, setting)
            networks.append(network)
            made.append(when)
        if part == "estimate":
            found[subject] = [reconstructed(source, networks[0]) for source in own]
        else:
            scores[subject] = [
                float(np.mean([slice_psnr(one, network) for one in own])) for network in (None, *networks)
            ]
    return f"Trained on: {made_of(made)}.\n\n" + (said(found) if part == "estimate" else differences(scores))


def differences(scores: dict[str, list[float]]) -> str:
    """scores: of each subject zero-filled, Noise2Noise and supervised, in dB."""
    rows = [[subject, *values, f"{values[1] - values[2]:+.2f}"] for subject, values in scores.items()]
    text = table(["subject left out", "zero-filled (dB)", "Noise2Noise (dB)", "supervised (dB)", "difference"], rows)
    apart = np.array([values[1] - values[2] for values in scores.values()])
    half = student.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5
    return text + (
        f"\n- Noise2Noise is {apart.mean():+.2f} dB from supervised training over {len(apart)} subjects, 95 % interval {apart.mean() - half:+.2f} to {apart.mean() + half:+.2f}; "
        f"wanted: at least {BEHIND:+.2f}, {verdict(bool(apart.mean() >= BEHIND))}.\n"
    )


def said(found: dict[str, list[Reconstructed]]) -> str:
    rows = []
    for subject, volumes in found.items():
        inside = sum(one.quality.psnr.low <= one.truth <= one.quality.psnr.high for one in volumes)
        mean = mean_quality(volumes)
        truth = float(np.mean([one.truth for one in volumes]))
        rows.append([subject, len(volumes), truth, mean.psnr.value, f"{inside} of {len(volumes)}"])
    every = [one for volumes in found.values() for one in volumes]
    over_volumes = population_of([one.quality for one in every])
    means = {subject: mean_quality(volumes) for subject, volumes in found.items()}
    over_subjects = population_of(list(means.values()))
    truth = float(np.mean([np.mean([one.truth for one in volumes]) for volumes in found.values()]))
    header = ["subject left out", "volumes", "PSNR, truth (dB)", "estimated (dB)", "truth within the scan's interval"]
    text = table(header, rows)
    text += f"\n- Mean over subjects: truth {truth:.2f} dB, estimated {over_subjects.psnr.value:.2f} dB; "
    text += f"95 % bootstrap over subjects {over_subjects.psnr.low:.2f} to {over_subjects.psnr.high:.2f} dB, over volumes {over_volumes.psnr.low:.2f} to {over_volumes.psnr.high:.2f} dB."
    if len(found) > 2:
        contained = []
        for subject, volumes in found.items():
            of_others = population_of([one for name, one in means.items() if name != subject])
            contained.append(
                of_others.psnr.low <= float(np.mean([one.truth for one in volumes])) <= of_others.psnr.high
            )
        text += (
            f"\n- The interval of the mean from four subjects contains the fifth one's true mean {sum(contained)} of {len(contained)} times: it is an interval of "
            "a mean, not of a single subject, and from four it is too narrow."
        )
    return text + "\n"


def mean_quality(volumes: list[Reconstructed]) -> Quality:
    """Of one subject: the means of its volumes' estimates."""
    return population_of([one.quality for one in volumes]) or volumes[0].quality
