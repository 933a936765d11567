"""How far line masks can be undersampled with one coil: Noise2Noise against its supervised twin

The default network at 128x128, trained twice on line masks alone (random, equispaced, Gaussian; 4x to 12x, drawn per
slice) with equal steps and seed: on fixed pairs of undersampled acquisitions, and on the same inputs with clean targets.
What the twin loses too is lost to the mask, the network or the time, not to the missing references. Reported on the T1W
volume of subject 04; real images, simulated k-space.
"""

from __future__ import annotations

from pathlib import Path

from mri_n2n.benchmarks.common import (
    comparison_options,
    data_folder,
    reconstruct_with,
    score,
    table,
    test_volume,
    trained,
    zero_filled,
)
from mri_n2n.report import montage

MASKS = ("random-lines", "equispaced-lines", "gaussian-lines")
ACCELERATIONS = (4.0, 8.0, 12.0)
STEPS = 1000
METHODS = {"noise2noise": "Noise2Noise", "supervised": "supervised"}


def run(data: Path | None, output: Path, docs: Path | None, quick: bool) -> str:
    data = data_folder(data)
    weights, minutes = {}, {}
    for method, label in METHODS.items():
        protocol = {"method": method, "masks": MASKS, "acceleration": (ACCELERATIONS[0], ACCELERATIONS[-1])}
        folder = output / f"lines-{method}{'-quick' if quick else ''}"
        options = comparison_options(data, steps=4 if quick else STEPS, protocol=protocol)
        minutes[label] = trained(options, folder)["seconds"] / 60
        weights[label] = folder / "weights.safetensors"
    rows, panels = [], []
    for kind in MASKS:
        for acceleration in ACCELERATIONS:
            test = test_volume(data, 128, kind=kind, acceleration=acceleration)
            images = {"zero-filled": zero_filled(test)}
            images |= {label: reconstruct_with(path, test, flips=True) for label, path in weights.items()}
            psnr = {label: score(image, test.reference)["psnr"] for label, image in images.items()}
            rows.append([kind, f"{acceleration:g}x", *psnr.values(), psnr["supervised"] - psnr["Noise2Noise"]])
            if kind == "equispaced-lines":
                shown = {"reference": test.reference, **images}
                middle = len(test.reference) // 2
                panels += [(f"{name} {acceleration:g}x", image[middle], (0.0, 0.8)) for name, image in shown.items()]
    text = table(["mask", "", "zero-filled (dB)", "Noise2Noise (dB)", "supervised (dB)", "difference (dB)"], rows)
    spent = ", ".join(f"{label} {value:.1f}" for label, value in minutes.items())
    text += f"\nfastMRI's PSNR of the volume. {options.steps} steps of {options.batch_size}; minutes: {spent}.\n"
    if docs is not None:
        (docs / "images").mkdir(parents=True, exist_ok=True)
        montage(panels, docs / "images" / "lines.png", columns=4, note="simulated k-space")
        text += "\nThe middle slice under equispaced lines:\n\n![equispaced lines](images/lines.png)\n"
    return text
