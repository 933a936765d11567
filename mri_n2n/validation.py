"""How good a network is while it trains: a fixed set of slices, and one number for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mri_n2n.acquisition import Acquisition
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.corruptions import corrupted_kspace
from mri_n2n.device import autocast
from mri_n2n.files import atomic_output
from mri_n2n.fourier import ifft2c
from mri_n2n.losses import weighted_squared_error
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.pairs import Measured, Pair, noise2void, split, target_pair
from mri_n2n.protocol import Protocol, one_slice, simulated_repetitions, undersampled
from mri_n2n.report import comparison_figure
from mri_n2n.simulation import seeded
from mri_n2n.sources import Source

VALIDATION_SLICES = 48
VALIDATION_SHARE = 0.8  # of the rarely sampled locations of a single scan, for its input


@dataclass(frozen=True)
class ValidationSlice:
    """One slice with the acquisition it is reconstructed from; its reference when it is simulated, else a pair whose target
    says how good the reconstruction of its input is. note: what its picture has to say."""

    first: Acquisition
    pair: Pair | None
    reference: Tensor | None
    note: str


def validation_set(sources: list[Source], protocol: Protocol) -> list[ValidationSlice]:
    """Some slices of the validation files, acquired once with a mask fixed per file (of several coils the first, unless
    they are combined).

    At most `VALIDATION_SLICES` in all, evenly spaced in each file.
    """
    chosen = []
    for source in sources[:VALIDATION_SLICES]:
        count = min(max(1, VALIDATION_SLICES // len(sources)), source.slices)
        indices = [int((i + 0.5) * source.slices / count) for i in range(count)]
        data = source.load()
        for index in indices:
            if isinstance(data, Tensor):
                # The draws know the file, not the slice: every slice of a file has the same mask.
                kspace = data[index : index + 1] if protocol.combined else data[index : index + 1, :1]
                if protocol.corrupt:
                    draw = seeded(protocol.seed, "validation", source.name, index)
                    given = corrupted_kspace(kspace, protocol.corrupt, protocol.strength, draw)
                    first = Acquisition(given, torch.ones(1, 1, *given.shape[-2:]))
                    chosen.append(ValidationSlice(first, None, ifft2c(kspace).abs(), f"simulated {protocol.corrupt}"))
                    continue
                measured = simulated_repetitions(kspace, 0, f"validation {source.name}", protocol)
                first = measured.first
                first = with_sensitivity_maps(first)[0] if first.kspace.shape[1] > 1 else first
                reference = root_sum_of_squares(ifft2c(measured.full))[:, None]
                note = "simulated k-space" if source.simulated else "undersampled by simulation"
                chosen.append(ValidationSlice(first, None, reference, note))
            else:
                coil = None if protocol.combined else 0
                first = one_slice(data[0], index, coil)
                note = "simulated k-space" if source.simulated else ""
                if protocol.method == "noise2void":
                    first = with_sensitivity_maps(first)[0] if first.kspace.shape[1] > 1 else first
                    pair = noise2void(Measured(first), protocol.pair, seeded(protocol.seed, "validation", source.name))
                    chosen.append(ValidationSlice(pair.input, pair, None, note))
                    continue
                if len(data) > 1:
                    second = one_slice(data[1], index, coil)
                else:  # of a single scan a part of the samples says how good the image of the others is
                    held_out = seeded(protocol.seed, "validation", source.name)
                    first, second = split(first, VALIDATION_SHARE, held_out)
                if protocol.undersample:  # the input; all samples of the second say how good it is
                    first = undersampled(first, 0, f"validation {source.name}", 0, protocol)
                first = with_sensitivity_maps(first)[0] if first.kspace.shape[1] > 1 else first
                chosen.append(ValidationSlice(first, target_pair(first, second), None, note))
    return chosen


@torch.no_grad()
def validate(
    network: nn.Module, validation: list[ValidationSlice], device: torch.device, precision: str, figure: Path
) -> dict[str, float]:
    """With references `psnr`: mean over slices, in dB, of the magnitude clamped to [0, 1], peak 1 (the volume maximum).
    Without `validation_loss`: the weighted squared error against second acquisitions, samples that were held out, or of
    Noise2Void hidden pixels."""
    network.eval()
    values = []
    for number, item in enumerate(validation):
        with autocast(device, precision):
            image = network(item.first.to(device)).cpu()
        magnitude = image.abs()
        if item.reference is not None:
            values += psnr_per_slice(item.reference[:, 0].numpy(), magnitude[:, 0].numpy()).tolist()
        else:
            values.append(weighted_squared_error(image, item.pair).item())
        if number == len(validation) // 2:
            reference = None if item.reference is None else item.reference[0, 0].numpy()
            zero_filled = root_sum_of_squares(ifft2c(item.first.kspace))[0].numpy()
            with atomic_output(figure, force=True) as temporary:
                comparison_figure(reference, zero_filled, magnitude[0, 0].numpy(), temporary, note=item.note)
    if not values:
        return {}
    return {"validation_loss" if validation[0].reference is None else "psnr": sum(values) / len(values)}
