"""Statistics of training scans, which weights keep: what `trust.familiarity` compares a new scan with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mri_n2n.acquisition import Acquisition
from mri_n2n.checkpoint import load_tensors, save_tensors
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.inference import load_for_use, reconstruct_acquisition
from mri_n2n.protocol import Protocol, one_slice, simulated_repetitions, undersampled
from mri_n2n.sources import Source
from mri_n2n.trust.familiarity import learned, looked_at, statistics_of
from mri_n2n.volumes import Volume

# About so many scans, and how often a volume is acquired anew by simulation at most.
SCANS, TIMES = 48, 8


def familiarity_of(
    network: nn.Module, sources: Sequence[Source], protocol: Protocol, device: torch.device, scans: int = SCANS
) -> dict | None:
    """What the header of a network's weights keeps of the scans it was trained on: some slices of about `scans` of them, one
    acquisition as in use, simulated ones up to `TIMES` with other masks. None where `learned` has none."""
    times = min(TIMES, -(-scans // len(sources)))
    chosen = list(sources)[:: -(-len(sources) // scans)]
    image_of = partial(reconstruct_acquisition, network, device=device)
    found, subjects, volumes = [], [], []
    for source in chosen:
        data = source.load()
        for time in range(times if isinstance(data, Tensor) or protocol.undersample else 1):
            about = f"statistics {time} {source.name}"
            slices = [_acquired(data, index, about, protocol) for index in looked_at(source.slices)]
            there = [one.to(device) for one in slices if one.kspace.any()]
            if there:
                found.append([statistics_of(one, image_of) for one in there])
                subjects.append(source.subject)
                volumes.append(source.name)
    return learned(found, subjects, volumes)


def _acquired(data: Volume, index: int, about: str, protocol: Protocol) -> Acquisition:
    """One slice of a volume, by simulation or as it was measured, with one mask for all slices of a scan where it is drawn."""
    if isinstance(data, Tensor):
        one = simulated_repetitions(data[index : index + 1], 0, about, protocol).first
    else:
        one = one_slice(data[0], index, None)
        one = undersampled(one, 0, about, 0, protocol) if protocol.undersample else one
    return with_sensitivity_maps(one)[0] if one.kspace.shape[1] > 1 else one


def add_to(
    weights: Path, sources: Sequence[Source], protocol: Protocol, device: torch.device, scans: int = SCANS
) -> None:
    """Write the statistics of training scans into the header of weights, where they are not there yet."""
    tensors, header = load_tensors(weights)
    if "familiarity" in header:
        return
    network = load_for_use(weights, device.type).network
    header["familiarity"] = familiarity_of(network, sources, protocol, device, scans)
    save_tensors(weights, tensors, header)
