"""Corrupted against clean targets: the experiments of Noise2Noise, on MRI

Each corruption at 128x128, one coil, magnitude images without phase, each training slice corrupted twice, once and for ever. Trained
on subjects 01, 03, 09: with corrupted targets and the loss whose minimiser is the clean value, with clean targets and the same
corrupted inputs (L2; for `rician`, where corrupted targets are squared magnitudes less the noise variance, that of squares
too, so that the two differ in their targets alone), and with corrupted targets and a wrong loss. Everyone in a part takes as many steps as
fit into the time, by the median of their step times, but in `networks`, where each has its own. The network is the residual U-Net of
`--body n2v`, 16 channels, batches of 1, without data consistency; in `roulette`, k-space roulette 10x and the weighted L2, it is
the unrolled one with its defaults, batches of 2. There no weights (a cap of 1) are a comparison, not a wrong loss: all positive
weights have one minimiser. So is L1 for impulses on less than half of the pixels (`impulse`), whose median is the clean value as well as their mode; for
more (`impulse-heavy`) it is wrong.
BM3D (`pip install bm3d`) is the classical reference for Gaussian, brown and Poisson noise: on real and imaginary part, told the
standard deviation, of brown noise the power spectrum too; for counts after the Anscombe transform (standard deviation 1), and back
by the closed form of the exact unbiased inverse (Makitalo and Foi, IEEE TIP 20, 2011). It is told the true strength; the networks are
not. Tested on every second slice of all volumes of subject 04, corrupted at the middle of the strengths trained on (roulette:
acquired once more), one pass: PSNR per slice, magnitudes clamped to [0, 1], peak 1 = the volume's maximum. One training each, one seed.
Curves are PSNR on a training subject kept apart (12), of the moving average of the weights, every 20 seconds. `convergence` is the
trainings of gaussian-fixed, brown-1 and brown-3, which have one standard deviation, 25 of 255, and one number of steps: how many it takes
until a curve stays within 0.5 dB of its own end, interpolated between its points.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition
from mri_n2n.benchmarks.common import (
    SEED,
    Setting,
    comparison_options,
    digest,
    made_of,
    steps_in,
    table,
    trained,
    verdict,
)
from mri_n2n.benchmarks.methods import EVERY, MATRIX, kept_step_seconds
from mri_n2n.benchmarks.peers import OfRealImage, blurred_spectrum, bm3d_of, bm3d_of_counts, part_by_part
from mri_n2n.benchmarks.subjects import data_folder, test_sources
from mri_n2n.checkpoint import load_network
from mri_n2n.corruptions import BROWN_DEVIATION, CORRUPTIONS, corrupted_kspace
from mri_n2n.files import atomic_output
from mri_n2n.fourier import ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.options import TrainOptions
from mri_n2n.pairs import PairOptions
from mri_n2n.protocol import simulated_repetitions
from mri_n2n.report import line_plot, montage
from mri_n2n.runs import read_log
from mri_n2n.simulation import seeded

CHANNELS = 16
NOISY, CLEAN = "corrupted targets", "clean targets"
VALIDATE_EVERY = 20.0  # seconds
NEAR_END = 0.5  # dB


@dataclass(frozen=True)
class Row:
    """protocol: of corrupted targets. within: how close to clean targets is wanted, in dB. clean: what else differs with clean
    targets. wrong: label -> what differs of a training that must lose, beside: of one that need not."""

    protocol: dict
    within: float = 0.2
    clean: dict = field(default_factory=dict)
    wrong: dict[str, dict] = field(default_factory=dict)
    beside: dict[str, dict] = field(default_factory=dict)


def corrupting(kind: str, low: float, high: float | None = None) -> dict:
    return {"corrupt": kind, "strength": (low, low if high is None else high), "acceleration": (1.0, 1.0)}


L2, L1, L0 = "L2, the mean", "L1, the median", "annealed L0, the mode"
ROWS = {
    "gaussian-fixed": Row(corrupting("gaussian", BROWN_DEVIATION)),
    "gaussian": Row(corrupting("gaussian", 0.02, 0.2)),
    "rician": Row(
        corrupting("rician-corrected", 0.1),
        clean={"loss": "l2-of-squares"},
        wrong={"magnitudes as targets": {"corrupt": "rician"}},
    ),
    "brown-1": Row(corrupting("brown", 1.0)),
    "brown-3": Row(corrupting("brown", 3.0)),
    "poisson": Row(corrupting("poisson", 5.0, 20.0), wrong={L1: {"loss": "l1"}}),
    "bernoulli": Row(corrupting("bernoulli", 0.0, 0.9)),
    "text": Row(corrupting("text", 0.0, 0.5), 0.5, wrong={L2: {"loss": "l2"}}),
    "impulse": Row(corrupting("impulse", 0.0, 0.7), 0.5, wrong={L2: {"loss": "l2"}}, beside={L1: {"loss": "l1"}}),
    "impulse-heavy": Row(corrupting("impulse", 0.4, 0.9), 0.5, wrong={L2: {"loss": "l2"}, L1: {"loss": "l1"}}),
    "spikes": Row(corrupting("spikes", 0.0, 0.01), 0.5, wrong={L0: {"loss": "l0"}}),
    "roulette": Row({}, beside={"L2 without weights": {"pair": PairOptions(weight_cap=1.0)}}),
}
BODIES = {"U-Net": "n2v", "U-Net of N2V2": "n2v2", "RED30": "red30", "DnCNN": "dncnn"}
# Noise of one standard deviation, whose trainings take one number of steps.
SAME_NOISE = {"gaussian-fixed": "white", "brown-1": "brown, 1 pixel", "brown-3": "brown, 3 pixels"}
PARTS = (*ROWS, "convergence", "networks")


def options_of(data: Path, protocol: dict, body: str = "n2v") -> TrainOptions:
    """A training of one step."""
    denoiser = {
        "network": "denoiser",
        "network_options": {"body": body, "channels": CHANNELS},
        "batch_size": 1,
    }
    network = denoiser if "corrupt" in protocol else {"network": "unrolled", "batch_size": 2}
    options = comparison_options(data, steps=1, matrix_size=MATRIX, protocol=protocol, **network)
    return replace(options, validate_every=VALIDATE_EVERY)


def trainings(data: Path, part: str) -> dict[str, TrainOptions]:
    """label -> options of one step."""
    if part == "networks":
        return {label: options_of(data, ROWS["gaussian"].protocol, body) for label, body in BODIES.items()}
    row = ROWS[part]
    changes = {NOISY: {}, CLEAN: {"method": "supervised", **row.clean}, **row.wrong, **row.beside}
    return {label: options_of(data, row.protocol | {"method": "noise2noise"} | one) for label, one in changes.items()}


def in_steps(setting: Setting, data: Path, part: str) -> dict[str, TrainOptions]:
    """`trainings` of a part with the steps that fit into the time, everyone's the same."""
    together = SAME_NOISE if part in SAME_NOISE else (part,)
    measured = {f"{one}, {label}": options for one in together for label, options in trainings(data, one).items()}
    folder = folder_of(setting, "same-noise" if part in SAME_NOISE else part)
    seconds = kept_step_seconds(measured, folder, setting.quick)
    if part != "networks":
        seconds = dict.fromkeys(seconds, statistics.median(seconds.values()))
    return {
        label: replace(options, steps=steps_in(setting.minutes, seconds[f"{part}, {label}"], setting.quick))
        for label, options in trainings(data, part).items()
    }


