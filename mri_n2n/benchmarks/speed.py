"""How fast, against the arithmetic of the same machine: ratios, each of one run

`start`: the command line, cold, in seconds. `training`: a step of the real loop with its moving average against the bare network, what making a batch of volumes in memory
takes of it, and of volumes in files, and the unrolled network against its U-Nets alone. `recipe`: the step of the 2018 U-Net at 256x256 in batches of 16 against products of 2048x2048 matrices of the same type, and against
the same step as it is usually written. `reconstruction`: a scan in a warm process against the bare network. `memory`: trainings of 1,000 and of 20,000
slices, of which both see the same number: it is what listing more costs. `processes`: two processes under torchrun against one. Phantoms from the package; no data needed. `start`, `training` and the product
in `recipe` are timed in turns, least of some times; the usual step after ours, and `reconstruction` once, its bare network after it, the median of three. Each time may be off by
as much as the machine does beside it. bfloat16 where the processor has it, else float32.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from mri_n2n.batches import steps_per_epoch, training_batches
from mri_n2n.benchmarks.common import SEED, Setting, peak_memory, table, verdict
from mri_n2n.checkpoint import BUNDLED, build_network, load_tensors
from mri_n2n.datasets import find_sources, phantom_sources
from mri_n2n.device import autocast, choose_device, choose_precision
from mri_n2n.formats import write_scan
from mri_n2n.fourier import ifft2c
from mri_n2n.inference import PIXELS_AT_ONCE, load_for_use
from mri_n2n.masks import draw_mask
from mri_n2n.phantom import phantom_kspace
from mri_n2n.process import tune_process
from mri_n2n.protocol import Protocol
from mri_n2n.reconstruction import reconstruct_files
from mri_n2n.simulation import measure, seeded
from mri_n2n.steps import Prefetch, new_optimizer, training_step
from mri_n2n.training import moving_average

PARTS = ("start", "training", "recipe", "reconstruction", "memory", "processes")
HEADER = ["what", "measured", "", "wanted", ""]
RECIPE = {"matrix": 256, "batch": 16}
PRODUCT = 2048
RATE, BETAS = 1e-3, (0.9, 0.99)  # those of training


def run(setting: Setting, part: str) -> str:
    rows = {
        "start": start,
        "training": training,
        "recipe": recipe,
        "reconstruction": reconstruction,
        "memory": memory,
        "processes": processes,
    }[part](setting.quick)
    return table(HEADER, rows)


def row(what: str, value: float, told: str, wanted: float, *, least: bool = False) -> list[object]:
    """Of a value that is to be at most (or at least) `wanted`. told: what it is made of."""
    met = value >= wanted if least else value <= wanted
    return [what, f"{value:.3g}", told, f"{'at least' if least else 'at most'} {wanted:g}", verdict(met)]


def seconds(work: Callable[[], object], times: int) -> list[float]:
    """Of each of `times` calls, after one that does not count."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found[1:]


def in_turns(*work: Callable[[], object], times: int, blocks: int = 2) -> list[float]:
    """The least seconds of each, called in turns."""
    found: list[list[float]] = [[] for _ in work]
    for _ in range(blocks):
        for one, of_one in zip(work, found):
            of_one += seconds(one, times)
    return [min(one) for one in found]


# ---- start ----

# Whether --help imports torch.
LOADED = "import sys; from mri_n2n.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"


def start(quick: bool) -> list[list[object]]:
    python = [sys.executable, "-W", "ignore"]
    command = lambda *what: lambda: subprocess.run([*python, *what], check=True, capture_output=True)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        scan = written_scan(Path(folder), 1, 256)
        reconstruct = ["-m", "mri_n2n", "reconstruct", str(scan), "-o", f"{folder}/out", "--force", "--quiet"]
        times = 1 if quick else 3
        help_, torch_alone, whole = in_turns(
            command("-m", "mri_n2n", "--help"), command("-c", "import torch"), command(*reconstruct), times=times
        )
    loaded = subprocess.run([*python, "-c", LOADED], check=True, capture_output=True, text=True).stdout.split()[-1]
    beyond = f"{whole:.2f} s, import torch {torch_alone:.2f} s; one coil, 256x256, mean over mirror images"
    return [
        row("mri-n2n --help, s", help_, f"torch imported: {loaded}", 0.15),
        row("reconstruct of one slice, cold, s beyond import torch", whole - torch_alone, beyond, 2.0),
    ]


