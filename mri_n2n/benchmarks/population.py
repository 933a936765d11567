"""An interval for scans like these, without any reference: leave one subject out, five times

Five trainings at 128x128 (roulette 10x, one coil, 400 steps of 2, everything else the default), each without one of the subjects 01, 03, 04, 09, 12 (another one validates), whose
volumes it then reconstructs (network alone, every fourth slice, one mask for each volume) and whose error is estimated from a second acquisition, as
`evaluate --second-acquisition` does of a directory: each volume has the interval of its scan, their mean the bootstrap over volumes; here over subjects too, which is what
is asked for a new subject, as volumes of one subject are alike. The truth is beside it. Which interval a sixth subject's mean would fall into nobody can say from five; what can be counted is how often
the interval from four subjects contains the fifth one's mean. Simulated k-space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from mri_n2n.benchmarks.common import SEED, Setting, comparison_options, made_of, table, trained
from mri_n2n.benchmarks.subjects import data_folder
from mri_n2n.checkpoint import load_network
from mri_n2n.datasets import find_sources
from mri_n2n.fourier import fft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.masks import draw_mask
from mri_n2n.simulation import measure, seeded
from mri_n2n.sources import Source
from mri_n2n.trust.design import design_of
from mri_n2n.trust.error_estimate import Quality, estimate, quality_of, terms_of
from mri_n2n.trust.population import population_of

MATRIX, STEPS, EVERY, ACCELERATION = 128, 400, 4, 10.0


@dataclass(frozen=True)
class Reconstructed:
    """One volume: subject, the estimate, and the true PSNR of the complex image by its own peak, in dB."""

    subject: str
    quality: Quality
    truth: float


def reconstructed(source: Source, network: torch.nn.Module, every: int) -> Reconstructed:
    full, draw = source.load()[::every], seeded(SEED, "population", source.name)
    first, second = (
        measure(
            full, draw_mask("roulette", (MATRIX, MATRIX), ACCELERATION, draw, hermitian=True), draw, noise_variance=0.0
        )
        for _ in range(2)
    )
    image = reconstruct_acquisition(network, first)
    predicted, peak = fft2c(image), image.abs().max().item()
    mask = second.mask[0, 0]
    terms = [terms_of(one, mask, 0.0) for one in mask * (predicted - second.kspace)]
    pixels = image.numel()
    found = estimate([(sum(terms[1:], terms[0]), design_of(mask, second.probability[0, 0]))], pixels)
    energy = image.abs().double().square().mean().item()
    truth = (predicted - full).abs().double().square().mean().item()
    return Reconstructed(source.subject, quality_of(found, peak, energy), 10 * math.log10(peak**2 / truth))


def run(setting: Setting) -> str:
    data, quick = data_folder(setting.data), setting.quick
    volumes = find_sources("nifti", data, matrix_size=MATRIX, validation_subjects=("none",)).train
    subjects = sorted({source.subject for source in volumes})
    found: dict[str, list[Reconstructed]] = {}
    made = []
    for number, subject in enumerate(subjects[:2] if quick else subjects):
        options = comparison_options(
            data, steps=4 if quick else STEPS, batch_size=2, protocol={"method": "noise2noise"}
        )
        other = subjects[number - 1]
        options = replace(options, excluded_subjects=(subject,), validation_subjects=(other,))
        folder = setting.output / f"population-{subject}{'-quick' if quick else ''}"
        made.append(trained(options, folder)["made"])
        network, _ = load_network(folder / "weights.safetensors")
        own = [source for source in volumes if source.subject == subject]
        found[subject] = [reconstructed(source, network, EVERY) for source in own]
    return f"Trained on: {made_of(made)}.\n\n" + said(found)


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
