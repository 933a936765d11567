"""Which training method fits the data: `train --method auto`."""

from __future__ import annotations

import math

import torch

from mri_n2n.datasets import MEASURED
from mri_n2n.fourier import ifft2c
from mri_n2n.noise import noise_variance_at_most
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.pairs import FULL
from mri_n2n.protocol import Protocol
from mri_n2n.sources import Source

# Scans that are looked at.
LOOKED_AT = 12
# Noise with a standard deviation above this share of the largest magnitude is worth a method of its own: below, the bound
# that the outermost samples give is the image's detail.
NOISY = 0.02


def choose_method(dataset: str, sources: list[Source], protocol: Protocol) -> tuple[str, str]:
    """(method, why) for a data set: Noise2Noise wherever slices were or can be acquired twice; of single scans splitting,
    or equivariant imaging where all of them have one mask; with noise their robust forms; Noise2Void where they are fully
    sampled."""
    if dataset not in MEASURED:
        if protocol.acquisitions == 2:
            return "noise2noise", "every slice is acquired twice, by simulation"
        if protocol.acceleration[1] == 1:
            return "noise2void", "every slice is acquired once, fully sampled, by simulation"
        masks = "one mask for all" if protocol.one_mask else "different masks"
        return _of_single_scans("simulated", masks, not protocol.one_mask, protocol.noise[1])
    coils, repetitions, share, masks, full = 1, [], 0.0, set(), True
    for source in sources[:LOOKED_AT]:  # one in memory at a time
        scan = source.load()
        coils, share = max(coils, scan[0].kspace.shape[1]), max(share, _noise_share(scan[0]))
        repetitions.append(len(scan))
        full = full and scan[0].mask.mean().item() >= FULL
        masks |= {mask.numpy().tobytes() for mask in scan[0].mask}
    of = f"{coils} coils" if coils > 1 else "one coil"
    if min(repetitions) > 1:
        return "noise2noise", f"the scans have repetitions ({of}), whose noise is independent too"
    if full:
        return "noise2void", f"single training scans ({of}), fully sampled: only their noise can be taken away"
    told = "different masks" if len(masks) > 1 else f"one mask in all of the {len(repetitions)} looked at"
    return _of_single_scans(of, told, len(masks) > 1, share)


def _of_single_scans(of: str, masks: str, differ: bool, share: float) -> tuple[str, str]:
    noisy = share > NOISY
    level = f"noise of {share:.1%} of the zero-filled image's maximum" if noisy else "little noise"
    methods = ("k-weighted-ssdu", "robust-ssdu") if differ else ("equivariant", "robust-equivariant")
    return methods[noisy], f"single training scans ({of}), {masks}, {level}"


def _noise_share(scan) -> float:
    """Standard deviation of the noise of a scan's middle slice, known or at most, over its largest magnitude."""
    middle = scan.slices(torch.tensor([len(scan.kspace) // 2]))
    variance = middle.noise_variance
    if variance is None:
        variance = noise_variance_at_most(middle.kspace, middle.mask).item()
    peak = root_sum_of_squares(ifft2c(middle.kspace)).max().item()
    return math.sqrt(variance) / peak if peak and not math.isnan(variance) else 0.0
