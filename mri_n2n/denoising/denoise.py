"""The verb `denoise`: one noisy scan or volume -> a cleaner one, by Noise2Void on itself."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from mri_n2n.acquisition import Acquisition, Scan
from mri_n2n.denoising.blind_spot import reaching
from mri_n2n.denoising.rician import signal_of_mean
from mri_n2n.denoising.self_training import DenoiseOptions, Fitted, clean, fit
from mri_n2n.denoising.whiteness import OTHER_NOISE, Whiteness, described, measure_whiteness
from mri_n2n.device import choose_device
from mri_n2n.errors import InputError, OptionError, OutputError
from mri_n2n.formats import ImageFiles, detect, open_scan
from mri_n2n.formats.sampling import Box, acquired_box
from mri_n2n.formats.volume_scan import open_volume_as_scan
from mri_n2n.fourier import fft2c, ifft2c
from mri_n2n.inference import PIXELS_AT_ONCE, load_for_use
from mri_n2n.operators import adjoint
from mri_n2n.outputs import check_target, target_of
from mri_n2n.pairs import FULL
from mri_n2n.reconstruction import reconstruct_file
from mri_n2n.reconstructors import Finish, ImagesOf, Read, Reconstructor, network_reconstructor

METHODS = ("auto", "n2v", "n2v2", "structn2v")
# Pixels over which the noise map averages.
NOISE_MAP_WIDTH = 4.0


@dataclass(frozen=True)
class Plan:
    """How a scan is to be denoised. method: of `METHODS`. noise: standard deviation of the complex noise in the image's units,
    if known. training: see `DenoiseOptions`; its blind spot and network follow from the method."""

    method: str = "auto"
    noise: float | None = None
    training: DenoiseOptions = DenoiseOptions(minutes=3.0)
    noise_map: bool = False
    residual: bool = False


def denoise_file(
    path: Path,
    output: Path,
    plan: Plan | None = None,
    *,
    weights: Path | None = None,
    axis: int = 2,
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

    weights: of `train --method noise2void`, in place of a training on the scan itself. axis: of a volume, along which slices
    are taken. phase, imaginary: the other part of a complex volume in two files. Noise2Void needs noise that is independent from
    pixel to pixel; that is measured first, see `whiteness`, and said in the sidecar.
    Errors: OptionError, InputError, NotFoundError, OutputError.
    """
    plan = plan or Plan()
    check_plan(plan)
    is_volume = detect(path) == "nifti" if format is None else False
    if not is_volume and (phase or imaginary):
        raise OptionError(f"{path} is a raw scan, which is complex already; leave out the other part")
    if phase and imaginary:
        raise OptionError("give the phase of the volume or its imaginary part, not both")
    if weights is not None and plan != Plan():
        raise OptionError(
            "--weights take the place of a training on the scan itself: leave out its options (--method, --noise, --minutes, "
            "--noise-map, --residual ...)"
        )
    more = [name for name, wanted in (("noise", plan.noise_map), ("residual", plan.residual)) if wanted]
    target = replace(target_of(path, output, bids=False), more=tuple(more))
    check_target(target, [p for p in (path, phase, imaginary) if p], force, dicom=False)
    if is_volume:
        scan = open_volume_as_scan(ImageFiles(path, phase, imaginary), axis)
    elif detect(path) == "result-hdf5" and format is None:
        raise InputError(
            f"{path} is a reconstruction, whose noise is not independent from pixel to pixel; denoise the scan, or the volume"
        )
    else:
        scan = open_scan(path, format, repetition)
    check_full(scan)
    if weights is None:
        reconstructor = self_denoiser(plan, device, quiet)
    else:
        loaded = load_for_use(weights, device)
        if loaded.header["network"] != "denoiser":
            raise OptionError(
                f"{weights} are weights of a reconstruction; denoise takes those of train --method noise2void"
            )
        reconstructor = network_reconstructor(loaded, flips=True)
    return reconstruct_file(scan, target, reconstructor, force=force, quiet=quiet)


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
    cleaned = denoise_images(images, plan, choose_device(device), "the array", quiet)
    for caution in cautions(plan, cleaned):
        warnings.warn(caution, stacklevel=2)
    result = cleaned.images.numpy().reshape(array.shape)
    return result if np.iscomplexobj(array) else result.real


