"""Several processes that train one network, as torchrun starts them: who this one is, and what they put together.

Gradients are added up by one all-reduce a step, not while they are made: networks here have few parameters, batches have pairs
of several shapes or none, losses call the network several times, and not every step reaches every parameter.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import torch
from torch import nn

from mri_n2n.errors import UserError


@dataclass(frozen=True)
class Processes:
    """rank: which of `count` processes this one is, from 0."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def agree(self, *values: float) -> tuple[float, ...]:
        """What the first process says, in all of them."""
        if self.count == 1:
            return values
        told = torch.tensor(values, dtype=torch.float64, device=_device())
        torch.distributed.broadcast(told, src=0)
        return tuple(told.tolist())

    def mean_gradient(self, parameters: Sequence[nn.Parameter], loss: float, slices: int) -> float:
        """Gradients and loss of this process, sums over its `slices` (none: no gradients), become means over those of all; returns the
        loss. A parameter without a gradient in every process stays so."""
        own = [one.grad for one in parameters]
        if self.count == 1:
            torch._foreach_div_([one for one in own if one is not None], slices)
            return loss / slices
        there = [float(one is not None) for one in own]
        flat = [(torch.zeros_like(p) if g is None else g).flatten().float() for p, g in zip(parameters, own)]
        flat = torch.cat([*flat, flat[0].new_tensor([loss, slices, *there])])
        torch.distributed.all_reduce(flat)
        gradients, (total, count, *there) = flat[: -2 - len(there)], flat[-2 - len(there) :].tolist()
        parts = (gradients / count).split([one.numel() for one in parameters])
        for parameter, part, some in zip(parameters, parts, there, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape)) if some else None
        return total / count


ALONE = Processes()


def told() -> Processes:
    """What torchrun says in the environment. Errors: UserError."""
    found = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(one.isdecimal() for one in found) or not int(found[0]) < int(found[1]):
        raise UserError(f"the environment says RANK={found[0]:.20} of WORLD_SIZE={found[1]:.20}, as no torchrun does")
    return Processes(*map(int, found))


@contextmanager
def joined(device: torch.device, *, share_gpu: bool = False) -> Iterator[Processes]:
    """The processes, connected where there are several; the first alone warns. NCCL between GPUs; Gloo on processors, and with `share_gpu`,
    where those of a machine have one GPU, which small networks do not fill."""
    processes = told()
    if processes.count == 1:
        yield processes
        return
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    # Its functions have the group of that moment as a default. An optimizer imports it too: after the group is made, that group and its
    # threads would outlive their end below, and now and then abort the interpreter's.
    import_module("torch.distributed.nn.functional")
    nccl = device.type == "cuda" and not share_gpu
    # The others wait while the first validates, longer than the ten minutes that NCCL waits by itself.
    torch.distributed.init_process_group("nccl" if nccl else "gloo", timeout=timedelta(days=1))
    try:
        with warnings.catch_warnings():
            if not processes.is_first:
                warnings.simplefilter("ignore")
            yield processes
    finally:
        torch.distributed.destroy_process_group()


def _device() -> torch.device:
    """Where collectives want their tensors."""
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")


def shared_out(sizes: Sequence[int], shards: int) -> list[list[int]]:
    """Numbers 0.. of files with so many slices, divided into `shards` of about as many slices; a file is in one. Errors: UserError."""
    if len(sizes) < shards:
        raise UserError(f"{shards} shards need as many files or more; there are {len(sizes)} to train on")
    found: list[list[int]] = [[] for _ in range(shards)]
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        min(found, key=lambda one: (sum(sizes[i] for i in one), len(one))).append(number)
    return [sorted(one) for one in found]
