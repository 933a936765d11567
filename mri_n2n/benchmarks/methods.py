"""Training methods and classical baselines on the same data, masks, samples and training time

Five ways of acquiring, 128x128: roulette 10x with one coil; 8 simulated coils under 6x Gaussian lines, without and with
complex noise (standard deviation 5 % of the maximum), and one coil under the same lines, every training slice measured twice,
once and for ever; and 4x Gaussian lines with one coil, one mask for everyone and each slice measured once. Methods of single
scans are given the union of the two acquisitions (equal scan time), the supervised twin sees the same inputs. Where it says
redrawn, and in the 2018 recipe, in its favour, masks are drawn anew at every step; the recipe has the U-Net and the batches of its
paper, 16, all others batches of 2, the default without a GPU. At test everyone has the samples of one acquisition.
Equal training time: processor seconds over threads of a step (GPU: seconds), taken in turns; every method takes as many
steps as fit; finding sensitivity maps, once for each acquisition, is not in the time. Reported on all volumes of subject 04 (no choice was made on it but for what the head of this document says), by
`mri-n2n reconstruct` as a user runs it: the mean over four mirror images, but for the recipe, which was not trained on such, and
where it says one pass; seconds and memory of the whole process. The recipe, whose U-Net knows one scale of intensities, is
scored on that of its training. L is what `reconstruct` chose for each volume from its own samples; where compressed sensing
did not converge in its 150 steps (at small L), that is said. The best baseline is the best of them on the test subject, in their favour. One training each, one seed, one subject, whose slices are alike: the intervals, two standard errors
over slices, are narrower than those over subjects or seeds would be.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mri_n2n.baselines import ITERATIONS
from mri_n2n.batches import training_batches
from mri_n2n.benchmarks.common import (
    SEED,
    Setting,
    code_hash,
    comparison_options,
    digest,
    hardware,
    made_now,
    made_of,
    peak_memory,
    steps_in,
    table,
    trained,
    verdict,
    write_json,
)
from mri_n2n.benchmarks.subjects import TEST_SUBJECT, data_folder, phantom_folder, subjects_in, test_sources
from mri_n2n.checkpoint import find_weights, load_network, load_tensors, save_tensors
from mri_n2n.device import choose_device, choose_precision
from mri_n2n.files import sha256_of
from mri_n2n.formats import open_scan, read_reference, write_scan
from mri_n2n.fourier import ifft2c
from mri_n2n.inference import reconstruct_acquisition
from mri_n2n.masks import Sampling
from mri_n2n.metrics import evaluate_arrays, psnr_per_slice
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.options import TrainOptions
from mri_n2n.pairs import CORRECTIONS, PairOptions
from mri_n2n.protocol import simulated_repetitions
from mri_n2n.report import montage
from mri_n2n.simulation import measure, seeded
from mri_n2n.steps import new_optimizer, training_step
from mri_n2n.training import new_network, sources_of

MATRIX = 128
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


N2N, ONE_PASS, EXCHANGE = "Noise2Noise", "Noise2Noise, one pass", "Noise2Noise, exchanging samples"
BEST = "the best baseline"
TWO = {
    N2N: {"method": "noise2noise"},
    EXCHANGE: {"method": "noise2noise", "pair": PairOptions(exchange=True)},
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
            (N2N, BEST, 0.0),
        ),
    ),
    "lines": Cell(
        "8 coils, Gaussian lines 6x",
        LINES,
        TWO,
        ("zero-filled", "sense", "wavelet", "tv"),
        ((N2N, "supervised", -0.2), (N2N, "k-weighted SSDU", 0.0), (N2N, BEST, 0.0)),
    ),
    "noise": Cell(
        "8 coils, Gaussian lines 6x, noise 5 %",
        LINES | {"noise": (0.05, 0.05)},
        TWO | {"robust SSDU": {"method": "robust-ssdu"}},
        ("zero-filled", "sense", "wavelet", "tv"),
        ((N2N, "supervised", -0.2), (N2N, "k-weighted SSDU", 0.0), (N2N, "robust SSDU", 0.0), (N2N, BEST, 0.0)),
    ),
    "one-coil-lines": Cell(
        "one coil, Gaussian lines 6x",
        LINES | {"coils": ()},
        {label: TWO[label] for label in (N2N, EXCHANGE, "k-weighted SSDU", "supervised")},
        ("zero-filled", "wavelet", "tv"),
        ((N2N, "supervised", -0.2), (N2N, "k-weighted SSDU", 0.0), (N2N, BEST, 0.0)),
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
        (
            ("equivariant imaging", "SSDU", 0.5),
            ("equivariant imaging", "zero-filled", 1.0),
            ("equivariant imaging", BEST, 0.0),
        ),
    ),
}


PARTS = tuple(CELLS)


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
    [name] = {option.device for option in options.values()}
    device = choose_device(name)
    clock = training_clock(device)
    precision = choose_precision("auto", device)
    ready = {}
    for label, option in options.items():
        network = new_network(option, device, precision)
        source = sources_of(option).train[0]
        batches = training_batches([source], option.protocol, option.batch_size)
        for _ in range(6 * -(-source.slices // option.batch_size)):  # maps of nearly all acquisitions are found
            next(batches)
        ready[label] = network, new_optimizer(network, 1e-5), batches
    seconds = {label: [] for label in options}
    for number in range(rounds + 1):
        for label, (network, optimizer, batches) in ready.items():
            started = clock()
            training_step(network, optimizer, next(batches), device, precision)
            if number:
                seconds[label].append(clock() - started)
    return {label: statistics.median(values) for label, values in seconds.items()}


def kept_step_seconds(options: dict[str, TrainOptions], folder: Path, quick: bool) -> dict[str, float]:
    """`step_seconds` of all, or what `folder` has of these very options: measured together, or not at all."""
    kept = folder / f"step-seconds-{digest(options)}.json"
    if not kept.exists():
        write_json(kept, {"seconds": step_seconds(options, 1 if quick else 7), "made": made_now()})
    return json.loads(kept.read_text())["seconds"]


def write_tests(data: Path, cell: Cell, folder: Path, quick: bool) -> list[Path]:
    """Scan files of the test subject's volumes with their references: one mask for all slices, each with noise of its own."""
    protocol = comparison_options(data, steps=1, protocol=cell.protocol).protocol
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for source in test_sources(data, MATRIX)[: 1 if quick else None]:
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


