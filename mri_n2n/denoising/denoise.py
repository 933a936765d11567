"""The verb `denoise`: one noisy scan or volume -> a cleaner one, by Noise2Void on itself."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.denoising.blind_spot import box_side, windows_of
from mri_n2n.denoising.cleaning import (
    Cleaned,
    Plan,
    Weights,
    cautions,
    check_plan,
    clean_by_itself,
    clean_by_weights,
    noise_map,
)
from mri_n2n.device import choose_device
from mri_n2n.errors import InputError, OptionError, OutputError
from mri_n2n.formats import ImageFiles, detect, open_scan
from mri_n2n.formats.sampling import Box, acquired_box
from mri_n2n.formats.volume_scan import open_volume_as_scan
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import PIXELS_AT_ONCE, LoadedNetwork, load_for_use, reconstruct_acquisition
from mri_n2n.operators import adjoint
from mri_n2n.outputs import check_target, target_of
from mri_n2n.pairs import FULL
from mri_n2n.reconstruction import reconstruct_file
from mri_n2n.reconstructors import Finish, ImagesOf, Read, Reconstructor, weights_facts


def denoise_file(
    path: Path,
    output: Path,
    plan: Plan | None = None,
    *,
    weights: Path | None = None,
    axis: int | None = None,
    phase: Path | None = None,
    imaginary: Path | None = None,
    format: str | None = None,
    repetition: int | None = None,
    force: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> dict:
    """Denoise a fully sampled raw scan or a NIfTI volume into the directory `output`: the files of `reconstruct`, and with
    the plan's noise_map and residual NAME.noise.nii.gz and NAME.residual.nii.gz. Returns the sidecar.

    weights: of `train --method noise2void` or `--corrupt`, in place of a training on the scan itself. axis: of a volume, along
    which slices are taken, None: the last. phase, imaginary: the other part of a complex volume in two files. Noise2Void needs noise that is
    independent from pixel to pixel; that is measured first, see `whiteness`, and said in the sidecar.
    Errors: OptionError, InputError, NotFoundError, OutputError.
    """
    plan = plan or Plan()
    check_plan(plan)
    is_volume = detect(path) == "nifti" if format is None else False
    check_part_options(path, is_volume, axis, phase, imaginary, repetition)
    if weights is not None and (plan.method, plan.training) != (Plan.method, Plan.training):
        raise OptionError(
            "--weights take the place of a training on the scan itself: leave out its options (--method, --minutes, --steps, "
            "--dimensions, --share, --window, --seed)"
        )
    more = [name for name, wanted in (("noise", plan.noise_map), ("residual", plan.residual)) if wanted]
    target = replace(target_of(path, output, bids=False), more=tuple(more))
    check_target(target, [p for p in (path, phase, imaginary) if p], force, dicom=False)
    if is_volume:
        scan = open_volume_as_scan(ImageFiles(path, phase, imaginary), 2 if axis is None else axis)
    elif detect(path) == "result-hdf5" and format is None:
        raise InputError(
            f"{path} is a reconstruction, whose noise is not independent from pixel to pixel; denoise the scan, or the volume"
        )
    else:
        scan = open_scan(path, format, repetition)
    check_full(scan)
    loaded = None if weights is None else load_for_use(weights, device)
    if loaded is not None and loaded.header["network"] != "denoiser":
        raise OptionError(
            f"{weights} are weights of a reconstruction; denoise takes those of train --method noise2void or --corrupt"
        )
    part = "phase" if phase else "imaginary" if imaginary else None
    asked = {"format": format, "repetition": repetition, "axis": axis, "part": part}
    redo = {"command": "denoise", "options": asked}
    return reconstruct_file(scan, target, denoiser(plan, loaded, device, quiet), redo, force=force, quiet=quiet)


def denoise(
    source,
    output: Path | str | None = None,
    *,
    plan: Plan | None = None,
    method: str | None = None,
    noise: float | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    quiet: bool = True,
    **of_files,
):
    """`denoise(images)` on an array, `denoise(path, output)` on a scan or volume file.

    Array: real or complex (y, x) or (slices, y, x); returns the same, cleaned by a network trained on it. Files: see
    `denoise_file`, whose options it takes; returns the sidecar. method, noise, minutes, steps: over those of the plan, whose
    other settings are `Plan`'s. Errors: InputError, OptionError, OutputError.
    """
    plan = plan or Plan()
    if minutes is not None or steps is not None:
        plan = replace(plan, training=replace(plan.training, minutes=minutes, steps=steps))
    plan = replace(plan, method=method or plan.method, noise=plan.noise if noise is None else noise)
    if isinstance(source, (str, Path)):
        if output is None:
            raise OutputError("denoising a file needs the directory to write into: denoise(path, output)")
        for name in ("weights", "phase", "imaginary"):
            if of_files.get(name) is not None:
                of_files[name] = Path(of_files[name])
        return denoise_file(Path(source), Path(output), plan, device=device, quiet=quiet, **of_files)
    if output is not None or of_files:
        raise OptionError("an array is denoised to an array, by itself; denoise(path, output) has more options")
    array = np.asarray(source)
    if array.dtype.kind not in "fiuc" or array.ndim not in (2, 3) or not np.isfinite(array).all() or not array.size:
        raise InputError(f"images must be finite numbers (y, x) or (slices, y, x); got {array.dtype} {array.shape}")
    check_plan(plan)
    images = torch.from_numpy(array.astype(np.complex64)).reshape(-1, *array.shape[-2:])
    cleaned = clean_by_itself(images, plan, choose_device(device), "the array", quiet)
    for caution in cautions(plan, cleaned):
        warnings.warn(caution, stacklevel=2)
    result = cleaned.images.numpy().reshape(array.shape)
    return result if np.iscomplexobj(array) else result.real


def check_part_options(
    path: Path,
    is_volume: bool,
    axis: int | None,
    phase: Path | None,
    imaginary: Path | None,
    repetition: int | None,
) -> None:
    """OptionError for an option that says nothing of this file."""
    if is_volume and repetition is not None:
        raise OptionError(f"--repetition is of raw scans, and {path} is a volume")
    if not is_volume and axis is not None:
        raise OptionError(f"--axis is of volumes, and {path} is a raw scan")
    if not is_volume and (phase or imaginary):
        raise OptionError(f"{path} is a raw scan, which is complex already; leave out the other part")
    if any(part is not None and part.exists() and part.samefile(path) for part in (phase, imaginary)):
        raise OptionError(f"{path} is given as both parts of the complex volume")
    if phase and imaginary:
        raise OptionError("give the phase of the volume or its imaginary part, not both")


def check_full(scan: Scan) -> None:
    """InputError for a scan that is undersampled where it was acquired at all."""
    middle = scan.read(scan.shape[0] // 2, scan.shape[0] // 2 + 1)
    rows, columns = (slice(*edges) for edges in acquired_box(scan))
    share = middle.mask[..., rows, columns].mean().item()
    if share < FULL:
        raise InputError(
            f"{scan.path} has {share:.0%} of its samples; denoise takes fully sampled scans, reconstruct those that are not"
        )


def denoiser(plan: Plan, loaded: LoadedNetwork | None, device: str, quiet: bool) -> Reconstructor:
    """Trains on the scan before it gives its first slice, or takes a network that was trained on others."""
    chosen = choose_device(device)

    def begin(scan: Scan, read: Read) -> tuple[ImagesOf, Finish]:
        noisy = combined_images(scan, read)
        if (noisy - noisy.flatten()[0]).abs().max() <= 1e-6 * noisy.abs().max():
            raise InputError(f"{scan.path} has the same value everywhere; there is nothing to denoise")
        box = acquired_box(scan)
        acquired = inside(noisy, box)
        if loaded is None:
            cleaned = clean_by_itself(acquired, plan, chosen, str(scan.path), quiet)
        else:
            cleaned = clean_by_weights(acquired, plan, weights_of(loaded), str(scan.path), quiet)
        images = cleaned.images if acquired is noisy else changed_inside(noisy, box, cleaned.images)
        position = 0

        def images_of(acquisition: Acquisition) -> Tensor:
            nonlocal position
            position += len(acquisition.kspace)
            return images[position - len(acquisition.kspace) : position, None]

        def finish(_: Tensor, __: float) -> tuple[dict, list[str], dict[str, np.ndarray]]:
            shown = (lambda a: a.real) if scan.signed else torch.abs
            volumes = {}
            if plan.residual:
                volumes["residual"] = (shown(noisy) - shown(images)).numpy()
            if plan.noise_map:
                removed = noisy - images
                volumes["noise"] = noise_map((removed if cleaned.kind == "complex" else removed.real).numpy())
            precision = "float32" if cleaned.fitted is None else cleaned.fitted.precision
            options = {"device": chosen.type, "precision": precision, "flips": True}
            used = None if loaded is None else weights_facts(loaded)
            said = {
                "weights": used,
                "denoise": facts(plan, cleaned),
                "options": options,
                "redo": asked_of(plan, cleaned),
            }
            return said, cautions(plan, cleaned), volumes

        return images_of, finish

    return Reconstructor(chosen, True, begin)


def weights_of(loaded: LoadedNetwork) -> Weights:
    """Of a weights file; its network gives the mean over mirror images."""
    protocol = loaded.header["training"]["protocol"]

    def run(noisy: Tensor) -> Tensor:
        scan = Acquisition(fft2c(noisy)[:, None], torch.ones(1, 1, *noisy.shape[-2:]))
        return reconstruct_acquisition(loaded.network, scan, loaded.device, flips=True)[:, 0]

    span = tuple(protocol.get("pair", {}).get("blind_spot", {}).get("span", ()))
    return Weights(run, protocol.get("method", ""), protocol.get("corrupt"), span)


def facts(plan: Plan, cleaned: Cleaned) -> dict:
    """What the sidecar says of how images were cleaned."""
    whiteness = cleaned.whiteness
    by_weights = cleaned.weights is not None and cleaned.weights.corruption == "rician-corrected"
    floor = "lowered, by the weights" if by_weights else "lowered, by --noise" if plan.noise else "left"
    said = {
        "images": cleaned.kind,
        "noise": {
            "verdict": whiteness.verdict(plan.training.dimensions),
            "measured_in": whiteness.where,
            "deviation": whiteness.deviation,
            "correlation": {axis: list(values) for axis, values in whiteness.correlation.items()},
        },
        "own_pixels": None if cleaned.own is None else asdict(cleaned.own) | {"given": plan.noise is not None},
        "rician_floor": floor if cleaned.kind == "magnitude" else "none: not magnitudes",
    }
    if cleaned.fitted is None:
        return said
    training, axes = cleaned.training, cleaned.training.dimensions
    return said | {
        "method": cleaned.method,
        "dimensions": axes,
        "steps": cleaned.fitted.steps,
        "training_seconds": round(cleaned.fitted.seconds, 2),
        "share": round(box_side(training.spot.share, axes) ** -axes, 6),
        "window": list(windows_of(training.spot, axes)),
        "span": list(training.spot.span),
        "seed": training.seed,
    }


def asked_of(plan: Plan, cleaned: Cleaned) -> dict:
    """The plan, with what a training on the scan itself came to: by it the same images are made again."""
    fitted = cleaned.fitted
    again = None if fitted is None else replace(plan.training, precision=fitted.precision, pace=fitted.pace)
    return {
        "method": plan.method,
        "noise": plan.noise,
        "noise_map": plan.noise_map,
        "residual": plan.residual,
        "training": None if again is None else asdict(again),
    }


def combined_images(scan: Scan, read: Read) -> Tensor:
    """Complex images (slices, y, x), coils combined by their maps."""
    slices, coils, y, x = scan.shape
    at_once, found = max(1, PIXELS_AT_ONCE // (coils * y * x)), []
    for start in range(0, slices, at_once):
        a = read(start, min(start + at_once, slices))
        found.append(adjoint(a.kspace, a.mask, a.sensitivity_maps)[:, 0].cpu())
    return torch.cat(found)


def inside(images: Tensor, box: Box) -> Tensor:
    """The images (slices, y, x) of the part of k-space that was acquired, of fewer pixels: those of zero-padded k-space are
    correlated, these are not. Of the same intensity. The images themselves where all of k-space was acquired.

    The centre of k-space is moved to where it belongs, circularly: of partial Fourier, which lies aside, images would else
    be waves.
    """
    size, rolled = _inner(images, box)
    if size == images.shape[-2:]:
        return images
    kspace = fft2c(images)[(..., *(slice(*edges) for edges in box))].roll(rolled, (-2, -1))
    return ifft2c(kspace) * _shrinks(images, size)


def changed_inside(images: Tensor, box: Box, cleaned: Tensor) -> Tensor:
    """`images` with `cleaned` in place of what `inside` gives."""
    size, rolled = _inner(images, box)
    kspace = fft2c(images)
    back = fft2c(cleaned / _shrinks(images, size)).roll([-n for n in rolled], (-2, -1))
    kspace[(..., *(slice(*edges) for edges in box))] = back
    return ifft2c(kspace)


def _inner(images: Tensor, box: Box) -> tuple[tuple[int, ...], list[int]]:
    """(size of the box, how far its centre of k-space lies from where it belongs)."""
    size = tuple(end - first for first, end in box)
    dc = [n // 2 - first for n, (first, _) in zip(images.shape[-2:], box)]
    return size, [n // 2 - at for n, at in zip(size, dc)]


def _shrinks(images: Tensor, size: tuple[int, ...]) -> float:
    """An orthonormal transform of fewer samples gives larger values."""
    y, x = images.shape[-2:]
    return (size[0] * size[1] / (y * x)) ** 0.5
