"""What each part of the default brings per unit of training time

One change at a time against the default (5 cascades of 16 channels, U-Nets whose channels double, noise-driven consistency,
moving average of the weights, no cap of the loss weights), at equal training time: seconds of a step are measured in turns
and every variant takes as many steps as fit. Fixed pairs, 128x128, trained on three subjects and reported on a fourth
training subject (12), which the defaults were chosen on; the test subject is not touched. Without noise: roulette 10x, one
coil. With noise of 5 % of the maximum: 8 simulated coils, Gaussian lines 6x; `lines` is the same without noise. PSNR per slice of
the network alone, and in the last column of the mean over mirror images, which costs four passes in use. One training each, one
seed: differences of a few hundredths say nothing; in `lines` and `mixed` three, whose means are given, each seed with its own
weights, masks and coils. `mixed`: roulette, Gaussian points and Gaussian lines of 4x to 12x, drawn for each slice, one coil, no
noise. Batches of 2. Time is that of the processor over its threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from mri_n2n.benchmarks.common import SEED, Setting, made_of, steps_in, table, trained
from mri_n2n.benchmarks.methods import CELLS, Cell, kept_step_seconds, options_of
from mri_n2n.benchmarks.subjects import data_folder
from mri_n2n.checkpoint import load_network
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.options import TrainOptions
from mri_n2n.pairs import PairOptions
from mri_n2n.training import sources_of
from mri_n2n.validation import validation_set

PARTS = ("without-noise", "with-noise", "lines", "mixed")
QUIET, NOISY, LINES, MIXED = PARTS
MIXTURE = {"masks": ("roulette", "gaussian-points", "gaussian-lines"), "acceleration": (4.0, 12.0)}
# part -> how scans are acquired
CELL_OF = {
    QUIET: CELLS["roulette"],
    NOISY: CELLS["noise"],
    LINES: CELLS["lines"],
    MIXED: Cell("points and lines of 4x to 12x, one coil", MIXTURE, {}, (), ()),
}
SEEDS = {QUIET: (0,), NOISY: (0,), LINES: (0, 1, 2), MIXED: (0, 1, 2)}


@dataclass(frozen=True)
class Variant:
    """What differs from the default, in one part: options of the network, of the pair and of the training, and the loss."""

    part: str
    network: dict = field(default_factory=dict)
    pair: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    loss: str | None = None


VARIANTS: dict[str, Variant] = {
    "default": Variant(QUIET),
    "U-Nets of one width, as in 2018": Variant(QUIET, network={"unet": "flat"}),
    "3 cascades": Variant(QUIET, network={"cascades": 3}),
    "8 cascades": Variant(QUIET, network={"cascades": 8}),
    "24 channels, 3 cascades": Variant(QUIET, network={"cascades": 3, "channels": 24}),
    "memory of 8 channels": Variant(QUIET, network={"memory": 8}),
    "last weights, no average": Variant(QUIET, training={"average": 0.0}),
    "learning rate of 2e-3": Variant(QUIET, training={"learning_rate": 0.002}),
    "batches of 1": Variant(QUIET, training={"batch_size": 1}),
    "batches of 8": Variant(QUIET, training={"batch_size": 8}),
    "acquisitions exchange samples": Variant(QUIET, pair={"exchange": True}),
    "weights at most 10": Variant(QUIET, pair={"weight_cap": 10.0}),
    "weights at most 3": Variant(QUIET, pair={"weight_cap": 3.0}),
    "activations computed again": Variant(QUIET, training={"checkpointing": True}),
    "fastmri-varnet, 5 cascades of 9 channels": Variant(
        QUIET, network={"cascades": 5, "channels": 9}, training={"network": "fastmri-varnet"}
    ),
    "fastmri-unet, 32 channels": Variant(QUIET, training={"network": "fastmri-unet"}),
    "default, under noise": Variant(NOISY),
    "under noise: samples put back as measured": Variant(NOISY, network={"consistency": "hard"}),
    "under noise: weights at most 10": Variant(NOISY, pair={"weight_cap": 10.0}),
    "under noise: weights at most 3": Variant(NOISY, pair={"weight_cap": 3.0}),
    "under noise: acquisitions exchange samples": Variant(NOISY, pair={"exchange": True}),
    "default, lines": Variant(LINES),
    "lines: acquisitions exchange samples": Variant(LINES, pair={"exchange": True}),
    "lines: batches of 1": Variant(LINES, training={"batch_size": 1}),
    "lines: batches of 1, acquisitions exchange samples": Variant(
        LINES, pair={"exchange": True}, training={"batch_size": 1}
    ),
    "default, mixed": Variant(MIXED),
    "mixed: logarithm of each slice's error": Variant(MIXED, loss="log-l2"),
}


def variant_options(data: Path, label: str, steps: int, seed: int = SEED) -> TrainOptions:
    variant = VARIANTS[label]
    changes = {"method": "noise2noise", "pair": PairOptions(**variant.pair), "loss": variant.loss}
    options = options_of(data, CELL_OF[variant.part], changes, steps)
    return replace(
        options,
        network_options={**options.network_options, **variant.network},
        protocol=replace(options.protocol, seed=seed),
        **variant.training,
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
    labels = [label for label, variant in VARIANTS.items() if variant.part == part]
    labels = [labels[0], *labels[1::4]] if quick else labels
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
    spent = "A few steps" if quick else f"{setting.minutes:g} minutes"
    return f"{spent} of training each. Trained on: {made_of(made)}.\n\n" + table(header, rows)