def reconstructed(files: list[Path], output: Path, *options: str, weights: Path | None = None) -> dict:
    """Scores of `mri-n2n reconstruct` on the files, and what it took; not done again where `output` holds it, made here by
    the same code."""
    command = ["reconstruct", *map(str, files), "-o", str(output), "--force", "--quiet", *options]
    command += ["--weights", str(weights)] if weights else []
    done = output / "done.json"
    of = [
        code_hash(),
        torch.__version__,
        hardware(),
        *command,
        *map(sha256_of, [*files, *([find_weights(weights)] if weights else [])]),
    ]
    if not done.exists() or json.loads(done.read_text())["of"] != of:
        mebibytes = peak_memory(command)
        write_json(done, {"of": of, "mebibytes": mebibytes})
    mebibytes = json.loads(done.read_text())["mebibytes"]
    sidecars = [json.loads((output / f"{path.stem}.json").read_text()) for path in files]
    found = scores(files, [read_reference(output / path.name) for path in files])
    seconds = sum(sidecar["seconds"] for sidecar in sidecars) / len(found["slices"])
    chosen = [one["baseline"] for one in sidecars if "regularisation" in one.get("baseline", {})]
    strengths = sorted({one["regularisation"] for one in chosen})
    unfinished = any(one["most_iterations"] >= ITERATIONS for one in chosen)
    said = " to ".join(f"{one:.2g}" for one in dict.fromkeys((*strengths[:1], *strengths[-1:])))
    return found | {
        "seconds_per_slice": seconds,
        "mebibytes": mebibytes,
        "regularisation": said + ", not converged" * unfinished,
    }


def at_training_scale(files: list[Path], run: Path) -> dict:
    """Scores of the 2018 recipe on the scale that it was trained on, which `reconstruct` can only guess: volume maximum 1."""
    network, _ = load_network(run / "weights.safetensors")
    scans = [open_scan(path) for path in files]
    acquisitions = [scan.read(0, scan.shape[0]) for scan in scans]
    return scores(files, [reconstruct_acquisition(network, one)[:, 0].abs().numpy() for one in acquisitions])


