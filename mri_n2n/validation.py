"""How good a network is while it trains: a fixed set of slices, one number for them, and what validations are compared by."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mri_n2n.acquisition import Acquisition
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.corruptions import corrupted_kspace
from mri_n2n.device import autocast
from mri_n2n.errors import InputError
from mri_n2n.files import atomic_output
from mri_n2n.fourier import ifft2c
from mri_n2n.losses import weighted_squared_error
from mri_n2n.metrics import psnr_per_slice
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.pairs import Measured, Pair, noise2void, split, target_pair
from mri_n2n.protocol import Protocol, one_slice, simulated_repetitions, undersampled
from mri_n2n.report import comparison_figure
from mri_n2n.selection import SLICES, Errors
from mri_n2n.simulation import seeded
from mri_n2n.sources import Source
from mri_n2n.trust.error_estimate import Terms
from mri_n2n.trust.held_out import HeldOut, held_out

VALIDATION_SLICES = 48
VALIDATION_SHARE = 0.8  # of the rarely sampled locations of a single scan, for its input


@dataclass(frozen=True)
class ValidationSlice:
    """One slice with the acquisition it is reconstructed from; its reference when it is simulated, else a pair whose target
    says how good the reconstruction of its input is. note: what its picture has to say. scan: its name. others: one or two further
    repetitions, that have no part in the image."""

    first: Acquisition
    pair: Pair | None
    reference: Tensor | None
    note: str
    scan: str = ""
    others: tuple[Acquisition, ...] = ()


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
                others = tuple(one_slice(one, index, coil) for one in data[1:3])
                if others:
                    second = others[0]
                else:  # of a single scan a part of the samples says how good the image of the others is
                    held_out = seeded(protocol.seed, "validation", source.name)
                    first, second = split(first, VALIDATION_SHARE, held_out)
                if protocol.undersample:  # the input; all samples of the second say how good it is
                    first = undersampled(first, 0, f"validation {source.name}", 0, protocol)
                first = with_sensitivity_maps(first)[0] if first.kspace.shape[1] > 1 else first
                chosen.append(ValidationSlice(first, target_pair(first, second), None, note, source.name, others))
    return chosen


def judges(validation: list[ValidationSlice]) -> HeldOut | None:
    """What tells the error of their images without a reference; None without further repetitions, and where no interval can be told."""
    if not validation or not all(item.others for item in validation):
        return None
    try:
        return held_out([item.scan for item in validation], [item.others for item in validation])
    except InputError as error:
        warnings.warn(f"validation without an estimate of the error: {error}", stacklevel=2)
        return None


@dataclass(frozen=True)
class Validated:
    """quality: what the log says of it. errors: what it is compared by with others, see `selection`; empty without slices."""

    quality: dict[str, float | None] = field(default_factory=dict)
    errors: Errors = field(default_factory=dict)


@torch.no_grad()
def validate(
    network: nn.Module,
    validation: list[ValidationSlice],
    device: torch.device,
    precision: str,
    figure: Path,
    by: HeldOut | None = None,
) -> Validated:
    """With references `psnr`: mean over slices, in dB, of the magnitude clamped to [0, 1], peak 1 (the volume maximum).
    With further repetitions what `HeldOut.quality` says. Else `validation_loss`: the weighted squared error of samples that were held out, or of
    Noise2Void hidden pixels; of second acquisitions where no interval can be told."""
    network.eval()
    values: list[float] = []
    terms: dict[str, Terms] = {}
    for number, item in enumerate(validation):
        with autocast(device, precision):
            image = network(item.first.to(device)).cpu()
        magnitude = image.abs()
        if item.reference is not None:
            values += psnr_per_slice(item.reference[:, 0].numpy(), magnitude[:, 0].numpy()).tolist()
        elif by is not None:
            for name, one in by.terms(number, image, item.first.sensitivity_maps).items():
                terms[name] = terms[name] + one if name in terms else one
        else:
            values.append(weighted_squared_error(image, item.pair).item())
        if number == len(validation) // 2:
            reference = None if item.reference is None else item.reference[0, 0].numpy()
            zero_filled = root_sum_of_squares(ifft2c(item.first.kspace))[0].numpy()
            with atomic_output(figure, force=True) as temporary:
                comparison_figure(reference, zero_filled, magnitude[0, 0].numpy(), temporary, note=item.note)
    if not validation:
        return Validated()
    if by is not None:
        return Validated(by.quality(terms), {name: one.error for name, one in terms.items()})
    name, sign = ("validation_loss", 1) if validation[0].reference is None else ("psnr", -1)
    return Validated({name: sum(values) / len(values)}, {SLICES: sign * torch.tensor(values, dtype=torch.float64)})
