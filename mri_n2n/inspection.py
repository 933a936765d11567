"""What a file holds, in a few lines."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.checkpoint import load_tensors
from mri_n2n.coils import NEEDED, calibration_region, patch_side
from mri_n2n.datasets import MEASURED
from mri_n2n.errors import NotFoundError
from mri_n2n.formats import SCAN_FORMATS, detect, open_scan, read_result, read_volume
from mri_n2n.formats.sampling import Box, acquired_box
from mri_n2n.fourier import ifft2c
from mri_n2n.noise import noise_variance_at_most
from mri_n2n.operators import root_sum_of_squares
from mri_n2n.quality import in_words


def describe(path: Path | str, format: str | None = None, repetition: int | None = None) -> dict[str, object]:
    """Facts about a scan, volume, result or weights file (or a run directory), JSON-able, in reading order.

    Errors: NotFoundError, InputError.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"no file {path}")
    if path.is_dir():
        if not (path / "weights.safetensors").exists():
            raise NotFoundError(f"{path} is a directory without weights.safetensors; give a file or a run directory")
        return _describe_weights(path / "weights.safetensors")
    if path.suffix == ".safetensors":
        return _describe_weights(path)
    kind = format or detect(path)
    if kind in SCAN_FORMATS:
        return _describe_scan(open_scan(path, format, repetition), repetition is not None)
    if kind == "nifti":
        images, geometry = read_volume(path, kinds="fiuc")
        is_complex = np.iscomplexobj(images)
        images = np.abs(images) if is_complex else images
        return {
            "file": path.name,
            "kind": "NIfTI complex volume" if is_complex else "NIfTI magnitude volume",
            "slices": images.shape[0],
            "matrix": f"{images.shape[1]} x {images.shape[2]} (y x x, slices along axis 2)",
            "intensity": f"{images.min():g} to {images.max():g}",
            "commands": "simulate, denoise, train --dataset nifti" + ("" if is_complex else ", evaluate --reference"),
        }
    reconstruction, attributes, geometry = read_result(path)
    return {
        "file": path.name,
        "kind": "reconstruction",
        "slices": reconstruction.shape[0],
        "matrix": f"{reconstruction.shape[1]} x {reconstruction.shape[2]} (y x x)",
        "intensity": f"{reconstruction.min():g} to {reconstruction.max():g}",
        "geometry": "unknown" if geometry is None else "stored",
        **{key: str(value) for key, value in attributes.items()},
        "commands": "evaluate",
    }


