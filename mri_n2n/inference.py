"""Network with data consistency -> image: on acquisitions and on arrays. Files are `reconstruction`'s."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mri_n2n.acquisition import Acquisition
from mri_n2n.baselines import check_baseline, not_done, reconstruct_baseline
from mri_n2n.checkpoint import BUNDLED, find_weights, load_network
from mri_n2n.coils import with_sensitivity_maps
from mri_n2n.correction import in_use
from mri_n2n.device import choose_device
from mri_n2n.errors import InputError, OptionError
from mri_n2n.files import sha256_of
from mri_n2n.fourier import mirror_axes
from mri_n2n.masks import has_lines_along_x, is_along, mask_from_samples
from mri_n2n.movement import flip, transpose
from mri_n2n.pairs import PairOptions
from mri_n2n.regularisation import at_an_end, chosen_regularisation

# Pixels of coil images sent through the network at once: bounds memory whatever the number of slices and coils.
PIXELS_AT_ONCE = 8 * 256 * 256


# The bundled weights' known weakness, seen in pictures under every mask: `mri-n2n benchmark weights`.
LINES = "line mask: the bundled weights leave ghosts that can look like structures; look before you use the image"


@torch.inference_mode()
def reconstruct_acquisition(
    network: nn.Module,
    acquisition: Acquisition,
    device: torch.device | str = "cpu",
    scale: float = 1.0,
    *,
    flips: bool = False,
) -> Tensor:
    """Complex images of an acquisition, in its intensity unit divided by `scale`: (slices, 1, y, x) with sensitivity
    maps; without them (slices, coils, y, x), every coil on its own as a batch item of one coil.

    flips: the mean over the four mirror images of each slice, mirrored back (test-time augmentation); four passes.
    Slices with lines along x are turned to lines along y, as networks are trained on, and their images back.
    """
    turned = torch.tensor([has_lines_along_x(one) for one in acquisition.mask.split(1)])
    if turned.all():
        return reconstruct_acquisition(network, transpose(acquisition), device, scale, flips=flips).mT
    slices, coils, y, x = acquisition.kspace.shape
    maps = acquisition.sensitivity_maps
    together = 1 if maps is None else coils  # coils of one batch item
    if turned.any():
        mixed = torch.empty((slices, coils // together, y, x), dtype=torch.complex64, device="cpu")
        for which in (turned, ~turned):
            some = acquisition.slices(which.nonzero()[:, 0])
            mixed[which] = reconstruct_acquisition(network, some, device, scale, flips=flips)
        return mixed
    flat = acquisition.kspace.reshape(-1, together, y, x)
    flat = flat if scale == 1 else flat / scale  # no copy without need
    images = torch.empty((len(flat), 1, y, x), dtype=torch.complex64, device="cpu")
    repeated = lambda value: value.expand(slices, 1, y, x).repeat_interleave(coils // together, dim=0)  # noqa: E731
    mask = repeated(acquisition.mask)
    probability = None if acquisition.probability is None else repeated(acquisition.probability)
    noise = acquisition.noise_variance  # of all slices, or one each
    noise = noise if noise is None else noise / scale**2
    noise = noise.repeat_interleave(coils // together, dim=0) if isinstance(noise, Tensor) and len(noise) > 1 else noise
    step = max(1, PIXELS_AT_ONCE // (together * y * x))
    views = ((), (-2,), (-1,), (-2, -1)) if flips else ((),)
    for start in range(0, len(flat), step):
        of = lambda value: None if value is None else value[start : start + step]  # noqa: B023, E731
        level = of(noise) if isinstance(noise, Tensor) and len(noise) > 1 else noise
        batch = Acquisition(of(flat), of(mask), of(probability), of(maps), level).to(device)
        seen = [mirror_axes(network(flip(batch, axes)), axes) for axes in views]
        images[start : start + step] = (sum(seen) / len(seen)).cpu()
    images[~flat.any(dim=(1, 2, 3)).cpu()] = 0  # a slice or coil without signal stays empty
    return images.reshape(slices, -1, y, x)


def reconstruct_array(
    kspace: np.ndarray | Tensor,
    *,
    mask: np.ndarray | Tensor | None = None,
    weights: Path | str | None = None,
    baseline: str | None = None,
    regularisation: float | None = None,
    device: str = "auto",
    flips: bool | None = None,
    noise_variance: float | None = None,
) -> np.ndarray:
    """Complex image of undersampled Cartesian k-space, on the input's scale.

    kspace: complex (y, x), (slices, y, x) or (slices, coils, y, x), centred. mask: (x,), (y, x), (slices, y, x) or
    as `simulate` gives it, (slices or 1, 1, y, x); when None found from the samples that are exactly zero in all coils (see `masks.mask_from_samples`).
    flips: average over mirror images, four passes of the network; None: if the weights were trained on mirror images.
    noise_variance: E|n|^2 of one complex sample, on the input's scale, 0 without noise; None: what the outermost samples say.
    baseline, regularisation: a classical reconstruction in place of the network, see `reconstruction.reconstruct_files`.
    Returns complex64 (y, x) or (slices, y, x); several coils are combined by sensitivity maps from the scan's own centre.
    Errors: InputError for shapes that do not fit, and for non-finite or all-zero data.
    """
    check_baseline(baseline, regularisation, weights, flips)
    acquisition = acquisition_of_arrays(np.asarray(kspace), mask, noise_variance)
    if baseline is None:
        images, said = _by_network(acquisition, Path(weights) if weights else None, device, flips)
    else:
        images, said = _by_baseline(acquisition, baseline, regularisation, device)
    for caution in said:
        warnings.warn(caution, stacklevel=3)
    return images.reshape(*np.shape(kspace)[:-2][:1], *images.shape[-2:]).numpy()


def acquisition_of_arrays(
    kspace: np.ndarray, mask: np.ndarray | Tensor | None, noise_variance: float | None
) -> Acquisition:
    """What the arrays of `reconstruct_array` say was measured, without maps. Errors: InputError, OptionError."""
    shape = kspace.shape
    if kspace.dtype.kind != "c" or kspace.ndim not in (2, 3, 4):
        raise InputError(f"k-space must be complex with 2 to 4 axes (slices, coils, y, x); got {kspace.dtype} {shape}")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is refused below
        full = torch.from_numpy(np.array(kspace, dtype=np.complex64))
    full = full.reshape(shape[0] if kspace.ndim > 2 else 1, shape[1] if kspace.ndim == 4 else 1, *shape[-2:])
    if not torch.isfinite(torch.view_as_real(full)).all():
        raise InputError("k-space holds NaN or infinite samples")
    if not full.any():
        raise InputError("k-space is zero everywhere")
    if mask is None:
        found = mask_from_samples((full != 0).any(dim=1).numpy())
        sampled = torch.from_numpy(found[:, None].astype(np.float32))
    else:
        sampled = _mask_of_array(np.asarray(mask), len(full), shape)
    if not (full * sampled).any():
        raise InputError("k-space is zero at every location that the mask calls sampled")
    if noise_variance is not None and not 0 <= noise_variance < math.inf:
        raise OptionError(f"the noise variance must be zero or positive and finite; got {noise_variance}")
    return Acquisition(full * sampled, sampled.contiguous(), noise_variance=noise_variance)


def _mask_of_array(mask: np.ndarray, slices: int, shape: tuple[int, ...]) -> Tensor:
    """(slices or 1, 1, y, x) of a mask for k-space of `shape`. Errors: InputError."""
    if mask.dtype.kind not in "fiub":
        raise InputError(f"mask must hold zeros and ones only; got {mask.dtype}")
    sampled = torch.from_numpy(mask.astype(np.float32))
    if sampled.ndim == 4 and sampled.shape[1] == 1:
        sampled = sampled[:, 0] if len(sampled) > 1 or slices == 1 else sampled[0, 0]
    fits = {
        1: sampled.shape[-1:] == shape[-1:],
        2: sampled.shape == shape[-2:],
        3: sampled.shape == (slices, *shape[-2:]),
    }
    if not fits.get(sampled.ndim, False):
        raise InputError(f"mask must be (x,), (y, x) or (slices, y, x) for k-space {shape}; got {tuple(sampled.shape)}")
    if not ((sampled == 0) | (sampled == 1)).all():
        raise InputError("mask must hold zeros and ones only")
    sampled = sampled.expand(shape[-2:]) if sampled.ndim < 3 else sampled
    return sampled.reshape(-1, 1, *shape[-2:])


def _by_network(
    acquisition: Acquisition, weights: Path | None, device: str, flips: bool | None
) -> tuple[Tensor, list[str]]:
    """Images, coils combined, and what speaks against the weights."""
    loaded = load_for_use(weights, device)
    check_reconstructs(loaded)
    if loaded.header["network"] == "unet":
        raise InputError(
            "weights of the 2018 recipe need the sampling probability, which arrays do not carry; reconstruct a scan file, or use others"
        )
    mask = acquisition.mask
    held = mask[mask.flatten(1).any(dim=1)]  # empty slices say nothing of the acceleration
    said = cautions(loaded, held[len(held) // 2][None], held.mean().item())
    acquisition, caution = _with_maps(acquisition, loaded.device)
    flips = loaded.trained_on_flips if flips is None else flips
    return reconstruct_acquisition(loaded.network, acquisition, loaded.device, flips=flips), said + caution


def _by_baseline(
    acquisition: Acquisition, baseline: str, regularisation: float | None, device: str
) -> tuple[Tensor, list[str]]:
    acquisition, caution = _with_maps(acquisition, choose_device(device))
    of = lambda start, stop: acquisition.slices(torch.arange(start, stop, device=acquisition.kspace.device))  # noqa: E731
    strength, facts = chosen_regularisation(baseline, regularisation, of, len(acquisition.kspace), "k-space")
    images, steps = reconstruct_baseline(acquisition, baseline, strength)
    return images, caution + at_an_end(facts) + not_done(baseline, steps)


def _with_maps(acquisition: Acquisition, device: torch.device) -> tuple[Acquisition, list[str]]:
    acquisition, caution = acquisition.to(device), None
    if acquisition.kspace.shape[1] > 1:
        acquisition, caution = with_sensitivity_maps(acquisition)
    return acquisition, [caution] if caution else []


@dataclass(frozen=True)
class LoadedNetwork:
    """A network ready for use, and what its weights file says of itself."""

    network: nn.Module
    path: Path
    sha256: str
    header: dict
    device: torch.device

    @property
    def bundled(self) -> bool:
        return self.path == BUNDLED

    @property
    def trained_on_flips(self) -> bool:
        return bool(self.header["training"]["protocol"].get("flips"))


def load_for_use(weights: Path | None, device: str) -> LoadedNetwork:
    """The network of `--weights` (a run, a file, or None for the bundled weights) on its device."""
    path, chosen = find_weights(weights), choose_device(device)
    network, header = load_network(path)
    protocol = header["training"]["protocol"]
    corrected = {key: value for key, value in protocol.get("pair", {}).items() if key in ("extra_noise", "correction")}
    network = in_use(network, protocol.get("method"), PairOptions(**corrected))
    if chosen.type == "cpu":  # 1.4 to 1.9 times as fast in float32, for which training gains nothing
        network = network.to(memory_format=torch.channels_last)
    return LoadedNetwork(network.to(chosen), path, sha256_of(path), header, chosen)


def check_reconstructs(loaded: LoadedNetwork) -> None:
    """OptionError for the weights of a denoiser."""
    if loaded.header["network"] == "denoiser":
        raise OptionError(
            f"{loaded.path} are weights of a denoiser (train --method noise2void or --corrupt); they are for mri-n2n denoise --weights"
        )


def cautions(loaded: LoadedNetwork, mask: Tensor, measured_share: float) -> list[str]:
    """What speaks against these weights for a scan with this mask (1, 1, y, x) and share of samples in (0, 1], both of
    what was acquired at all."""
    found, training = [], loaded.header["training"]
    low, high = training["protocol"].get("acceleration", (1.0, math.inf))
    acceleration = 1 / measured_share
    # Of repetitions as they were measured nobody wrote down the acceleration.
    known = training.get("dataset") not in ("pairs", "m4raw", "scans") or training["protocol"].get("undersample")
    if known and not low / 1.25 <= acceleration <= high * 1.25:
        trained = f"{low:g}x" if low == high else f"{low:g}x to {high:g}x"
        sampled = "in full" if acceleration < 1.05 else f"{acceleration:.1f}x"
        found.append(f"sampled {sampled}; the weights were trained for {trained}")
    lines = (is_along(mask, -2) or is_along(mask, -1)) and 0 < mask.mean().item() < 1
    if loaded.bundled and lines:
        found.append(LINES)
    masks = training["protocol"].get("masks", [])
    if known and masks and acceleration > 1 and lines not in {name.endswith("lines") for name in masks}:
        found.append(
            f"sampled by {'lines' if lines else 'points'}; the weights were trained with {', '.join(sorted(set(masks)))}"
        )
    return found