def written_scan(folder: Path, slices: int, matrix: int) -> Path:
    """A simulated scan, 8x roulette, of a few different slices again and again."""
    draw = seeded(SEED, "speed")
    full = torch.stack([phantom_kspace((matrix, matrix), generator=draw) for _ in range(min(slices, 8))])
    one = measure(full, draw_mask("roulette", (matrix, matrix), 8.0, draw, hermitian=True), draw)
    each = (one.kspace[i % len(full)].numpy().astype(np.complex64) for i in range(slices))
    path, planes = (
        folder / f"{slices}.h5",
        {"mask": one.mask[0, 0].numpy(), "probability": one.probability[0, 0].numpy()},
    )
    write_scan(path, each, (slices, 1, matrix, matrix), **planes)
    return path


def written_volume(folder: Path, slices: int, matrix: int) -> Path:
    """A volume of magnitudes, gzip, of two different slices again and again."""
    draw = seeded(SEED, "volume")
    images = ifft2c(torch.stack([phantom_kspace((matrix, matrix), generator=draw) for _ in range(2)])).abs()
    voxels = images[:, 0].numpy().astype(np.float32)[np.arange(slices) % 2].transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / "volume.nii.gz")
    return folder / "volume.nii.gz"


# ---- training ----

CASES = (("unrolled", "noise2noise", None), ("unet", "noise2noise-2018", 16))


def prepared(kind: str, precision: str) -> tuple[nn.Module, torch.optim.Optimizer, torch.device]:
    """A network as in training, its optimiser and device."""
    device = choose_device("auto")
    network = build_network(kind, {}).to(device)
    if precision == "bfloat16":
        network = network.to(memory_format=torch.channels_last)
    return network, new_optimizer(network, RATE), device


def bare_step(network: nn.Module, given: object, device: torch.device, precision: str) -> None:
    """Forward and backward of the network alone."""
    network.zero_grad(set_to_none=True)
    with autocast(device, precision):
        out = network(given)
    (torch.view_as_real(out) if out.is_complex() else out).square().sum().backward()


def training(quick: bool) -> list[list[object]]:
    found, times = [], 1 if quick else 4
    for kind, method, size in CASES:
        precision = choose_precision("auto", choose_device("auto"))
        network, optimizer, device = prepared(kind, precision)
        size = size or (8 if device.type == "cuda" else 2)
        recipe = method == "noise2noise-2018"
        protocol = Protocol(method=method, pairs="redrawn" if recipe else "fixed", flips=not recipe)
        sources = phantom_sources(128, train=1, slices=16).train
        batches = training_batches(sources, protocol, size)
        for _ in range(steps_per_epoch(sources, size)):  # every volume is drawn
            [ready] = next(batches)
        ready = ready.to(device)
        upcoming = Prefetch(batches) if device.type == "cuda" else batches  # as in training
        average = AveragedModel(network, avg_fn=partial(moving_average, 0.999))

        def one_step() -> None:
            training_step(network, optimizer, next(upcoming), device, precision)  # noqa: B023
            average.update_parameters(network)  # noqa: B023

        step, bare, loading = in_turns(
            one_step,
            lambda: bare_step(network, ready.input, device, precision),  # noqa: B023
            lambda: next(upcoming),  # noqa: B023
            times=times,
        )
        told = (
            f"{1e3 * step / size:.0f} and {1e3 * bare / size:.0f} ms per image; batches of {size}, 128x128, {precision}"
        )
        found.append(row(f"{kind}: training step / bare forward and backward", step / bare, told, 1.15))
        share = f"{1e3 * loading / size:.1f} ms per image; the network waits {loading / step:.1%} of a step" + (
            "" if device.type == "cpu" else " at most, as batches are made beside it"
        )
        found.append(row(f"{kind}: masking and pairing of volumes in memory / network", loading / bare, share, 0.1))
        reading = reading_seconds(times)
        told = f"{1e3 * reading:.1f} ms per image to read it, once an epoch where volumes do not stay in memory"
        found.append(
            row(f"{kind}: reading, masking and pairing / network", (reading * size + loading) / bare, told, 0.1)
        )
        if kind == "unrolled":
            inputs = unet_inputs(network, ready.input, device, precision)
            whole, alone = in_turns(
                one_step,
                lambda: [bare_step(one, given, device, precision) for one, given in inputs],  # noqa: B023
                times=times,
            )
            told = f"{1e3 * whole / size:.0f} and {1e3 * alone / size:.0f} ms per image, {len(inputs)} U-Nets"
            found.append(row("unrolled: training step / sum of its U-Nets' bare steps", whole / alone, told, 1.3))
    return found


