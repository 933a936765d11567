"""The default against the 2018 recipe: equal steps, equal time, fixed and redrawn pairs

The unrolled network with the importance-weighted k-space loss beside the recipe of `benchmark targets` (undersampled
targets), same data, split, masks and test volume. `fixed`: every slice is acquired exactly twice, for ever. `redrawn`:
new masks at every step. All scores are of the network alone, without the mean over mirror images.
"""

from __future__ import annotations

import json
from pathlib import Path

from mri_n2n.benchmarks.common import (
    comparison_options,
    data_folder,
    reconstruct_with,
    score,
    table,
    test_volume,
    trained,
    verdict,
    zero_filled,
)
from mri_n2n.benchmarks.targets import STEPS, recipe_options
from mri_n2n.checkpoint import load_tensors
from mri_n2n.report import line_plot


def run(data: Path | None, output: Path, docs: Path | None, quick: bool) -> str:
    data = data_folder(data)
    test = test_volume(data, 128)
    suffix = "-quick" if quick else ""
    runs = {
        "2018 recipe, redrawn": (recipe_options(data, "undersampled", quick), output / f"recipe-undersampled{suffix}")
    }
    for pairs in ("fixed", "redrawn"):
        options = comparison_options(data, steps=4 if quick else STEPS, protocol={"pairs": pairs})
        runs[f"default, {pairs}"] = (options, output / f"default-{pairs}{suffix}")
    before = score(zero_filled(test), test.reference)
    rows = [["zero-filled", "", "", "", before["slice_psnr"], before["psnr"], f"{before['ssim']:.3f}"]]
    found = {}
    for label, (options, folder) in runs.items():
        header = trained(options, folder)
        after = score(reconstruct_with(folder / "weights.safetensors", test), test.reference)
        found[label] = after["slice_psnr"], header["seconds"]
        rows.append(
            [
                label,
                header["step"],
                options.batch_size,
                header["seconds"] / 60,
                after["slice_psnr"],
                after["psnr"],
                f"{after['ssim']:.3f}",
            ]
        )
    picture = ""
    if docs is not None:
        (docs / "images").mkdir(parents=True, exist_ok=True)
        line_plot(
            {label: curve(folder) for label, (_, folder) in runs.items()},
            docs / "images" / "default.png",
            "minutes",
            "validation PSNR (dB)",
        )
        picture = (
            "\nValidation on subject 12 (all contrasts) while training:\n\n![PSNR over minutes](images/default.png)\n"
        )
    (recipe, recipe_seconds), (fixed, fixed_seconds), (redrawn, _) = found.values()
    clean = output / f"recipe-clean{suffix}" / "weights.safetensors"
    if clean.exists():  # the same network and steps: the run that was disturbed less is the fairer measure of time
        recipe_seconds = min(recipe_seconds, load_tensors(clean)[1]["seconds"])
    share = fixed_seconds / recipe_seconds
    in_time = ": equal time (wanted: 1.0 dB) " + (
        "met with time to spare" if share <= 1 and fixed - recipe >= 1 else "not shown"
    )
    return (
        table(
            ["training", "steps", "batch", "minutes", "PSNR per slice (dB)", "PSNR volume (dB)", "SSIM"],
            rows,
        )
        + f"\nAt equal steps, and half the slices, the default with fixed pairs is {fixed - recipe:+.2f} dB ahead (wanted: 1.5, "
        f"{verdict(fixed - recipe >= 1.5)}; redrawn pairs {redrawn - recipe:+.2f} dB), in {share:.2f} of the recipe's time (of its faster run in `benchmark "
        f"targets`){in_time}.\n" + picture
    )


def curve(run: Path) -> tuple[list[float], list[float]]:
    """(minutes, validation PSNR in dB) of a run's log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["seconds"] / 60 for line in lines], [line["psnr"] for line in lines]
