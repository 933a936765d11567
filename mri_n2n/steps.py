"""One step of a training, on a batch that may be made beside it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from mri_n2n.device import autocast
from mri_n2n.distributed import ALONE, Processes
from mri_n2n.losses import loss_of
from mri_n2n.pairs import Pair

# The longest gradient, of its usual length, and the first step in which it is limited.
LONGEST_GRADIENT, FIRST_LIMITED = 4.0, 20


class Prefetch:
    """An iterator that makes its next item in a second thread while the caller works on the last one."""

    def __init__(self, items: Iterator) -> None:
        self.items, self.thread = items, ThreadPoolExecutor(max_workers=1)
        self.upcoming = self.thread.submit(next, items)

    def __next__(self):
        item, self.upcoming = self.upcoming.result(), self.thread.submit(next, self.items)
        return item


def new_optimizer(network: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """Adam of all parameters, in one kernel; `schedule.set_schedule` changes its rate and momentum."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True)


def training_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    pairs: list[Pair],
    device: torch.device,
    precision: str,
    progress: float = 0.0,
    processes: Processes = ALONE,
) -> float:
    """One step on one batch (a list of pairs, see `batches`; of several processes each its part of it, which may be empty); returns its
    loss. progress: of the training, in [0, 1]."""
    network.train()
    optimizer.zero_grad(set_to_none=True)
    total, count = 0.0, 0
    for pair in pairs:
        pair, slices = pair.to(device), pair.input.kspace.shape[0]
        with autocast(device, precision):
            loss = loss_of(network, pair, progress) * slices  # sums, which several processes add up as one does
        loss.backward()
        total, count = total + loss.item(), count + slices
    total = processes.mean_gradient(list(network.parameters()), total, count)
    limit_gradient(optimizer)
    optimizer.step()
    return total


def limit_gradient(optimizer: torch.optim.Adam) -> None:
    """Scale the gradient down to `LONGEST_GRADIENT` times its usual length, the root of Adam's mean square, which one
    outlier would fill for a hundred steps. Not in the first steps, when there is nothing usual."""
    [group] = optimizer.param_groups
    states = [optimizer.state[parameter] for parameter in group["params"] if parameter in optimizer.state]
    steps = int(states[0]["step"]) if states else 0
    if steps >= FIRST_LIMITED:
        square = torch.stack([state["exp_avg_sq"].sum() for state in states]).sum() / (1 - group["betas"][1] ** steps)
        torch.nn.utils.clip_grad_norm_(group["params"], LONGEST_GRADIENT * square.sqrt().item())
