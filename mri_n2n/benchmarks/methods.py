"""Every training method and classical baseline on the same data, masks, samples and training time

Five ways of acquiring, 128x128: roulette 10x with one coil; 8 simulated coils under 6x Gaussian lines, without and with
complex noise (standard deviation 5 % of the maximum), and one coil under the same lines, every training slice measured twice,
once and for ever; and 4x Gaussian lines with one coil, one mask for everyone and each slice measured once. Methods of single
scans are given the union of the two acquisitions (equal scan time), the supervised twin sees the same inputs. Where it says
redrawn, and in the 2018 recipe, in its favour, masks are drawn anew at every step; the recipe has the U-Net and the batches of its
paper, 16, all others batches of 2, the default without a GPU. At test everyone has the samples of one acquisition.
Equal training time: processor seconds over threads of a step (GPU: seconds), taken in turns; every method takes as many
steps as fit. Reported on all volumes of one subject that no training or choice has seen, by `mri-n2n reconstruct` as a user runs
it: the mean over four mirror images, but for the recipe, which was not trained on such, and where it says one pass; seconds and
memory of the whole process. One training each, one seed, one subject, whose slices are alike: the intervals, two standard errors
over slices, are narrower than those over subjects or seeds would be.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mri_n2n.batches import training_batches
from mri_n2n.benchmarks.common import SEED, TEST_SUBJECT, comparison_options, data_folder, table, trained, verdict
from mri_n2n.checkpoint import build_network, load_tensors, save_tensors
from mri_n2n.datasets import find_sources
from mri_n2n.device import choose_device, choose_precision
from mri_n2n.files import atomic_output
from mri_n2n.formats import read_reference, write_scan
from mri_n2n.fourier import ifft2c
from mri_n2n.masks import Sampling
from mri_n2n.metrics import evaluate_arrays, psnr_per_slice
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.options import TrainOptions
from mri_n2n.pairs import CORRECTIONS
from mri_n2n.protocol import simulated_repetitions
from mri_n2n.report import montage
from mri_n2n.simulation import measure, seeded
from mri_n2n.training import training_step

MATRIX = 128
MINUTES = 4.0  # of training per method
EVERY = 2  # of the test subject's slices


@dataclass(frozen=True)
class Cell:
    """One way of acquiring, and who is compared on it. protocol: what differs from the default. wanted: (this, that, by how
    much this is to be above that in dB)."""

    title: str
    protocol: dict
    methods: dict[str, dict]
    baselines: tuple[str, ...]
    wanted: tuple[tuple[str, str, float], ...]


N2N, ONE_PASS = "Noise2Noise", "Noise2Noise, one pass"
TWO = {
    N2N: {"method": "noise2noise"},
    "k-weighted SSDU": {"method": "k-weighted-ssdu"},
    "SSDU": {"method": "ssdu"},
    "supervised": {"method": "supervised"},
}
# New masks at every step: a simulation that no study can repeat.
REDRAWN = {"method": "noise2noise", "pairs": "redrawn"}
# In the batches of its paper, and in those of the others.
RECIPE, SMALL = {"method": "noise2noise-2018", "pairs": "redrawn", "flips": False}, "2018 recipe, batches of 2"
LINES = {"masks": ("gaussian-lines",), "acceleration": (6.0, 6.0), "coils": (8,)}
CELLS = {
    "roulette": Cell(
        "roulette 10x, one coil",
        {},
        TWO | {"Noise2Noise, redrawn": REDRAWN, "2018 recipe": RECIPE, SMALL: RECIPE | {"batch_size": 2}},
        ("zero-filled", "wavelet", "tv"),
        (
            (N2N, "2018 recipe", 2.0),
            (ONE_PASS, "2018 recipe", 2.0),
            (ONE_PASS, SMALL, 2.0),
            (N2N, "supervised", -0.15),
            (N2N, "wavelet", 0.0),
        ),
    ),
    "lines": Cell(
        "8 coils, Gaussian lines 6x",
        LINES,
        TWO,
        ("zero-filled", "sense", "wavelet", "tv"),
        ((N2N, "supervised", -0.2), (N2N, "k-weighted SSDU", 0.0), (N2N, "wavelet", 0.0)),
    ),
    "noise": Cell(
        "8 coils, Gaussian lines 6x, noise 5 %",
        LINES | {"noise": (0.05, 0.05)},
        TWO | {"robust SSDU": {"method": "robust-ssdu"}},
        ("zero-filled", "sense", "wavelet", "tv"),
        ((N2N, "supervised", -0.2), (N2N, "k-weighted SSDU", 0.0), (N2N, "robust SSDU", 0.0), (N2N, "wavelet", 0.0)),
    ),
    "one-coil-lines": Cell(
        "one coil, Gaussian lines 6x",
        LINES | {"coils": ()},
        {label: TWO[label] for label in (N2N, "k-weighted SSDU", "supervised")},
        ("zero-filled", "wavelet", "tv"),
        ((N2N, "supervised", -0.2), (N2N, "k-weighted SSDU", 0.0), (N2N, "wavelet", 0.0)),
    ),
    "one-mask": Cell(
        "one coil, one mask of Gaussian lines 4x, each slice once",
        {"masks": ("gaussian-lines",), "acceleration": (4.0, 4.0), "one_mask": True, "acquisitions": 1},
        {
            "equivariant imaging": {"method": "equivariant"},
            "SSDU": {"method": "ssdu"},
            "supervised": {"method": "supervised"},
        },
        ("zero-filled", "wavelet", "tv"),
        (("equivariant imaging", "SSDU", 0.5), ("equivariant imaging", "zero-filled", 1.0)),
    ),
}


def options_of(data: Path, cell: Cell, changes: dict, steps: int) -> TrainOptions:
    """The training of one method in one cell."""
    recipe = changes["method"].endswith("-2018")
    protocol = {"batch_size": 16 if recipe else 2, **cell.protocol, **changes}
    batch_size = protocol.pop("batch_size")
    return comparison_options(
        data,
        steps=steps,
        matrix_size=MATRIX,
        protocol=protocol,
        network="unet" if recipe else "unrolled",
        batch_size=batch_size,
        average=0.0 if recipe else 0.999,
    )


def training_clock(device: torch.device) -> Callable[[], float]:
    """Seconds; without a GPU those of the processor over its threads, which other programs beside leave alone."""
    threads = torch.get_num_threads()
    return time.perf_counter if device.type == "cuda" else lambda: time.process_time() / threads


def step_seconds(options: dict[str, TrainOptions], rounds: int) -> dict[str, float]:
    """Median seconds of a training step of each method, taken in turns; what is found once for every slice is found before."""
    device = choose_device("auto")
    clock = training_clock(device)
    precision = choose_precision("auto", device)
    ready = {}
    for label, option in options.items():
        network = build_network(option.network, option.network_options).to(device)
        network = network.to(memory_format=torch.channels_last) if precision == "bfloat16" else network
        split = find_sources(
            "nifti",
            Path(option.data),
            matrix_size=MATRIX,
            excluded_subjects=(TEST_SUBJECT,),
            validation_subjects=("patient12",),
        )
        batches = training_batches(split.train[:1], option.protocol, option.batch_size)
        for _ in range(3 * -(-split.train[0].slices // option.batch_size)):  # maps of both acquisitions are found
            next(batches)
        ready[label] = network, torch.optim.Adam(network.parameters(), lr=1e-5), batches
    seconds = {label: [] for label in options}
    for number in range(rounds + 1):
        for label, (network, optimizer, batches) in ready.items():
            started = clock()
            training_step(network, optimizer, next(batches), device, precision)
            if number:
                seconds[label].append(clock() - started)
    return {label: statistics.median(values) for label, values in seconds.items()}


def write_tests(data: Path, cell: Cell, folder: Path, quick: bool) -> list[Path]:
    """Scan files of the test subject's volumes with their references: one mask for all slices, each with noise of its own."""
    split = find_sources("nifti", data, matrix_size=MATRIX, validation_subjects=(TEST_SUBJECT,))
    protocol = comparison_options(data, steps=1, protocol=cell.protocol).protocol
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for source in split.validation[: 1 if quick else None]:
        volume, name = source.load()[:: 12 if quick else EVERY], f"test {source.name}"
        first = simulated_repetitions(volume[:1], 0, name, protocol).first
        sampling = Sampling(first.mask[0, 0], first.probability[0, 0])
        full = [simulated_repetitions(one[None], 0, name, protocol).full for one in volume]
        path = folder / f"{source.name.replace('/', '-')}.h5"
        write_scan(
            path,
            (
                measure(one, sampling, seeded(SEED, name, index), noise_variance=first.noise_variance).kspace[0].numpy()
                for index, one in enumerate(full)
            ),
            (len(full), *full[0].shape[1:]),
            mask=sampling.mask.numpy(),
            probability=sampling.probability.numpy(),
            reference=np.concatenate([root_sum_of_squares(ifft2c(one)).numpy() for one in full]),
            attributes={"simulated": True, "noise_variance": first.noise_variance},
            force=True,
        )
        files.append(path)
    return files


