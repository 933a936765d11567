"""A training step end to end against the bare network

Seconds of the real training loop's step (acquiring, pairing, loss, optimiser) over seconds of the network's own forward and
backward on a batch that is ready, in turns in one run. Phantoms from the package, drawn before the clock starts and kept
in memory, as volumes are in training: no data needed.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch import nn

from mri_n2n.batches import Protocol, steps_per_epoch, training_batches
from mri_n2n.benchmarks.common import table
from mri_n2n.checkpoint import build_network
from mri_n2n.datasets import phantom_sources
from mri_n2n.device import autocast, choose_device, choose_precision
from mri_n2n.training import Prefetch, training_step

WARM_UP = 2
CASES = (("unrolled", "default", 8), ("unet", "noise2noise-2018", 16))


def bare_step(network: nn.Module, pair, device: torch.device, precision: str) -> None:
    """Forward and backward of the network alone."""
    network.zero_grad(set_to_none=True)
    with autocast(device, precision):
        image = network(pair.input)
    torch.view_as_real(image).square().sum().backward()


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def run(data: Path | None, output: Path, docs: Path | None, quick: bool) -> str:
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    sources = phantom_sources(128, train=WARM_UP, slices=CASES[-1][-1]).train
    rows = []
    for kind, recipe, batch_size in CASES:
        network = build_network(kind, {}).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
        default = recipe == "default"
        protocol = Protocol(recipe=recipe, pairs="fixed" if default else "redrawn", flips=default)
        batches = training_batches(sources, protocol, batch_size)
        for _ in range(steps_per_epoch(sources, batch_size)):  # every volume is drawn
            [ready] = next(batches)
        ready = ready.to(device)
        upcoming = Prefetch(batches) if device.type == "cuda" else batches  # as in training
        whole, bare = [], []
        for repeat in range((1 if quick else 15) + WARM_UP):
            started = now(device)
            training_step(network, optimizer, next(upcoming), device, precision)
            between = now(device)
            bare_step(network, ready, device, precision)
            if repeat >= WARM_UP:  # the first passes allocate memory
                whole.append(between - started)
                bare.append(now(device) - between)
        ratios = [w / b for w, b in zip(whole, bare)]
        rows.append(
            [
                kind,
                recipe,
                batch_size,
                precision,
                1e3 * statistics.median(whole) / batch_size,
                1e3 * statistics.median(bare) / batch_size,
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        )
    header = [
        "network",
        "recipe",
        "batch",
        "precision",
        "step, ms per image",
        "bare forward + backward, ms per image",
        "ratio: median (least to most)",
    ]
    return table(header, rows) + (
        "\nWanted: at most 1.25. 128x128 phantoms; on the CPU the real loop makes its batches in line too, on a GPU in a second thread.\n"
    )