def folder_of(setting: Setting, name: str) -> Path:
    folder = setting.output / f"corruptions-{name}{'-quick' if setting.quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def once(setting: Setting, options: TrainOptions) -> tuple[dict, Path]:
    """(header, run) of a training, by its options: parts that have the same share it."""
    name = f"{options.protocol.corrupt or 'roulette'}-{options.protocol.method}-{digest(options)}"
    run = folder_of(setting, "runs") / name
    return trained(options, run), run


def test_images(data: Path, row: Row, quick: bool) -> list[tuple[np.ndarray, Acquisition]]:
    """(truth (y, x), corrupted scan) of slices of the test subject."""
    protocol = comparison_options(data, steps=1, protocol=row.protocol).protocol
    found = []
    for source in test_sources(data, MATRIX)[: 1 if quick else None]:
        for index, full in enumerate(source.load()[:: 12 if quick else EVERY]):
            truth = ifft2c(full)[0].abs().numpy()
            if protocol.corrupt is None:
                scan = simulated_repetitions(full[None], index, f"test {source.name}", protocol).first
            else:
                draw = seeded(SEED, "test corruption", source.name, index)
                kspace = corrupted_kspace(full[None], protocol.corrupt, 2 * (tested_at(row),), draw)
                scan = Acquisition(kspace, torch.ones(1, 1, *truth.shape))
            found.append((truth, scan))
    return found


