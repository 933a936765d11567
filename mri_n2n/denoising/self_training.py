"""Noise2Void on one scan: a network trained on the very images that it then cleans."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, product

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mri_n2n.denoising.blind_spot import BlindSpot, hide
from mri_n2n.denoising.networks import BlindSpotUNet
from mri_n2n.device import autocast, choose_precision
from mri_n2n.errors import InputError
from mri_n2n.process import progress_shown
from mri_n2n.schedule import share_of_learning_rate
from mri_n2n.steps import limit_gradient, new_optimizer
from mri_n2n.training import moving_average, with_seed

# Largest side of what a step sees, (y, x) and (z, y, x), and the halvings of the network.
PATCH = {2: (128, 128), 3: (16, 64, 64)}
LEVELS = {2: 3, 3: 2}
# Of a tile in use: its inside, and the margin about it, wider than the network sees. Multiples of what it pools.
TILE = {2: (1024, 1024), 3: (32, 96, 96)}
MARGIN = {2: 80, 3: 32}
# A time is over in parts of this number: how many steps each of them had is what a training can be repeated by.
PARTS = 100


@dataclass(frozen=True)
class DenoiseOptions:
    """How a scan is denoised by itself. Give one of minutes and steps. dimensions: 2, slices, or 3, patches of the volume.
    artefact_free: the network of N2V2, see `BlindSpotUNet`. pace: of an earlier training by minutes, which it repeats, see `Fitted`."""

    spot: BlindSpot = field(default_factory=BlindSpot)
    dimensions: int = 2
    artefact_free: bool = True
    channels: int = 16
    batch_size: int = 1
    learning_rate: float = 1e-3
    average: float = 0.999
    minutes: float | None = None
    steps: int | None = None
    precision: str = "auto"
    seed: int = 0
    pace: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Fitted:
    """pace: the steps within each of the `PARTS` of the time; None of a budget in steps."""

    network: nn.Module
    steps: int
    seconds: float
    loss: float
    precision: str
    pace: tuple[int, ...] | None = None


def fit(
    images: Tensor, options: DenoiseOptions, device: torch.device, targets: Tensor | None = None, *, quiet: bool = True
) -> Fitted:
    """Train a network on images (slices, channels, y, x), of standard deviation about 1, from random weights.

    The loss is the squared error of the hidden pixels, whose noise no network can foretell; with targets, a second repetition
    (Noise2Noise) or the truth, that of all pixels, and nothing is hidden. Equal seed, equal result on the
    CPU with equal threads and a budget in steps, or an equal pace. Errors: InputError when the loss is not finite.
    """
    dimensions = options.dimensions
    # oneDNN's gradient of 3-D weights in bfloat16 holds values that nobody wrote, on processors with AVX-512 BF16 (torch 2.14).
    unsafe = options.precision == "auto" and dimensions == 3 and device.type == "cpu"
    precision = "float32" if unsafe else choose_precision(options.precision, device)
    shape = (images.shape[1], options.channels, LEVELS[dimensions], dimensions, options.artefact_free)
    network = with_seed(options.seed, partial(BlindSpotUNet, *shape, span=options.spot.span)).to(device)
    if precision == "bfloat16":
        layout = torch.channels_last if options.dimensions == 2 else torch.channels_last_3d
        network = network.to(memory_format=layout)
    optimizer = new_optimizer(network, options.learning_rate)
    average = AveragedModel(network, avg_fn=partial(moving_average, options.average))
    batches = patches(images, options, targets)
    step, loss, started, pace = 0, math.nan, time.monotonic(), [0] * PARTS
    bar = tqdm(total=options.steps, desc="denoise", unit="step", disable=not progress_shown(quiet), dynamic_ncols=True)
    with bar:
        while True:
            minutes = (time.monotonic() - started) / 60
            progress = progress_of(options, step, minutes)
            if progress >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * share_of_learning_rate(progress)
            given, target, predicted = (part.to(device) for part in next(batches))
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, precision):
                found = (predicted * (network(given) - target).square()).sum() / predicted.sum().clamp_min(1)
            found.backward()
            limit_gradient(optimizer)
            optimizer.step()
            average.update_parameters(network)
            step, loss = step + 1, found.item()
            pace[min(PARTS - 1, round(progress * PARTS))] += 1
            if not math.isfinite(loss):
                raise InputError(f"the loss became {loss} at step {step}; check the images, or lower the learning rate")
            bar.update()
            left = {} if options.steps else {"minutes_left": f"{max(0.0, options.minutes - minutes):.1f}"}
            bar.set_postfix({"loss": f"{loss:.3e}", **left}, refresh=False)
    seconds, pace = time.monotonic() - started, None if options.steps else tuple(pace)
    return Fitted(average.module.eval(), step, seconds, loss, precision, pace)


def progress_of(options: DenoiseOptions, step: int, minutes: float) -> float:
    """The share of the training that is over, 0 to 1: of steps, or of time in whole `PARTS`, by the clock or by the pace of another."""
    if options.steps:
        return step / options.steps
    part = (
        PARTS * minutes / options.minutes if options.pace is None else bisect_right([*accumulate(options.pace)], step)
    )
    return min(1.0, math.floor(part) / PARTS)


def patches(
    images: Tensor, options: DenoiseOptions, targets: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of (input, target, which pixels count): random patches, each mirrored at random along every axis."""
    draw = Generator().manual_seed(options.seed)
    channels = images.shape[1]
    volume = (images if targets is None else torch.cat((images, targets), dim=1)).movedim(
        1, 0
    )  # (channels, slices, y, x)
    three = options.dimensions == 3
    size = PATCH[options.dimensions] if three else (1, *PATCH[2])
    size = tuple(min(a, b) for a, b in zip(size, volume.shape[1:]))
    while True:
        examples = []
        for _ in range(options.batch_size):
            corner = [int(torch.randint(n - s + 1, (), generator=draw)) for n, s in zip(volume.shape[1:], size)]
            patch = volume[(slice(None), *(slice(c, c + s) for c, s in zip(corner, size)))]
            patch = patch if three else patch[:, 0]
            axes = [axis for axis in range(1, patch.ndim) if torch.rand((), generator=draw) < 0.5]
            examples.append(patch.flip(axes))
        given, target = (
            torch.stack(examples).split(channels, dim=1) if targets is not None else 2 * [torch.stack(examples)]
        )
        if targets is None:
            given, predicted = hide(target, options.spot, draw)
        else:
            predicted = torch.ones_like(given[:, :1])
        yield given, target, predicted