def scores(files: list[Path], volumes: list[np.ndarray]) -> dict:
    """Of magnitudes (slices, y, x) against the references in the files: means over slices and over volumes. images: of each
    volume the middle slice of the reference and of the reconstruction."""
    references = [read_reference(path) for path in files]
    pairs = list(zip(references, volumes, strict=True))
    of_volumes = [evaluate_arrays(*pair).volume for pair in pairs]
    slices = [psnr for pair in pairs for psnr in psnr_per_slice(*pair).tolist()]
    mean = lambda name: float(np.mean([getattr(one, name) for one in of_volumes]))  # noqa: E731
    return {
        "slice_psnr": float(np.mean(slices)),
        "psnr": mean("psnr"),
        "ssim": mean("ssim"),
        "nmse": mean("nmse"),
        "slices": slices,
        "images": {path.stem: [one[len(one) // 2] for one in pair] for path, pair in zip(files, pairs, strict=True)},
    }


def run_cell(name: str, data: Path, setting: Setting) -> dict[str, dict]:
    """Train and test everyone of one cell; label -> scores. Finished trainings in the output folder are used again."""
    cell, quick = CELLS[name], setting.quick
    folder = setting.output / f"methods-{name}{'-quick' if quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    each = {label: options_of(data, cell, changes, 1) for label, changes in cell.methods.items()}
    seconds = kept_step_seconds(each, folder, quick)
    files = write_tests(data, cell, folder / "test", quick)
    found = {}
    for baseline in cell.baselines:
        found[baseline] = reconstructed(files, folder / "images" / baseline, "--baseline", baseline)
    for label, changes in cell.methods.items():
        steps = steps_in(setting.minutes, seconds[label], quick)
        run = folder / label.replace(" ", "-")
        header = trained(options_of(data, cell, changes, steps), run)
        spent = {"steps": header["step"], "step_seconds": seconds[label], "made": header["made"]}
        found[label] = spent | reconstructed(files, folder / "images" / run.name, weights=run)
        if changes["method"].endswith("-2018"):
            found[label] |= at_training_scale(files, run)
        if label == N2N:
            found[ONE_PASS] = spent | reconstructed(
                files, folder / "images" / f"{run.name}-one", "--no-flips", weights=run
            )
        if changes["method"] == "robust-ssdu":  # the other ways to correct its images, with the same weights
            for correction in CORRECTIONS[1:]:
                other = with_correction(run, correction, folder / f"{run.name}-{correction}.safetensors")
                found[f"{label}, corrected: {correction}"] = spent | reconstructed(
                    files, folder / "images" / other.stem, weights=other
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
    """Table, differences and picture of a cell."""
    rows = [
        [
            label,
            scores["slice_psnr"],
            scores["psnr"],
            f"{scores['ssim']:.3f}",
            f"{scores['nmse']:.4f}",
            scores.get("steps", ""),
            scores["regularisation"],
            scores["seconds_per_slice"],
            f"{scores['mebibytes']:.0f}",
        ]
        for label, scores in found.items()
    ]
    header = ["", "PSNR per slice (dB)", "PSNR volume (dB)", "SSIM", "NMSE", "steps", "L", "s per slice", "peak MiB"]
    text = f"\n{CELLS[name].title}:\n\n" + table(header, rows)
    best = max(CELLS[name].baselines, key=lambda label: found[label]["slice_psnr"])
    for first, second, at_least in CELLS[name].wanted:
        second = best if second == BEST else second
        difference = float(np.mean(np.array(found[first]["slices"]) - np.array(found[second]["slices"])))
        text += (
            f"\n- {against(found, first, second)}; wanted: at least {at_least:+.2f}, {verdict(difference >= at_least)}."
        )
    if docs is not None:
        volume, (reference, _) = next(iter(next(iter(found.values()))["images"].items()))
        panels = [("reference", reference, (0.0, 0.8))]
        panels += [(label, scores["images"][volume][1], (0.0, 0.8)) for label, scores in found.items()]
        montage(panels, docs / "images" / f"methods-{name}.png", columns=4, note="simulated k-space")
        text += f"\n\nThe middle slice of {volume}:\n\n![{CELLS[name].title}](images/methods-{name}.png)\n"
    return text


def run(setting: Setting, part: str) -> str:
    data = phantom_folder(setting.output / "phantoms", MATRIX) if setting.data is None else data_folder(setting.data)
    found = run_cell(part, data, setting)
    numbers = {label: {key: value for key, value in one.items() if key != "images"} for label, one in found.items()}
    for folder in (setting.output, setting.docs):
        if folder is not None:
            write_json(folder / f"methods-{part}{'-quick' if setting.quick else ''}.json", numbers)
    test, validation = subjects_in(data)
    whom = "" if test == TEST_SUBJECT else f" Not open_ms: tested on {test}, validated on {validation}."
    made = made_of([one["made"] for one in found.values() if "made" in one])
    return f"{setting.minutes:g} minutes of training each.{whom} Trained on: {made}.\n" + section(
        part, found, setting.docs
    )
