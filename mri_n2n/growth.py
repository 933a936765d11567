"""Weights that a training starts from: those of the same network, or of a smaller one that grows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mri_n2n.checkpoint import load_network, network_options
from mri_n2n.errors import InputError


def initial_weights(init: Path, kind: str, options: dict, fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the weights file `init`, over the `fresh` ones of a new network. InputError when they do not fit it.

    An unrolled network without memory may have more cascades than `init`: the added ones begin as the identity (under
    noise or with several coils, as one more step towards the samples). And it may have soft consistency where `init` has hard: it begins blind to
    the noise level, and without noise as what it grew from.
    """
    network, header = load_network(init)
    if header["network"] != kind:
        raise InputError(f"{init} holds {header['network']}, not {kind}")
    wanted, found = network_options(kind, options), network_options(kind, header["network_options"])
    grown = dict(found)
    if kind == "unrolled" and not wanted["memory"]:
        if wanted["cascades"] > found["cascades"]:
            grown["cascades"] = wanted["cascades"]
        if wanted["consistency"] == "soft":
            grown["consistency"] = "soft"
    if grown != wanted:
        differ = [f"{name} {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]]
        raise InputError(f"{init} holds {kind} with {'; '.join(differ)}")
    return fresh | {name: _widened(value, fresh[name]) for name, value in network.state_dict().items()}


def _widened(value: Tensor, fresh: Tensor) -> Tensor:
    """As many rows as `fresh`, the added ones its own (one for each cascade); and weights of zero for channels that are new
    behind the old ones."""
    if value.shape[1:2] != fresh.shape[1:2]:
        channels = fresh.shape[1] - value.shape[1]
        value = torch.cat((value, value.new_zeros(len(value), channels, *value.shape[2:])), dim=1)
    return torch.cat((value, fresh[len(value) :].to(value)))
