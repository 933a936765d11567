"""What each part of the default brings per unit of training time

One change at a time against the default (5 cascades of 16 channels, U-Nets whose channels double, noise-driven consistency,
moving average of the weights, no cap of the loss weights), at equal training time: seconds of a step are measured in turns
and every variant takes as many steps as fit. Fixed pairs, 128x128, trained on three subjects and reported on a fourth
training subject (12), which the defaults were chosen on; the test subject is not touched. Without noise: roulette 10x, one
coil. With noise of 5 % of the maximum: 8 simulated coils, Gaussian lines 6x; `lines` is the same without noise. PSNR per slice of
the network alone, and in the last column of the mean over mirror images, which costs four passes in use. One training each, one
seed: differences of a few hundredths say nothing; in `lines` three, whose means are given, each seed with its own weights, masks
and coils. Batches of 2. Time is that of the processor over its threads.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mri_n2n.benchmarks.common import SEED, Setting, made_of, steps_in, table, trained
from mri_n2n.benchmarks.methods import CELLS, kept_step_seconds, options_of
from mri_n2n.benchmarks.subjects import data_folder
from mri_n2n.checkpoint import load_network
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.options import TrainOptions
from mri_n2n.pairs import PairOptions
from mri_n2n.training import sources_of
from mri_n2n.validation import validation_set

QUIET, NOISY, LINES = "roulette", "noise", "lines"
PARTS = ("without-noise", "with-noise", "lines")
CELL_OF = dict(zip(PARTS, (QUIET, NOISY, LINES)))
SEEDS = {"without-noise": (0,), "with-noise": (0,), "lines": (0, 1, 2)}
# label -> (cell, options of the network, options of the pair, other options of the training)
VARIANTS: dict[str, tuple[str, dict, dict, dict]] = {
    "default": (QUIET, {}, {}, {}),
    "U-Nets of one width, as in 2018": (QUIET, {"unet": "flat"}, {}, {}),
    "3 cascades": (QUIET, {"cascades": 3}, {}, {}),
    "8 cascades": (QUIET, {"cascades": 8}, {}, {}),
    "24 channels, 3 cascades": (QUIET, {"cascades": 3, "channels": 24}, {}, {}),
    "memory of 8 channels": (QUIET, {"memory": 8}, {}, {}),
    "last weights, no average": (QUIET, {}, {}, {"average": 0.0}),
    "learning rate of 2e-3": (QUIET, {}, {}, {"learning_rate": 2e-3}),
    "batches of 1": (QUIET, {}, {}, {"batch_size": 1}),
    "batches of 8": (QUIET, {}, {}, {"batch_size": 8}),
    "acquisitions exchange samples": (QUIET, {}, {"exchange": True}, {}),
    "weights at most 10": (QUIET, {}, {"weight_cap": 10.0}, {}),
    "weights at most 3": (QUIET, {}, {"weight_cap": 3.0}, {}),
    "activations computed again": (QUIET, {}, {}, {"checkpointing": True}),
    "fastmri-varnet, 5 cascades of 9 channels": (
        QUIET,
        {"cascades": 5, "channels": 9},
        {},
        {"network": "fastmri-varnet"},
    ),
    "fastmri-unet, 32 channels": (QUIET, {}, {}, {"network": "fastmri-unet"}),
    "default, under noise": (NOISY, {}, {}, {}),
    "under noise: samples put back as measured": (NOISY, {"consistency": "hard"}, {}, {}),
    "under noise: weights at most 10": (NOISY, {}, {"weight_cap": 10.0}, {}),
    "under noise: weights at most 3": (NOISY, {}, {"weight_cap": 3.0}, {}),
    "under noise: acquisitions exchange samples": (NOISY, {}, {"exchange": True}, {}),
    "default, lines": (LINES, {}, {}, {}),
    "lines: acquisitions exchange samples": (LINES, {}, {"exchange": True}, {}),
    "lines: batches of 1": (LINES, {}, {}, {"batch_size": 1}),
    "lines: batches of 1, acquisitions exchange samples": (LINES, {}, {"exchange": True}, {"batch_size": 1}),
}


def variant_options(data: Path, label: str, steps: int, seed: int = SEED) -> TrainOptions:
    cell, network, pair, others = VARIANTS[label]
    options = options_of(data, CELLS[cell], {"method": "noise2noise", "pair": PairOptions(**pair)}, steps)
    return replace(
        options,
        network_options={**options.network_options, **network},
        protocol=replace(options.protocol, seed=seed),
        **others,
    )


def validation_psnr(options: TrainOptions, run: Path, *, flips: bool) -> float:
    """Mean over the validation slices, magnitudes clamped to [0, 1], peak 1, in dB."""
    network, _ = load_network(run / "weights.safetensors")
    found = []
    for item in validation_set(sources_of(options).validation, options.protocol):
        image = reconstruct_acquisition(network, item.first, flips=flips)[:, 0].abs().numpy()
        found += psnr_per_slice(item.reference[:, 0].numpy(), image).tolist()
    return sum(found) / len(found)


def run(setting: Setting, part: str) -> str:
    data, quick = data_folder(setting.data), setting.quick
    folder = setting.output / f"ablation-{part}{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    labels = [label for label in VARIANTS if VARIANTS[label][0] == CELL_OF[part]]
    labels = labels[::4] if quick else labels
    seconds = kept_step_seconds({label: variant_options(data, label, 1) for label in labels}, folder, quick)
    seeds = SEEDS[part][: 1 if quick else None]
    rows, made, base = [], [], None
    for label in labels:
        steps = steps_in(setting.minutes, seconds[label], quick)
        found = {False: [], True: []}  # over mirror images or not -> PSNR of each seed
        for seed in seeds:
            options = variant_options(data, label, steps, seed)
            name = f"{label} {seed}" if seed else label
            kept = folder / "".join(c if c.isalnum() else "-" for c in name)
            header = trained(options, kept)
            made.append(header["made"])
            for flips, values in found.items():
                values.append(validation_psnr(options, kept, flips=flips))
        alone, mirrored = found[False], found[True]
        base = base or (alone, seconds[label])
        differences = [f"{one - other:+.2f}" for one, other in zip(alone, base[0], strict=True)]
        rows.append(
            [
                label,
                header["parameters"],
                seconds[label] / base[1],
                steps,
                sum(alone) / len(alone),
                ", ".join(differences),
                sum(mirrored) / len(mirrored),
            ]
        )
    header = ["", "parameters", "time per step", "steps", "PSNR (dB)", "against the default", "over mirror images"]
    return f"{setting.minutes:g} minutes of training each. Trained on: {made_of(made)}.\n\n" + table(header, rows)