@torch.inference_mode()
def clean(network: nn.Module, images: Tensor, dimensions: int, device: torch.device) -> Tensor:
    """The network's images (slices, channels, y, x), mean over the mirror images, of all pixels: in use nothing is hidden."""
    if dimensions == 2:
        return torch.cat([_tiled(network, one[None], 2, device) for one in images])
    return _tiled(network, images.movedim(1, 0)[None], 3, device)[0].movedim(0, 1)


def _tiled(network: nn.Module, whole: Tensor, dimensions: int, device: torch.device) -> Tensor:
    """(1, channels, [z,] y, x), tile by tile: each with a margin of what lies around it."""
    result, size = torch.empty_like(whole), whole.shape[2:]
    tile, margin = TILE[dimensions], MARGIN[dimensions]
    for corner in product(*(range(0, n, t) for n, t in zip(size, tile))):
        inner = [slice(c, min(c + t, n)) for c, t, n in zip(corner, tile, size)]
        outer = [slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(inner, size)]
        cleaned = _mirrored(network, whole[(..., *outer)].to(device)).cpu()
        within = [slice(s.start - o.start, s.stop - o.start) for s, o in zip(inner, outer)]
        result[(..., *inner)] = cleaned[(..., *within)]
    return result


def _mirrored(network: nn.Module, part: Tensor) -> Tensor:
    """Mean over the four mirror images in the plane."""
    total = torch.zeros_like(part)
    for axes in ((), (-1,), (-2,), (-2, -1)):
        total += network(part.flip(axes)).flip(axes)
    return total / 4