def reading_seconds(times: int) -> float:
    """Of a slice of a NIfTI file, 128x128, with its Fourier transform."""
    with tempfile.TemporaryDirectory() as folder:
        written_volume(Path(folder), 50, 128)
        [source] = find_sources("nifti", Path(folder), matrix_size=128, validation_subjects=("none",)).train
        return min(seconds(source.load, times)) / source.slices


def unet_inputs(
    network: nn.Module, acquisition: object, device: torch.device, precision: str
) -> list[tuple[nn.Module, Tensor]]:
    """The U-Nets of an unrolled network, each with what it is given."""
    found: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        one.register_forward_pre_hook(lambda module, given: found.append((module, given[0].detach())))
        for one in network.unets
    ]
    with autocast(device, precision), torch.no_grad():
        network(acquisition)
    for hook in hooks:
        hook.remove()
    return found


# ---- the recipe of 2018 ----


def recipe(quick: bool) -> list[list[object]]:
    precision = choose_precision("auto", choose_device("auto"))
    ours = in_process(recipe_step, precision, True, quick)
    usual = in_process(recipe_step, "float32", False, quick)
    flops, size = ours["flops"], ours["size"]
    reached, peak = flops / ours["seconds"] / 1e9, ours["peak"] / 1e9
    told = f"{reached:.0f} of {peak:.0f} GFLOP/s, {precision}; {1e3 * ours['seconds'] / size:.0f} ms per image"
    beside = f"{1e3 * usual['seconds'] / size:.0f} and {1e3 * ours['seconds'] / size:.0f} ms per image; float32, default layout and allocator / {precision}"
    return [
        row("2018 U-Net, training step: share of the matrix product's rate", reached / peak, told, 0.8, least=True),
        row("the same step as usually written / this one", usual["seconds"] / ours["seconds"], beside, 6.0, least=True),
    ]


