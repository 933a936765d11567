"""Corrupted against clean targets: the experiments of Noise2Noise with noise, lost pixels, text, impulses and spikes, on MRI

Each corruption at 128x128, one coil, magnitude images, each training slice corrupted twice, once and for ever (with clean targets: the
same corrupted inputs), trained on subjects 01, 03, 09 for equal time: with corrupted targets and the loss whose minimiser is
the clean value, with clean targets (L2), and with corrupted targets and a wrong loss. The network is the residual U-Net of
`--body n2v`, 16 channels, without data consistency. Tested on every second slice of all volumes of subject 04, corrupted at the
middle of the strengths trained on: PSNR per slice, magnitudes clamped to [0, 1], peak 1 = the volume's maximum. One training each,
one seed. The curves are PSNR on a training subject kept apart (12).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mri_n2n.acquisition import Acquisition
from mri_n2n.benchmarks.common import (
    SEED,
    Setting,
    comparison_options,
    made_of,
    steps_in,
    table,
    trained,
    verdict,
)
from mri_n2n.benchmarks.methods import EVERY, MATRIX, kept_step_seconds
from mri_n2n.benchmarks.subjects import data_folder, test_sources
from mri_n2n.checkpoint import load_network
from mri_n2n.corruptions import CORRUPTIONS, corrupted_kspace
from mri_n2n.files import atomic_output
from mri_n2n.fourier import ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.options import TrainOptions
from mri_n2n.report import line_plot, montage
from mri_n2n.runs import read_log
from mri_n2n.simulation import seeded

CHANNELS = 16
NOISY, CLEAN = "corrupted targets", "clean targets"


@dataclass(frozen=True)
class Row:
    """kind: the corruption. strength: trained on. within: how close to clean targets is wanted, in dB. others: label -> (kind, loss)
    of trainings with corrupted targets that are compared with the right one; those in `wrong` must lose."""

    kind: str
    strength: tuple[float, float]
    within: float
    others: dict[str, tuple[str, str | None]]
    wrong: tuple[str, ...] = ()


ROWS = {
    "gaussian-fixed": Row("gaussian", (0.1, 0.1), 0.2, {}),
    "gaussian": Row("gaussian", (0.02, 0.2), 0.2, {}),
    "rician": Row(
        "rician-corrected", (0.1, 0.1), 0.2, {"magnitudes as targets": ("rician", None)}, ("magnitudes as targets",)
    ),
    "brown-1": Row("brown", (1.0, 1.0), 0.2, {}),
    "brown-3": Row("brown", (3.0, 3.0), 0.2, {}),
    "poisson": Row("poisson", (5.0, 20.0), 0.2, {"L1, the median": ("poisson", "l1")}, ("L1, the median",)),
    "bernoulli": Row("bernoulli", (0.0, 0.9), 0.2, {}),
    "text": Row("text", (0.0, 0.5), 0.5, {"L2, the mean": ("text", "l2")}, ("L2, the mean",)),
    "impulse": Row(
        "impulse",
        (0.0, 0.7),
        0.5,
        {"L2, the mean": ("impulse", "l2"), "L1, the median": ("impulse", "l1")},
        ("L2, the mean",),
    ),
    "spikes": Row("spikes", (0.0, 0.01), 0.5, {"L2, the mean": ("spikes", "l2")}, ("L2, the mean",)),
}
BODIES = {"U-Net": "n2v", "U-Net of N2V2": "n2v2", "RED30": "red30", "DnCNN": "dncnn"}
PARTS = (*ROWS, "networks")


def options_of(
    data: Path, row: Row, kind: str, steps: int, *, clean: bool, loss: str | None, body: str
) -> TrainOptions:
    protocol = {
        "method": "supervised" if clean else "noise2noise",
        "corrupt": kind,
        "strength": row.strength,
        "loss": loss,
        "acceleration": (1.0, 1.0),
    }
    options = comparison_options(
        data,
        steps=steps,
        matrix_size=MATRIX,
        protocol=protocol,
        network="denoiser",
        network_options={"body": body, "channels": CHANNELS},
        batch_size=4,
    )
    return replace(options, validate_every=20.0)


def trainings(data: Path, part: str) -> dict[str, TrainOptions]:
    """label -> options of one step."""
    if part == "networks":
        row = ROWS["gaussian"]
        return {
            label: options_of(data, row, row.kind, 1, clean=False, loss=None, body=body)
            for label, body in BODIES.items()
        }
    row = ROWS[part]
    kinds = {NOISY: (row.kind, None, False), CLEAN: (row.kind, None, True)}
    kinds |= {label: (kind, loss, False) for label, (kind, loss) in row.others.items()}
    return {
        label: options_of(data, row, kind, 1, clean=clean, loss=loss, body="n2v")
        for label, (kind, loss, clean) in kinds.items()
    }


def test_images(data: Path, row: Row, quick: bool) -> list[tuple[np.ndarray, Acquisition]]:
    """(truth (y, x), corrupted scan) of slices of the test subject."""
    middle, found = sum(row.strength) / 2, []
    for source in test_sources(data, MATRIX)[: 1 if quick else None]:
        for index, full in enumerate(source.load()[:: 12 if quick else EVERY]):
            draw = seeded(SEED, "test corruption", source.name, index)
            kspace = corrupted_kspace(full[None], row.kind, (middle, middle), draw)
            truth = ifft2c(full)[0].abs().numpy()
            found.append((truth, Acquisition(kspace, torch.ones(1, 1, *truth.shape))))
    return found


def tested(network: nn.Module | None, tests: list[tuple[np.ndarray, Acquisition]]) -> tuple[list[float], np.ndarray]:
    """(PSNR of each slice, image of the middle one), of the corrupted images themselves without a network."""
    found, images = [], []
    for truth, scan in tests:
        image = ifft2c(scan.kspace) if network is None else reconstruct_acquisition(network, scan)
        images.append(image[0, 0].abs().numpy())
        found += psnr_per_slice(truth[None], images[-1][None]).tolist()
    return found, images[len(images) // 2]


def run(setting: Setting, part: str) -> str:
    data, quick = data_folder(setting.data), setting.quick
    folder = setting.output / f"corruptions-{part}{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    row, each = ROWS.get(part, ROWS["gaussian"]), trainings(data, part)
    seconds = kept_step_seconds(each, folder, quick)
    tests = test_images(data, row, quick)
    before, corrupted = tested(None, tests)
    found, rows, made, curves = {}, [["as it was corrupted", "", "", float(np.mean(before))]], [], {}
    panels = [("truth", tests[len(tests) // 2][0], (0.0, 0.8)), ("corrupted", corrupted, (0.0, 0.8))]
    for label, options in each.items():
        kept = folder / "".join(c if c.isalnum() else "-" for c in label)
        header = trained(replace(options, steps=steps_in(setting.minutes, seconds[label], quick)), kept)
        made.append(header["made"])
        found[label], image = tested(load_network(kept / "weights.safetensors")[0], tests)
        rows.append([label, header["parameters"], header["step"], float(np.mean(found[label]))])
        panels.append((label, image, (0.0, 0.8)))
        log = read_log(kept)
        curves[label] = [entry["step"] for entry in log], [entry["psnr"] for entry in log]
    text = f"{setting.minutes:g} minutes of training each. Trained on: {made_of(made)}.\n\n"
    text += table(["", "parameters", "steps", "PSNR per slice (dB)"], rows)
    if part in ROWS:
        text += wanted(row, found)
    if setting.docs is not None:
        name = f"corruptions-{part}"
        with atomic_output(setting.docs / "images" / f"{name}.png", force=True) as temporary:
            montage(panels, temporary, columns=6, note="simulated corruption")
        with atomic_output(setting.docs / "images" / f"{name}-curves.png", force=True) as temporary:
            line_plot(curves, temporary, "steps", "PSNR on subject 12, dB", part)
        text += f"\n![{part}](images/{name}.png)\n\n![PSNR while training, {part}](images/{name}-curves.png)\n"
    return text


def wanted(row: Row, found: dict[str, list[float]]) -> str:
    """What the figures are held against."""
    difference = np.array(found[NOISY]) - np.array(found[CLEAN])
    about = CORRUPTIONS[row.kind]
    text = (
        f"\n- {about.meaning}; {about.strength} {row.strength[0]:g} to {row.strength[1]:g}; loss of corrupted targets: {about.loss}.\n"
        f"- Corrupted targets are {difference.mean():+.2f} dB from clean ones; wanted: within {row.within:g}, "
        f"{verdict(abs(difference.mean()) <= row.within)}.\n"
    )
    for label in row.wrong:
        lost = np.mean(found[label]) - np.mean(found[NOISY])
        text += (
            f"- {label}: {lost:+.2f} dB from the right loss; wanted: less by 0.5 or more, {verdict(lost <= -0.5)}.\n"
        )
    return text
