"""A training step end to end against the bare network

Seconds of the real training loop's step (acquiring, pairing, loss, optimiser) over seconds of the network's own forward and
backward on a batch that is ready, in turns in one run. Phantoms from the package, drawn before the clock starts and kept
in memory, as volumes are in training: no data needed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from mri_n2n.batches import steps_per_epoch, training_batches
from mri_n2n.benchmarks.common import Setting, table
from mri_n2n.checkpoint import build_network
from mri_n2n.datasets import phantom_sources
from mri_n2n.device import autocast, choose_device, choose_precision
from mri_n2n.protocol import Protocol
from mri_n2n.training import Prefetch, training_step

BLOCK = 3
CASES = (("unrolled", "noise2noise", 8), ("unet", "noise2noise-2018", 16))


def bare_step(network: nn.Module, pair, device: torch.device, precision: str) -> None:
    """Forward and backward of the network alone."""
    network.zero_grad(set_to_none=True)
    with autocast(device, precision):
        image = network(pair.input)
    torch.view_as_real(image).square().sum().backward()


def timed(step: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each of `BLOCK` steps in a row; one before them, which fills caches and queues, does not count."""
    seconds = []
    for _ in range(BLOCK + 1):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def measured(kind: str, method: str, batch_size: int, blocks: int) -> list[object]:
    """One row of the table: the median step, bare step and ratio of one case."""
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    network = build_network(kind, {}).to(device)
    if precision == "bfloat16":
        network = network.to(memory_format=torch.channels_last)  # as in training
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    recipe = method == "noise2noise-2018"
    protocol = Protocol(method=method, pairs="redrawn" if recipe else "fixed", flips=not recipe)
    sources = phantom_sources(128, train=2, slices=16).train
    batches = training_batches(sources, protocol, batch_size)
    for _ in range(steps_per_epoch(sources, batch_size)):  # every volume is drawn
        [ready] = next(batches)
    ready = ready.to(device)
    upcoming = Prefetch(batches) if device.type == "cuda" else batches  # as in training
    whole, bare = [], []
    for _ in range(blocks):  # within a block, a batch made ahead costs the step that waits for it
        whole += timed(lambda: training_step(network, optimizer, next(upcoming), device, precision), device)
        bare += timed(lambda: bare_step(network, ready, device, precision), device)
    ratios = [w / b for w, b in zip(whole, bare)]
    milliseconds = [1e3 * statistics.median(seconds) / batch_size for seconds in (whole, bare)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [kind, method, batch_size, precision, *milliseconds, spread]


def run(setting: Setting) -> str:
    rows = [measured(*case, blocks=1 if setting.quick else 6) for case in CASES]
    header = [
        "network",
        "method",
        "batch",
        "precision",
        "step, ms per image",
        "bare forward + backward, ms per image",
        "ratio: median (least to most)",
    ]
    return table(header, rows) + (
        "\nWanted: at most 1.25. 128x128 phantoms; on the CPU the real loop makes its batches in line too, on a GPU in a second thread.\n"
    )