def in_process(work: Callable, *arguments: object) -> dict[str, float]:
    """What `work` returns, in a process of its own: settings of a process stay there."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def recipe_step(precision: str, tuned: bool, quick: bool) -> dict[str, float]:
    """Seconds and floating-point operations of a step, and operations a second of a matrix product."""
    if tuned:
        tune_process()
    matrix, size = (64, 2) if quick else (RECIPE["matrix"], RECIPE["batch"])
    network, optimizer, device = prepared("unet", precision)
    sources = phantom_sources(matrix, train=1, slices=size).train
    [pair] = next(training_batches(sources, Protocol(method="noise2noise-2018", pairs="redrawn", flips=False), size))
    pair, kind = pair.to(device), torch.bfloat16 if precision == "bfloat16" else torch.float32
    draw = seeded(SEED, "product")
    left, right = (torch.randn(PRODUCT, PRODUCT, generator=draw).to(device, kind) for _ in range(2))
    step, product = in_turns(
        lambda: training_step(network, optimizer, [pair], device, precision),
        lambda: left @ right,
        times=1 if quick else 2,
    )
    with FlopCounterMode(display=False) as counter:
        training_step(network, optimizer, [pair], device, precision)
    return {"seconds": step, "size": size, "flops": counter.get_total_flops(), "peak": 2 * PRODUCT**3 / product}


# ---- reconstruction ----


def reconstruction(quick: bool) -> list[list[object]]:
    slices, matrix = (4, 64) if quick else (150, 256)
    loaded = load_for_use(BUNDLED, "auto")
    with tempfile.TemporaryDirectory() as folder:
        scan, first = (written_scan(Path(folder), n, matrix) for n in (slices, 2))
        options = {"flips": False, "force": True, "quiet": True}
        reconstruct_files([first], Path(folder) / "out", **options)  # warm
        began = time.perf_counter()
        reconstruct_files([scan], Path(folder) / "out", **options)
        whole = (time.perf_counter() - began) / slices
    draw, count = seeded(SEED, "bare"), max(1, PIXELS_AT_ONCE // matrix**2)
    full = torch.stack([phantom_kspace((matrix, matrix), generator=draw) for _ in range(count)])
    given = measure(full, draw_mask("roulette", (matrix, matrix), 8.0, draw, hermitian=True), draw).to(loaded.device)
    with torch.inference_mode():
        bare = statistics.median(seconds(lambda: loaded.network(given), 3)) / count
    told = f"{1e3 * whole:.0f} and {1e3 * bare:.0f} ms; {slices} slices of {matrix}x{matrix}, one coil, network alone"
    return [row("reconstruct in a warm process / bare network, per slice", whole / bare, told, 1.3)]


# ---- memory ----


def memory(quick: bool) -> list[list[object]]:
    """Hard links make many files of one."""
    matrix, each, steps, counts = (32, 4, 2, (2, 4)) if quick else (256, 50, 160, (20, 400))
    with tempfile.TemporaryDirectory() as folder:
        volume = written_volume(Path(folder), each, matrix)
        peaks = []
        for count in counts:
            data = Path(folder) / str(count)
            data.mkdir()
            for number in range(count):
                os.link(volume, data / f"{number:04}.nii.gz")
            options = f"--dataset nifti --data {data} --channels 2 --cascades 1 --batch-size 8 --steps {steps} --validation-subjects none --quiet"
            peaks.append(peak_memory(["train", *options.split(), "-o", str(Path(folder) / f"run{count}")]))
    told = f"{peaks[0]:.0f} and {peaks[1]:.0f} MiB at {counts[0] * each} and {counts[1] * each} slices of {matrix}x{matrix}, {steps * 8} of which are trained on"
    return [row("peak memory of training with 20 times the slices", peaks[1] / peaks[0], told, 1.05)]


# ---- processes ----


def processes(quick: bool) -> list[list[object]]:
    """After one step."""
    command = "train --dataset phantom --matrix-size 32 --channels 4 --cascades 1 --batch-size 4 --steps 1 --device cpu --precision float32 --average 0 --quiet"
    runner = [sys.executable, "-W", "ignore", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for name, before, more in (
            ("one", [], ["--shards", "2"]),
            ("two", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"], []),
        ):
            whole = [*runner, *before, "mri_n2n", *command.split(), *more, "-o", f"{folder}/{name}"]
            subprocess.run(whole, check=True, capture_output=True, env=environment)
        one, two = (load_tensors(Path(folder) / name / "checkpoint.safetensors")[0] for name in ("one", "two"))
    rows = (
        ("gradient", gradient),
        ("first update by Adam", update),
    )
    differ = lambda of: (torch.linalg.vector_norm(of(one) - of(two)) / torch.linalg.vector_norm(of(one))).item()  # noqa: E731
    told = "of its length; float32, Gloo"
    return [row(f"difference of two processes from one: {name}", differ(of), told, 1e-5) for name, of in rows]


def gradient(tensors: dict[str, Tensor]) -> Tensor:
    """Of the first step, from the moments of a checkpoint after it."""
    return torch.cat([value.flatten() for name, value in tensors.items() if name.endswith(".exp_avg")]) / (1 - BETAS[0])


def update(tensors: dict[str, Tensor]) -> Tensor:
    """Adam's first, but for the learning rate, from the moments of a checkpoint after one step."""
    moments = [(name, value) for name, value in tensors.items() if name.endswith(".exp_avg")]
    steps = [
        (value / (1 - BETAS[0])) / ((tensors[f"{name}_sq"] / (1 - BETAS[1])).sqrt() + 1e-8) for name, value in moments
    ]
    return torch.cat([one.flatten() for one in steps])