def tested_at(row: Row) -> float:
    return sum(row.protocol["strength"]) / 2


def as_it_is(scan: Acquisition) -> Tensor:
    return ifft2c(scan.kspace)


def tested(
    image_of: Callable[[Acquisition], Tensor], tests: list[tuple[np.ndarray, Acquisition]]
) -> tuple[list[float], np.ndarray]:
    """(PSNR of each slice, image of the middle one). image_of: scan -> (1, 1, y, x)."""
    found, images = [], []
    for truth, scan in tests:
        images.append(image_of(scan)[0, 0].abs().numpy())
        found += psnr_per_slice(truth[None], images[-1][None]).tolist()
    return found, images[len(images) // 2]


def tested_network(run: Path, tests: list[tuple[np.ndarray, Acquisition]]) -> tuple[list[float], np.ndarray]:
    return tested(partial(reconstruct_acquisition, load_network(run / "weights.safetensors")[0]), tests)


def classical(row: Row) -> OfRealImage | None:
    """BM3D for real images (y, x), told how they are corrupted at the test; None where it is not for that, or not installed."""
    kind, shape = row.protocol.get("corrupt"), (MATRIX, MATRIX)
    if kind == "gaussian":
        return bm3d_of(tested_at(row) / 2**0.5)
    if kind == "brown":
        return bm3d_of(BROWN_DEVIATION / 2**0.5, blurred_spectrum(shape, 2 * (tested_at(row),)))
    return bm3d_of_counts(tested_at(row)) if kind == "poisson" else None


def classical_image(method: OfRealImage, real: bool, scan: Acquisition) -> Tensor:
    """(1, 1, y, x). real: of the real part alone, where the corruption is of magnitudes."""
    image = ifft2c(scan.kspace)[0]
    if real:
        return torch.from_numpy(np.float32(method(image[0].real.clamp_min(0).numpy())))[None, None]
    return part_by_part(image, method)[None]


def run(setting: Setting, part: str) -> str:
    data = data_folder(setting.data)
    return convergence(setting, data) if part == "convergence" else compared(setting, data, part)


def compared(setting: Setting, data: Path, part: str) -> str:
    """Table, verdicts and pictures of a part."""
    row = ROWS.get(part, ROWS["gaussian"])
    kind = row.protocol.get("corrupt")
    tests = test_images(data, row, setting.quick)
    found, images, made, curves, rows = {}, {}, [], {}, []
    before = "zero-filled" if kind is None else "as it was corrupted"
    found[before], images[before] = tested(as_it_is, tests)
    rows.append([before, "", "", float(np.mean(found[before]))])
    for label, options in in_steps(setting, data, part).items():
        header, run = once(setting, options)
        found[label], images[label] = tested_network(run, tests)
        rows.append([label, header["parameters"], header["step"], float(np.mean(found[label]))])
        made.append(header["made"])
        curves[label] = curve(run)
    if (method := classical(row)) is not None:
        real = CORRUPTIONS[kind].real
        found["BM3D"], images["BM3D"] = tested(partial(classical_image, method, real), tests)
        rows.append(["BM3D, told the strength", "", "", float(np.mean(found["BM3D"]))])
    text = f"{setting.minutes:g} minutes of training each. Trained on: {made_of(made)}.\n\n"
    text += table(["", "parameters", "steps", "PSNR per slice (dB)"], rows)
    text += wanted(row, found) if part in ROWS else ""
    if setting.docs is not None:
        name = f"corruptions-{part}"
        panels = [("truth", tests[len(tests) // 2][0], (0.0, 0.8))]
        panels += [(label, image, (0.0, 0.8)) for label, image in images.items()]
        with atomic_output(setting.docs / "images" / f"{name}.png", force=True) as temporary:
            montage(panels, temporary, columns=6, note="simulated")
        plot(setting, curves, f"{name}-curves", part)
        text += f"\n![{part}](images/{name}.png)\n\n![PSNR while training, {part}](images/{name}-curves.png)\n"
    return text


def wanted(row: Row, found: dict[str, list[float]]) -> str:
    """What the figures are held against."""
    mean = {label: float(np.mean(values)) for label, values in found.items()}
    kind, difference = row.protocol.get("corrupt"), mean[NOISY] - mean[CLEAN]
    text = ""
    if kind is not None:
        about, (low, high) = CORRUPTIONS[kind], row.protocol["strength"]
        strength = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}, tested at {tested_at(row):.3g}"
        text += f"\n- {about.meaning}; {about.strength} {strength}; loss of corrupted targets: {about.loss}."
    text += (
        f"\n- Corrupted targets are {difference:+.2f} dB from clean ones; wanted: within {row.within:g}, "
        f"{verdict(abs(difference) <= row.within)}."
    )
    for label in row.wrong:
        lost = mean[label] - mean[NOISY]
        text += (
            f"\n- {label}: {lost:+.2f} dB from the right loss; wanted: less by 0.5 or more, {verdict(lost <= -0.5)}."
        )
    for label in (*row.beside, *(["BM3D"] if "BM3D" in mean else [])):
        text += f"\n- {label}: {mean[label] - mean[NOISY]:+.2f} dB from corrupted targets, for comparison."
    return text + "\n"


def convergence(setting: Setting, data: Path) -> str:
    """Table, verdict and picture: how soon trainings on noise of different correlation come to their end."""
    curves, rows, made, needed = {}, [], [], {}
    for part, noise in SAME_NOISE.items():
        each = in_steps(setting, data, part)
        for label in (NOISY, CLEAN):
            header, run = once(setting, each[label])
            made.append(header["made"])
            steps, psnr = curves[f"{noise}: {label}"] = curve(run)
            needed[part, label] = steps_to_end(steps, psnr)
            rows.append([noise, label, header["step"], psnr[-1], needed[part, label], len(steps)])
    soon, late = needed["gaussian-fixed", NOISY], needed["brown-3", NOISY]
    text = f"{setting.minutes:g} minutes of training each. Trained on: {made_of(made)}.\n\n"
    header = ["noise", "targets", "steps", "PSNR on subject 12 at the end (dB)"]
    text += table([*header, f"steps until within {NEAR_END:g} dB of it", "points of the curve"], rows)
    text += (
        f"\n- With corrupted targets brown noise of 3 pixels takes {late} steps, white noise {soon}; wanted: more, "
        f"{verdict(late > soon)}.\n"
    )
    if setting.docs is not None:
        plot(setting, curves, "corruptions-convergence", "white and brown noise, standard deviation 25/255")
        text += "\n![PSNR while training, white and brown noise](images/corruptions-convergence.png)\n"
    return text


def curve(run: Path) -> tuple[list[int], list[float]]:
    """(steps, PSNR on the validation subject) of a training."""
    log = read_log(run)
    return [entry["step"] for entry in log], [entry["psnr"] for entry in log]


def steps_to_end(steps: list[int], psnr: list[float]) -> int:
    """The step from which on a curve stays within `NEAR_END` of its end, interpolated."""
    distance = [abs(value - psnr[-1]) for value in psnr]
    far = [i for i, value in enumerate(distance) if value > NEAR_END]
    if not far:
        return steps[0]
    last = slice(far[-1], far[-1] + 2)
    return round(np.interp(-NEAR_END, [-value for value in distance[last]], steps[last]))


def plot(setting: Setting, curves: dict[str, tuple[list[int], list[float]]], name: str, title: str) -> None:
    with atomic_output(setting.docs / "images" / f"{name}.png", force=True) as temporary:
        line_plot(curves, temporary, "steps", "PSNR on subject 12, dB", title)