def _describe_scan(scan: Scan, chosen: bool) -> dict[str, object]:
    """chosen: one of several repetitions was asked for; else the sampling of the first is described, not of the mean."""
    slices, coils, y, x = scan.shape
    first = scan if scan.repetitions == 1 or chosen else open_scan(scan.path, scan.format, 0)
    middle = first.read(slices // 2, slices // 2 + 1)
    dead = [str(coil) for coil in range(coils) if middle.kspace.any() and not middle.kspace[0, coil].any()]
    of = "middle slice" + ("" if first is scan else " of repetition 0; --repetition chooses")
    acquired = acquired_box(first)
    (y0, y1), (x0, x1) = acquired
    inside = middle.mask[0, 0, y0:y1, x0:x1]
    full = bool((inside > 0).all())
    calibration = calibration_region(middle.mask[0, 0])
    missing = {
        "reference": not scan.has_reference,
        "geometry": scan.geometry is None,
        "mask (found from the zeros)": scan.mask_source != "stored",
        "sampling probability": middle.probability is None and not full,
        "noise readouts": scan.noise_covariance is None and middle.noise_variance is None,
        f"calibration region for ESPIRiT maps (at least {NEEDED}; maps of low resolution instead)": coils > 1
        and not patch_side(calibration),
    }
    simulated = {True: "yes: k-space was made from an image", False: "no", None: "the file does not say"}
    facts = {
        "file": scan.path.name,
        "kind": f"raw scan ({scan.format})",
        **({"acquisition": scan.acquisition} if scan.acquisition else {}),
        "slices": slices,
        "coils": coils if not dead else f"{coils}, of which {', '.join(dead)} (counted from 0) without signal",
        "repetitions": scan.repetitions,
        "matrix": f"{y} x {x} (y x x)"
        + (f", image {scan.image_matrix[0]} x {scan.image_matrix[1]}" if scan.image_matrix else ""),
        "acquired": describe_box(acquired, y, x),
        "sampling": describe_sampling(inside, (_within(y // 2, y0, y1), _within(x // 2, x0, x1))) + f" ({of})",
        **({"calibration region": f"{calibration[0]} x {calibration[1]} samples about the centre"} if not full else {}),
        "noise": describe_noise(first, middle),
        "simulated": simulated[scan.simulated],
        "missing": ", ".join(name for name, is_missing in missing.items() if is_missing) or "nothing",
        "commands": "reconstruct, convert"
        + (", evaluate --reference" if scan.has_reference else "")
        + (", denoise" if full else "")
        + (
            ", train --dataset fastmri"
            if full and inside.numel() > 0.5 * y * x and scan.format == "fastmri-hdf5"
            else ""
        )
        + (", train --dataset pairs" if scan.repetitions > 1 else ""),
    }
    return facts


def _within(center: int, first: int, last: int) -> int:
    """Index of the k-space centre, or of what is nearest to it, in first..last-1."""
    return min(max(center, first), last - 1) - first


def describe_box(acquired: Box, y: int, x: int) -> str:
    (y0, y1), (x0, x1) = acquired
    if acquired == ((0, y), (0, x)):
        return "all of k-space, undersampling apart"
    return f"rows {y0} to {y1 - 1} of {y}, columns {x0} to {x1 - 1} of {x}; the rest is zero padding or partial Fourier"


def describe_sampling(mask: Tensor, center: tuple[int, int] | None = None) -> str:
    """Acceleration and kind of a mask (y, x), as they are found in it: lines or points, regular or denser inside.

    center: index (y, x) of DC, which lies aside where only a part of k-space was acquired; None: the middle.
    """
    dc_y, dc_x = center or (mask.shape[0] // 2, mask.shape[1] // 2)
    sampled = mask > 0
    share = sampled.double().mean().item()
    if share in (0.0, 1.0):
        return "full, of what was acquired" if share else "none"
    for lines, middle, other, name in ((sampled[0], dc_x, sampled, "y"), (sampled[:, 0], dc_y, sampled.T, "x")):
        if torch.equal(other, lines.expand_as(other)):
            return f"{1 / share:.1f}x ({share:.1%}), {_describe_lines(lines, middle, name)}"
    distance = torch.hypot(*torch.meshgrid(*(torch.arange(n).double() - c for n, c in zip(mask.shape, (dc_y, dc_x))), indexing="ij"))  # fmt: skip
    inner, outer = _densities(sampled, distance)
    return f"{1 / share:.1f}x ({share:.1%}), points{', denser towards the centre' if inner > 1.2 * outer else ''}"


def _describe_lines(lines: Tensor, middle: int, along: str) -> str:
    """Of sampled lines (n,) bool: how many the full centre, about index `middle`, has, and whether the others are regular."""
    count = len(lines)
    low = high = middle  # the full block about the centre
    while low > 0 and lines[low - 1]:
        low -= 1
    while high < count and lines[high]:
        high += 1
    outside = lines.clone()
    outside[low:high] = False
    at = outside.nonzero().flatten()
    gaps = torch.cat((at[at < low].diff(), at[at >= high].diff()))
    distance = (torch.arange(count) - middle).abs() / max(middle, 1)
    outside_block = torch.ones(count, dtype=torch.bool)
    outside_block[low:high] = False
    inner, outer = _densities(outside[outside_block], distance[outside_block])
    equispaced = len(gaps) > 2 and gaps.max() - gaps.min() <= 1
    denser = ", denser towards the centre" if inner > 1.5 * outer and not equispaced else ""
    full = f", {high - low} central ones full" if high > low else ""
    return f"{'equispaced' if equispaced else 'random'} lines along {along}{denser}{full}"


def _densities(sampled: Tensor, distance: Tensor) -> tuple[float, float]:
    """Share sampled of the nearer and of the farther half of the locations."""
    near = distance <= distance.median()
    share = lambda where: sampled[where].double().mean().item() if where.any() else 0.0  # noqa: E731
    return share(near), share(~near)


def describe_noise(scan: Scan, middle: Acquisition) -> str:
    """The noise of one sample, E|n|^2 under a root: known, or at most the outermost samples."""
    peak = root_sum_of_squares(ifft2c(middle.kspace)).max().item()
    share = lambda deviation: f"{deviation:.3g}, {deviation / peak:.2%} of the image's maximum" if peak else "0"  # noqa: E731
    if scan.noise_covariance is not None:
        deviation = math.sqrt(middle.noise_variance)  # of the mean of averages
        return f"standard deviation {share(deviation)}; from noise readouts, by which coils are whitened"
    if middle.noise_variance is not None:
        return f"standard deviation {share(math.sqrt(middle.noise_variance))}; stored"
    deviation = noise_variance_at_most(middle.kspace, middle.mask).sqrt().item()
    if math.isnan(deviation):
        return "unknown"
    return f"standard deviation at most {share(deviation)}; from the outermost samples"


def _describe_weights(path: Path) -> dict[str, object]:
    tensors, header = load_tensors(path)
    verb = "denoise" if header.get("network") == "denoiser" else "reconstruct"
    checkpoint = any(name.startswith("optimizer.") for name in tensors)
    training = header["training"]
    protocol = training["protocol"]
    masks = {
        "pairs": protocol.get("pairs"),
        "masks": ", ".join(protocol.get("masks", [])),
        "acceleration": protocol.get("acceleration"),
    }
    if training.get("dataset") in MEASURED:
        further = protocol.get("undersample")
        what = "single scans" if training["dataset"] == "scans" else "repetitions"
        words = f"{what}, from files{', simulated' if header.get('simulated') else ''}"
        acquired = {"acquisitions": words + (", undersampled" if further else ""), **(masks if further else {})}
    else:
        acquired = {
            "acquisitions": f"simulated, {'once' if protocol.get('acquisitions') == 1 else 'twice'} of each slice"
            + (", one mask for all" if protocol.get("one_mask") else ""),
            **masks,
            "noise": protocol.get("noise"),
            "phase": protocol.get("phase"),
            "coils": ", ".join(map(str, protocol.get("coils", ()))) or training.get("coils") or "as in the data",
        }
    return {
        "file": path.name,
        "kind": "checkpoint of a run" if checkpoint else "weights",
        "network": header.get("network"),
        "options": header.get("network_options", {}),
        "parameters": header.get("parameters"),
        "trained on": f"{training.get('dataset')}, {header.get('train_volumes')} volumes, {header.get('train_slices')} slices",
        "method": protocol.get("method"),
        **({"loss": protocol["loss"]} if protocol.get("loss") else {}),
        **acquired,
        "steps": header.get("step"),
        "validation": in_words(header.get("quality", {})),
        "minutes": round(header.get("seconds", 0) / 60, 1),
        "precision": header.get("precision"),
        "note": header.get("note"),
        "commands": "train --resume" if checkpoint else f"{verb} --weights",
    }