# A whole `mri-n2n reconstruct`; the last line of its output is the most memory it held, in KiB.
PROCESS = (
    "import sys; from mri_n2n.cli import main; code = main(sys.argv[1:]);"
    "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)


def reconstructed(files: list[Path], output: Path, *options: str) -> dict:
    """Scores of `mri-n2n reconstruct` on the files, and what it took: mean over slices and volumes."""
    command = ["reconstruct", *map(str, files), "-o", str(output), "--force", "--quiet", *options]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESS, *command], check=True, capture_output=True, text=True
    )
    scores, slices, seconds, images = [], [], 0.0, {}
    for path in files:
        reference, image = read_reference(path), read_reference(output / path.name)
        scores.append(evaluate_arrays(reference, image).volume)
        slices += psnr_per_slice(reference, image).tolist()
        seconds += json.loads((output / f"{path.stem}.json").read_text())["seconds"]
        images[path.stem] = image[len(image) // 2]
    mean = lambda name: float(np.mean([getattr(score, name) for score in scores]))  # noqa: E731
    return {
        "slice_psnr": float(np.mean(slices)),
        "psnr": mean("psnr"),
        "ssim": mean("ssim"),
        "nmse": mean("nmse"),
        "seconds_per_slice": seconds / len(slices),
        "mebibytes": int(done.stdout.split()[-1]) / 1024,
        "slices": slices,
        "images": images,
    }


def run_cell(name: str, data: Path, output: Path, quick: bool) -> dict[str, dict]:
    """Train and test everyone of one cell; label -> scores. Finished trainings in `output` are used again."""
    cell = CELLS[name]
    folder = output / f"methods-{name}{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    times = folder / "step-seconds.json"
    if not times.exists():
        draft = {label: options_of(data, cell, changes, 1) for label, changes in cell.methods.items()}
        with atomic_output(times, force=True) as temporary:
            temporary.write_text(json.dumps(step_seconds(draft, 1 if quick else 7), indent=2))
    seconds = json.loads(times.read_text())
    files = write_tests(data, cell, folder / "test", quick)
    found = {}
    for baseline in cell.baselines:
        found[baseline] = reconstructed(files, folder / "images" / baseline, "--baseline", baseline)
    for label, changes in cell.methods.items():
        steps = 4 if quick else max(10, round(60 * MINUTES / seconds[label], -1))
        run = folder / label.replace(" ", "-")
        header = trained(options_of(data, cell, changes, int(steps)), run)
        spent = {"steps": header["step"], "step_seconds": seconds[label]}
        found[label] = spent | reconstructed(files, folder / "images" / run.name, "--weights", str(run))
        if label == N2N:
            found[ONE_PASS] = spent | reconstructed(
                files, folder / "images" / f"{run.name}-one", "--weights", str(run), "--no-flips"
            )
        if changes["method"] == "robust-ssdu":  # the other ways to correct its images, with the same weights
            for correction in CORRECTIONS[1:]:
                other = with_correction(run, correction, folder / f"{run.name}-{correction}.safetensors")
                found[f"{label}, corrected: {correction}"] = spent | reconstructed(
                    files, folder / "images" / other.stem, "--weights", str(other)
                )
    return found


def with_correction(run: Path, correction: str, copy: Path) -> Path:
    """The weights of a run of robust SSDU that ask for another correction in use."""
    tensors, header = load_tensors(run / "weights.safetensors")
    header["training"]["protocol"]["pair"]["correction"] = correction
    save_tensors(copy, tensors, header)
    return copy


def against(found: dict[str, dict], first: str, second: str) -> str:
    """How far the first is above the second: mean of the slices' differences, and twice its standard error."""
    differences = np.array(found[first]["slices"]) - np.array(found[second]["slices"])
    error = 2 * differences.std(ddof=1) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    return f"{first} is {differences.mean():+.2f} dB from {second} (± {error:.2f}, two standard errors over {len(differences)} slices)"


def section(name: str, found: dict[str, dict], docs: Path | None) -> str:
    """Title, table, differences and picture of a cell."""
    rows = [
        [
            label,
            scores["slice_psnr"],
            scores["psnr"],
            f"{scores['ssim']:.3f}",
            f"{scores['nmse']:.4f}",
            scores.get("steps", ""),
            scores["seconds_per_slice"],
            f"{scores['mebibytes']:.0f}",
        ]
        for label, scores in found.items()
    ]
    header = ["", "PSNR per slice (dB)", "PSNR volume (dB)", "SSIM", "NMSE", "steps", "s per slice", "peak MiB"]
    text = f"\n### {CELLS[name].title}\n\n" + table(header, rows)
    for first, second, at_least in CELLS[name].wanted:
        difference = float(np.mean(np.array(found[first]["slices"]) - np.array(found[second]["slices"])))
        text += (
            f"\n- {against(found, first, second)}; wanted: at least {at_least:+.2f}, {verdict(difference >= at_least)}."
        )
    if docs is not None:
        (docs / "images").mkdir(parents=True, exist_ok=True)
        volume = next(iter(next(iter(found.values()))["images"]))
        panels = [(label, scores["images"][volume], (0.0, 0.8)) for label, scores in found.items()]
        montage(panels, docs / "images" / f"methods-{name}.png", columns=4, note="simulated k-space")
        text += f"\n\nThe middle slice of {volume}:\n\n![{CELLS[name].title}](images/methods-{name}.png)\n"
    return text


def run(data: Path | None, output: Path, docs: Path | None, quick: bool) -> str:
    data = data_folder(data)
    text, kept = "", {}
    for name in CELLS:
        found = run_cell(name, data, output, quick)
        text += section(name, found, docs)
        kept[name] = {
            label: {key: value for key, value in scores.items() if key != "images"} for label, scores in found.items()
        }
    for folder in (output, docs):
        if folder is not None:
            with atomic_output(folder / "methods.json", force=True) as temporary:
                temporary.write_text(json.dumps(kept, indent=2) + "\n")
    return f"{MINUTES:g} minutes of training each.\n" + text