def check_plan(plan: Plan) -> None:
    """OptionError for a number that makes no sense."""
    training = plan.training
    budgets = [value for value in (training.minutes, training.steps) if value is not None]
    if plan.method not in METHODS:
        raise OptionError(f"unknown method {plan.method!r}; choose from {', '.join(METHODS)}")
    if len(budgets) != 1 or not 0 < budgets[0] < math.inf:
        raise OptionError("give one of --minutes and --steps, above zero")
    if plan.noise is not None and not 0 <= plan.noise < math.inf:
        raise OptionError(f"--noise must be zero or positive; got {plan.noise}")
    if not 0 < training.spot.share <= 0.25:
        raise OptionError(f"--share must be above 0 and at most 0.25; got {training.spot.share}")
    if not 3 <= training.spot.window <= 101 or training.spot.window % 2 == 0:
        raise OptionError(f"--window must be an odd number from 3 to 101; got {training.spot.window}")
    if not 0 <= training.seed < 2**63:
        raise OptionError(f"--seed must be between 0 and 2^63 - 1; got {training.seed}")


def check_full(scan: Scan) -> None:
    """InputError for a scan that is undersampled where it was acquired at all."""
    middle = scan.read(scan.shape[0] // 2, scan.shape[0] // 2 + 1)
    rows, columns = (slice(*edges) for edges in acquired_box(scan))
    share = middle.mask[..., rows, columns].mean().item()
    if share < FULL:
        raise InputError(
            f"{scan.path} has {share:.0%} of its samples; denoise takes fully sampled scans, reconstruct those that are not"
        )


@dataclass(frozen=True)
class Cleaned:
    """images: complex (slices, y, x), with zero imaginary part where the noisy ones had none. magnitude: these were
    magnitudes. method and training: as they were settled."""

    images: Tensor
    magnitude: bool
    whiteness: Whiteness
    method: str
    training: DenoiseOptions
    fitted: Fitted


def denoise_images(noisy: Tensor, plan: Plan, device: torch.device, name: str, quiet: bool) -> Cleaned:
    """Complex images (slices, y, x), cleaned by a network that is trained on them. Errors: InputError, with `name`, for one
    value everywhere."""
    real = is_real(noisy)
    magnitude = real and bool(noisy.real.min() >= -1e-5 * noisy.real.max())
    seen = noisy.real.clamp_min(0) if magnitude else noisy.real if real else noisy
    whiteness = measure_whiteness(seen.numpy())
    training, method = settled(plan, whiteness)
    if not quiet:
        tqdm.write(f"noise: {described(whiteness)}; method: {method}", file=sys.stderr)
    channels = torch.stack([noisy.real] if real else [noisy.real, noisy.imag], dim=1)
    scale = channels.std().item()
    if not scale > 0:
        raise InputError(f"{name} has the same value everywhere; there is nothing to denoise")
    fitted = fit(channels / scale, training, device, quiet=quiet)
    cleaned = scale * clean(fitted.network, channels / scale, training.dimensions, device)
    if magnitude:
        signal = signal_of_mean(cleaned.numpy(), plan.noise**2) if plan.noise else cleaned.numpy()
        cleaned = torch.from_numpy(np.maximum(signal, 0))
    imaginary = torch.zeros_like(cleaned[:, 0]) if real else cleaned[:, 1]
    return Cleaned(torch.complex(cleaned[:, 0], imaginary), magnitude, whiteness, method, training, fitted)


def self_denoiser(plan: Plan, device: str, quiet: bool) -> Reconstructor:
    """Trains on the scan before it gives its first slice."""
    chosen = choose_device(device)

    def begin(scan: Scan, read: Read) -> tuple[ImagesOf, Finish]:
        noisy = combined_images(scan, read)
        box = acquired_box(scan)
        acquired = inside(noisy, box)
        cleaned = denoise_images(acquired, plan, chosen, str(scan.path), quiet)
        images = cleaned.images if acquired is noisy else changed_inside(noisy, box, cleaned.images)
        position = 0

        def images_of(acquisition: Acquisition) -> Tensor:
            nonlocal position
            position += len(acquisition.kspace)
            return images[position - len(acquisition.kspace) : position, None]

        def finish(_: Tensor, __: float) -> tuple[dict, list[str], dict[str, np.ndarray]]:
            volumes = {}
            if plan.residual:
                volumes["residual"] = (noisy.abs() - images.abs()).numpy()
            if plan.noise_map:
                volumes["noise"] = noise_map((noisy - images).numpy())
            options = {"device": chosen.type, "precision": "float32", "flips": True}
            said = {"weights": None, "denoise": facts(plan, cleaned), "options": options}
            return said, cautions(plan, cleaned), volumes

        return images_of, finish

    return Reconstructor(chosen, True, begin)


def facts(plan: Plan, cleaned: Cleaned) -> dict:
    """What the sidecar says of a training on the scan itself."""
    training, whiteness = cleaned.training, cleaned.whiteness
    floor = "taken away" if plan.noise else "left"
    return {
        "method": cleaned.method,
        "dimensions": training.dimensions,
        "steps": cleaned.fitted.steps,
        "training_seconds": round(cleaned.fitted.seconds, 2),
        "share": training.spot.share,
        "window": training.spot.window,
        "span": list(training.spot.span),
        "seed": training.seed,
        "noise": {
            "verdict": whiteness.verdict,
            "measured_in": whiteness.where,
            "deviation": whiteness.deviation,
            "correlation": {axis: list(values) for axis, values in whiteness.correlation.items()},
        },
        "rician_floor": floor if cleaned.magnitude else "none: not magnitudes",
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
    correlated, these are not. The images themselves where all of it was."""
    (first_row, end_row), (first_column, end_column) = box
    if (end_row - first_row, end_column - first_column) == images.shape[-2:]:
        return images
    return ifft2c(fft2c(images)[..., first_row:end_row, first_column:end_column])


def changed_inside(images: Tensor, box: Box, cleaned: Tensor) -> Tensor:
    """`images` with `cleaned` in place of what `inside` gives."""
    kspace = fft2c(images)
    kspace[(..., *(slice(*edges) for edges in box))] = fft2c(cleaned)
    return ifft2c(kspace)


def is_real(images: Tensor) -> bool:
    """To the rounding of a Fourier transform and back."""
    return bool(images.imag.abs().max() <= 1e-5 * images.real.abs().max())


def settled(plan: Plan, whiteness: Whiteness) -> tuple[DenoiseOptions, str]:
    """(training, method) for the noise there is: N2V2; structN2V where it is correlated along one axis of the slices."""
    method = plan.method
    if method == "auto":
        method = "structn2v" if whiteness.verdict == "line" else "n2v2"
    training = plan.training
    spot = replace(training.spot, rule="uniform" if method == "n2v" else "median")
    if method == "structn2v":
        reach = whiteness.reach[-training.dimensions :]
        if not any(reach):
            raise OptionError(
                "structn2v hides pixels along correlated noise, and this noise is not correlated; use n2v2"
            )
        spot = reaching(spot, reach)
    return replace(training, spot=spot, artefact_free=method != "n2v"), method


def cautions(plan: Plan, cleaned: Cleaned) -> list[str]:
    """What speaks against Noise2Void for this scan."""
    whiteness, found = cleaned.whiteness, []
    if whiteness.verdict == "other":
        found.append(OTHER_NOISE)
    if whiteness.verdict == "line" and cleaned.method != "structn2v":
        found.append(f"the noise is correlated along one axis, which {cleaned.method} keeps; structn2v is for that")
    if whiteness.verdict == "unknown":
        found.append("no noise was found to look at: whether it is independent from pixel to pixel is not known")
    if cleaned.magnitude and plan.noise is None:
        found.append(
            "magnitudes: where signal is low, noise lifts them (Rician floor), which stays; --noise S takes it away, S the "
            f"standard deviation of the complex noise, here measured as {whiteness.deviation:.3g}"
        )
    return found


def noise_map(removed: np.ndarray) -> np.ndarray:
    """Local standard deviation (slices, y, x) of what was taken away: of complex images root of the mean |.|^2."""
    power = np.abs(removed).astype(np.float64) ** 2
    return np.sqrt(ndimage.gaussian_filter(power, (0, NOISE_MAP_WIDTH, NOISE_MAP_WIDTH))).astype(np.float32)
